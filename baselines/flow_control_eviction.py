"""Flow control with unknown lengths (Dong and Cao, arXiv:2604.11001, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.flow_control import affordable
from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import whole
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.core.errors import LLMGymError, shown
from llmgym.engine.fill import fill, oldest, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class FlowControlEviction(Policy):
    """Every slot activates up to B_t waiting requests, and evicts the newest while memory overflows.

    B_t is drawn afresh in every slot, an iteration, with mean b; requests are activated in order of
    arrival. Then U = sum of l + generated + 1 over all active requests is what they would hold at its
    end, and while U > M the newest activation is evicted and loses its progress. The others run.

    Completed: B_t is b rounded up or down at random. Of requests activated in the same slot, the last
    to arrive is the newest. Memory is counted in whole blocks. An evicted request returns to its place
    in the order of arrival; as in the engine's own preemption, its output tokens are kept, and their KV
    entries are computed again together with those of its prompt. With nobody active B_t is at least 1.

    Args:
        activations: b, the mean of B_t. None: as many as M allows requests of the mean lengths of the
            classes, all classes alike.
    """

    activations: float | None = None
    name: ClassVar[str] = "flow_control_eviction"
    batched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if np.ndim(self.activations) > 0:  # type: ignore[arg-type]
            raise LLMGymError(
                f"activations must be one number, got {shown(self.activations)}: lengths are unknown, so "
                "classes share the activations of a slot."
            )
        if self.activations is not None:
            keep_number(self, "activations", above=0)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        waiting = view.live & ~view.started
        new = waiting & (prefix_sum(waiting) <= self._drawn(key, view))
        evicted = self._evicted(view)
        new = new & ~jnp.any(evicted, axis=0)  # the engine admits nobody in a slot that evicts
        staying = jnp.where(view.started & ~evicted, view.demand, 0)
        batch = fill(view, view.empty(), staying, self.token_budget)
        # The newest of all are those of this slot: ``fill`` takes the first of them that fit.
        batch = fill(view, batch, jnp.where(new, view.demand, 0), self.token_budget)
        return batch if view.memory is None else Batch(batch.tokens, evicted)

    def _evicted(self, view: View) -> jax.Array:
        """The newest of those that are active, as many as it takes for the others to fit at the end."""
        memory = view.memory
        if memory is None:
            return jnp.zeros(view.started.shape, bool)
        most = jnp.minimum(view.demand, own_budget(view, self.token_budget))
        held = jnp.where(memory.resident, memory.needed(jnp.where(view.started, most, 0)), 0)
        age = jnp.iinfo(jnp.int32).max - memory.admitted
        older, equal = oldest(age, held, memory.blocks)
        left = memory.blocks - jnp.sum(jnp.where(older, held, 0), axis=0)
        stays = older | (equal & (prefix_sum(jnp.where(equal, held, 0)) <= left))
        return memory.resident & ~stays

    def _drawn(self, key: jax.Array, view: View) -> jax.Array:
        """B_t."""
        if self.activations is None:
            mean = affordable(view) * jnp.sum(view.classes.here, axis=0)
        else:
            mean = jnp.float32(self.activations)
        certain = jnp.floor(mean)
        drawn = whole(certain) + (jax.random.uniform(key) < mean - certain).astype(jnp.int32)
        return jnp.maximum(drawn, jnp.where(jnp.any(view.started, axis=0), 0, 1))
