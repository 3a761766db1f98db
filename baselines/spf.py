"""Shortest prefill first, with ageing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import least_first, progress, whole
from llmgym.core.checks import keep_number
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class ShortestPrefillFirst(Policy):
    """Decodes first; then the prompt with the least l - kappa * wait, l its tokens left.

    Waiting makes up for length, so that long prompts do not starve. SJF with ageing on what is known
    before any output: the prompt.

    Args:
        ageing: kappa, tokens per millisecond of waiting; 0: none. Completed: its default.
    """

    ageing: float = 1.0
    name: ClassVar[str] = "spf"
    work_conserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "ageing", low=0, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        decodes = fill(view, view.empty(), view.decode, budget)
        credit = whole(self.ageing * view.tick_ms * view.waited.astype(jnp.float32))
        batch = least_first(view, decodes, view.prefill, view.prefill - credit, budget)
        return progress(view, batch, budget)
