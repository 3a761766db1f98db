"""Policies with a memory that several test modules share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from llmgym import baselines
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View


class Moody:
    """Decodes; prompts too in a number of decisions that its memory and a die say. For one engine."""

    def start(self, view: View) -> Any:
        return {"calls": jnp.int32(0), "mean": 0, "last": view.prefill}

    def __call__(self, key: jax.Array, view: View, memory: Any) -> tuple[Batch, Any]:
        assert view.free.ndim == 0
        decodes = fill(view, view.empty(), view.decode)
        eager = (memory["calls"] % 3 > 0) | (jax.random.uniform(key) < 0.5)
        eager = eager | (memory["mean"] < 64) | (decodes.size == 0)
        batch = fill(view, decodes, jnp.where(eager, view.prefill, 0))
        return batch, {
            "calls": memory["calls"] + 1,
            "mean": memory["mean"] + (16 * batch.size - memory["mean"]) // 8,
            "last": view.prefill,
        }


class Counting:
    """Sarathi-Serve, and a count of its decisions that changes nothing; takes batch axes."""

    batched = True

    def start(self, view: View) -> jax.Array:
        return jnp.zeros(view.free.shape, jnp.int32)

    def __call__(self, key: jax.Array, view: View, memory: jax.Array) -> tuple[Batch, jax.Array]:
        return baselines.make("sarathi")(key, view), memory + 1


MOODY, COUNTING = Moody(), Counting()
