"""Shortest remaining processing time: the request with the fewest tokens left goes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import decode_left, least_first, progress
from llmgym.core.checks import keep_number
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class SRPT(Policy):
    """The fewest prompt and output tokens left first, whatever the phase. Needs known lengths.

    Schrage (1968). With limited preemption (arXiv:2410.01035) a request that has generated the share
    C of its output is no longer passed over: such requests go first, FCFS.

    Args:
        preemptible: C; 1: every request can be passed over until it ends.
    """

    preemptible: float = 1.0
    name: ClassVar[str] = "srpt"
    work_conserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "preemptible", low=0, high=1, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        left = decode_left(self.name, view)
        output = (view.generated + left).astype(jnp.float32)
        kept = view.decoding & (view.generated >= self.preemptible * output)
        remaining = jnp.where(kept, -1, view.prefill + left)
        budget = own_budget(view, self.token_budget)
        batch = least_first(view, view.empty(), view.demand, remaining, budget)
        return progress(view, batch, budget)
