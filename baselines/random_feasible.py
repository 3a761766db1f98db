"""A random feasible batch: the weakest sensible rival, and a fuzzer of the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

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
        shape, demand = view.demand.shape, view.demand
        if view.rows_move:  # draws go by place in line
            place = jnp.where(view.live, jnp.cumsum(view.live) - 1, demand.size)
            demand = jnp.zeros_like(demand).at[place].set(demand, mode="drop")
        wanted = jax.random.randint(wanted_key, shape, 0, demand + 1)
        wanted = view.in_line(wanted) if view.rows_move else wanted
        most = own_budget(view, self.token_budget)
        return fill(view, view.empty(), wanted, jax.random.randint(budget_key, (), 0, most + 1))
