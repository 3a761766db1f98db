"""Least attained service: the request that has been served the fewest tokens goes first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import attained, least_first, progress
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class LAS(Policy):
    """The fewest prompt and output tokens served so far first, whatever the phase; ties FCFS.

    Also called foreground-background (Kleinrock, 1976): good for lengths with heavy tails, which it
    need not know. A request is passed over from one batch to the next, not inside a batch. Service
    that a preemption undid does not count.
    """

    name: ClassVar[str] = "las"
    work_conserving: ClassVar[bool] = True

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        batch = least_first(view, view.empty(), view.demand, attained(view), budget)
        return progress(view, batch, budget)
