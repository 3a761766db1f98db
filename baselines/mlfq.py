"""Skip-join multi-level feedback queue (FastServe, arXiv:2305.05920)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import least_first, progress, ticks
from llmgym.core.checks import keep_number
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class SkipJoinMLFQ(Policy):
    """Queues of quantum q_i = q_0 * 2^i; the highest (i = 0) runs first, FCFS inside a queue.

    A request joins the first queue whose quantum covers its prefill (skip-join), and moves one down
    whenever it has used the quantum. One that was not served for ``starve_ms`` is in the highest.

    Completed: service is counted in iterations (a prompt takes one for every b_max tokens begun, an
    output token one), so that queues follow from the state of a request; and a starving request
    leaves the highest queue as soon as it is served.

    Args:
        quantum: q_0 in iterations.
        levels: number of queues.
        starve_ms: time without service after which a request is promoted.
    """

    quantum: int = 1
    levels: int = 8
    starve_ms: float = 5000.0
    name: ClassVar[str] = "mlfq"
    work_conserving: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "quantum", low=1, high=2**10, integer=True)
        keep_number(self, "levels", low=1, high=16, integer=True)
        keep_number(self, "starve_ms", above=0)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        level = jnp.where(
            view.unserved >= ticks(view, self.starve_ms), 0, self._level(view, budget)
        )
        batch = least_first(view, view.empty(), view.demand, level, budget)
        return progress(view, batch, budget)

    def _level(self, view: View, budget: jax.Array) -> jax.Array:
        """Queue of each request (slots, ...), from its prompt and the iterations it has had."""

        def iterations(tokens: jax.Array) -> jax.Array:
            return (tokens + budget - 1) // budget

        prompt = iterations(view.prompt)
        used = iterations(jnp.maximum(view.prompt - view.prefill, 0)) + view.generated
        quanta = [self.quantum << i for i in range(self.levels)]
        joined = jnp.full_like(prompt, quanta[0])
        for quantum in quanta[1:]:
            joined = jnp.where(prompt > joined, quantum, joined)
        # From the queue of quantum q_j the quanta down to queue i sum up to q_i - q_j.
        return sum(
            ((used + joined >= q).astype(jnp.int32) for q in quanta[1:]), jnp.zeros_like(used)
        )
