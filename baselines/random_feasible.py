"""A random feasible batch: the weakest sensible rival, and a fuzzer of the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class RandomFeasible(Policy):
    """Each request wants a uniform number of its possible tokens; a uniform part of the budget is filled."""

    name: ClassVar[str] = "random"
    batched: ClassVar[bool] = False

    def __call__(self, key: jax.Array, view: View) -> Batch:
        wanted_key, budget_key = jax.random.split(key)
        wanted = jax.random.randint(wanted_key, view.demand.shape, 0, view.demand + 1)
        most = own_budget(view, self.token_budget)
        return fill(view, view.empty(), wanted, jax.random.randint(budget_key, (), 0, most + 1))
