"""Virtual token counters: what each client of an engine has been served (VTC, arXiv:2401.00588).

A client is a request class. Its service is w_p for every prompt token, all of them when a request of it
first gets a token, and w_q for every output token; a prompt that preemption makes to be computed again
is not counted again. A client is backlogged while a request of it waits: one that holds no place in the
engine. When a client becomes backlogged its counter is lifted to the smallest one of those that stayed
backlogged, or, if there are none, to that of the client that was backlogged last (Algorithm 2).

The engine looks when a batch ends: clients whose requests came meanwhile are lifted together then.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.arrays import select
from llmgym.core.pytree import register
from llmgym.engine.state import Counters, Table
from llmgym.engine.view import View

MOST_SERVICE = 2**28
"""Service of a client in one batch, and differences of counters, beyond it count as it."""


@register
@dataclass(frozen=True)
class Service:
    """What a batch did for each client (classes, ...)."""

    charged: jax.Array  # weighted tokens, int32
    waiting: jax.Array  # whether a request of it waited when the batch was formed
    stayed: jax.Array  # whether one of those still waits


def start(classes: int, shape: tuple[int, ...]) -> Counters:
    """All counters zero, for batch axes ``shape``."""
    return Counters(jnp.zeros((classes, *shape), jnp.int32), jnp.zeros(shape, jnp.int32))


def serve(
    weights: jax.Array, seen: View, tokens: jax.Array, before: Table, after: Table
) -> Service:
    """The service of a batch of ``tokens`` (slots, ...), from the tables around it.

    ``weights``: w_p and w_q, int32 (2,).
    """
    first = (tokens > 0) & (before.last_token == before.arrival)
    prompts = weights[0] * jnp.where(first, before.prompt, 0)
    amount = (prompts + weights[1] * (before.decode - after.decode)).astype(jnp.float32)
    idle = seen.live & ~seen.started
    passed_over = idle & (tokens == 0)
    mine = [before.job_class == k for k in range(seen.classes.count)]
    # Sums in floating point cannot overflow, and are exact up to 2**24.
    charged = jnp.stack([jnp.sum(jnp.where(m, amount, 0), axis=0) for m in mine])
    return Service(
        charged=jnp.minimum(charged, MOST_SERVICE).astype(jnp.int32),
        waiting=jnp.stack([jnp.any(m & idle, axis=0) for m in mine]),
        stayed=jnp.stack([jnp.any(m & passed_over, axis=0) for m in mine]),
    )


def advance(counters: Counters, service: Service, seen: View) -> Counters:
    """The counters after a batch, at the view ``seen`` that follows it."""
    value = counters.value + service.charged
    left = service.waiting & ~service.stayed
    lowest = jnp.iinfo(jnp.int32).min
    # Of several that are served up in one batch the one with the largest counter went last.
    latest = jnp.argmax(jnp.where(left, value, lowest), axis=0).astype(jnp.int32)
    last = jnp.where(jnp.any(left, axis=0), latest, counters.last)
    level = _level(value, service.stayed, last)
    idle = seen.live & ~seen.started
    mine = (seen.job_class == k for k in range(len(value)))
    backlogged = jnp.stack([jnp.any(m & idle, axis=0) for m in mine])
    value = jnp.where(backlogged & ~service.stayed, jnp.maximum(value, level), value)
    value = value - _level(value, backlogged, last)
    return Counters(jnp.clip(value, -MOST_SERVICE, MOST_SERVICE), last)


def _level(value: jax.Array, backlogged: jax.Array, last: jax.Array) -> jax.Array:
    """The smallest counter of the backlogged, or that of the last that was."""
    smallest = jnp.min(jnp.where(backlogged, value, jnp.iinfo(jnp.int32).max), axis=0)
    return jnp.where(jnp.any(backlogged, axis=0), smallest, select(value, last))
