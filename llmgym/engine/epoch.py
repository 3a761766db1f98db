"""One decision epoch: the one place where a view is made, a batch is formed from it, and the engine steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from llmgym.engine import simulator
from llmgym.engine.view import Batch, View


class Epoch(NamedTuple):
    """All that there is to know of a decision epoch."""

    before: Any  # the state at the decision
    view: View  # what it showed
    told: Any  # what ``act`` returns beside the batch
    info: Any  # what the step says (StepInfo)
    after: Any  # the state at the next decision


def run_epoch(
    params: Any,
    state: Any,
    act: Callable[[View], tuple[Batch, Any]],
    limit: jax.Array | None = None,
) -> Epoch:
    """Form a batch from what the state shows, and run it.

    Args:
        params: of ``simulator.lower``.
        state: at the decision.
        act: view -> (Batch, told).
        limit: ticks that an idle engine, or an epoch of a network, lasts at most.
    """
    view = simulator.view(params, state)
    batch, told = act(view)
    after, info = simulator.step(params, state, batch, limit, view)
    return Epoch(state, view, told, info, after)
