"""Earliest deadline first, on targets for the first token and between tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import MOST, by_class, class_ticks, least_first, progress
from llmgym.core.errors import LLMGymError, shown
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class EDF(Policy):
    """The earliest deadline first; requests that are late already go last (relegation).

    The deadline is arrival + TTFT target until the first output token is there, then the last
    token + TBT target (Liu and Layland, 1973). Completed: among the late the order is the same.

    Args:
        ttft_ms: target of the time to first token, one number or one for each class.
        tbt_ms: target of the time between tokens, likewise.
        relegate: whether the late go last; else a late request is the most urgent of all.
    """

    ttft_ms: Any = 1000.0
    tbt_ms: Any = 100.0
    relegate: bool = True
    name: ClassVar[str] = "edf"
    work_conserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ttft_ms", by_class("ttft_ms", self.ttft_ms))
        object.__setattr__(self, "tbt_ms", by_class("tbt_ms", self.tbt_ms))
        if not isinstance(self.relegate, bool):
            raise LLMGymError(f"relegate must be True or False, got {shown(self.relegate)}.")

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        slack = self.slack(view, budget)
        late = (slack < 0) & self.relegate
        demand = view.demand
        batch = least_first(view, view.empty(), jnp.where(late, 0, demand), slack, budget)
        batch = least_first(view, batch, jnp.where(late, demand, 0), slack, budget)
        return progress(view, batch, budget)

    def slack(self, view: View, budget: jax.Array) -> jax.Array:
        """Ticks until a request is late (slots, ...); below 0 where it is."""
        first = class_ticks("ttft_ms", view, self.ttft_ms) - view.waited
        later = class_ticks("tbt_ms", view, self.tbt_ms) - view.unserved
        return jnp.maximum(jnp.where(view.generated > 0, later, first), -MOST)
