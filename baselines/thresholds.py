"""What WAIT and Nested WAIT share: a limit on requests split into parts, rounding, and a timeout."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from llmgym.baselines.ranking import ticks
from llmgym.engine.fill import own_budget
from llmgym.engine.view import View


def limit_on_requests(view: View, limit: int | None, token_budget: int | None) -> jax.Array | int:
    """L: the policy's own limit on requests, else the engine's, but at most the token budget (...).

    Args:
        view: what the engine shows.
        limit: the policy's own, which is then L; None: it has none.
        token_budget: the policy's own; None: that of the engine.
    """
    if limit is not None:
        return limit
    budget = own_budget(view, token_budget)
    return budget if view.max_num_seqs is None else jnp.minimum(budget, view.max_num_seqs)


def shares(limit: jax.Array | int, work: Sequence[jax.Array]) -> list[jax.Array]:
    """The limit split in proportion to ``work`` (float32)."""
    total = jnp.maximum(jnp.sum(jnp.stack(work), axis=0), 1e-6)
    # A share that should be whole may come out just below it in 32 bits.
    return [limit * part / total + 1e-4 for part in work]


def at_least_one(number: jax.Array) -> jax.Array:
    """A float rounded down, but not below 1."""
    return jnp.maximum(jnp.floor(number).astype(jnp.int32), 1)


def anyone_late(view: View, requests: jax.Array, timeout_ms: float) -> jax.Array:
    """Whether any of some requests has had no service for a time (...).

    Args:
        view: what the engine shows.
        requests: which they are, a mask (slots, ...).
        timeout_ms: the time.
    """
    return jnp.any(requests & (view.unserved >= ticks(view, timeout_ms)), axis=0)


def count(requests: jax.Array) -> jax.Array:
    """How many there are in a mask."""
    return jnp.sum(requests.astype(jnp.int32), axis=0)
