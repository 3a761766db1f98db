"""Virtual token counters: what each client of an engine has been served (VTC, arXiv:2401.00588).

A client is a request class. Its service is w_p for every prompt token, all of them when a request of it
first gets a token, and w_q for every output token; a prompt that has to be computed again after a
preemption is not counted again. A client is backlogged while a request of it waits: one that holds no
place in the engine. When a client becomes backlogged its counter is lifted to the smallest one of those
that stayed backlogged, or, if there are none, to that of the client that was backlogged last (Algorithm 2).

The engine looks when a batch ends: clients whose requests came meanwhile are lifted together then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import select
from llmgym.core.pytree import register
from llmgym.engine.state import Counters, Table
from llmgym.engine.view import View

MOST_SERVICE = 2**28
"""Service of a client in one batch, and differences of counters, are cut to this."""


@register
@dataclass(frozen=True)
class Service:
    """What a batch did for each client (classes, engines...)."""

    charged: jax.Array  # weighted tokens, int32
    waiting: jax.Array  # whether a request of it waited when the batch was formed
    stayed: jax.Array  # whether one of those still waits
    looked: jax.Array  # of engines: whether the step ended a batch or there was none; else all is 0


def start(classes: int, shape: tuple[int, ...]) -> Counters:
    """All counters zero, for engines and batch axes ``shape``."""
    none = jnp.zeros((classes, *shape), jnp.int32)
    return Counters(none, jnp.zeros(shape, jnp.int32), none > 0, none > 0)


def look(counters: Counters, seen: View, tokens: jax.Array) -> Counters:
    """Note which clients wait as batches are formed, and which of them wait on.

    Args:
        counters: before.
        seen: the view of the decision; engines that are busy keep what was noted before.
        tokens: (slots, engines...) of the batches, int32.
    """
    idle = seen.live & ~seen.started
    mine = [seen.job_class == k for k in range(seen.classes.count)]
    waiting = jnp.stack([jnp.any(m & idle, axis=0) for m in mine])
    stayed = jnp.stack([jnp.any(m & idle & (tokens == 0), axis=0) for m in mine])
    return replace(
        counters,
        waiting=jnp.where(seen.free, waiting, counters.waiting),
        stayed=jnp.where(seen.free, stayed, counters.stayed),
    )


def amounts(weights: jax.Array, before: Table, after: Table, tokens: jax.Array) -> jax.Array:
    """The service (rows, engines...) of batches of ``tokens`` that ended, float32.

    Args:
        weights: w_p and w_q, int32 (2,).
        before: the table of the engines before the tokens were credited.
        after: that after it.
        tokens: (rows, engines...) that ended.
    """
    first = (tokens > 0) & (before.last_token == before.arrival)
    prompts = weights[0] * jnp.where(first, before.prompt, 0)
    return (prompts + weights[1] * (before.decode - after.decode)).astype(jnp.float32)


def advance(
    counters: Counters, amount: jax.Array, table: Table, idle: jax.Array, free: jax.Array
) -> tuple[Counters, Service]:
    """The counters at the end of a step, and what each client was served.

    Args:
        counters: as they were when the batches were formed (``look``).
        amount: (rows, engines...) weighted tokens of the batches that ended, by row of ``table``.
        table: of the engines, before the requests that came in the meantime.
        idle: (classes, engines...) whether a request of the class waits now.
        free: of engines: which look, as their batch has ended or there was none.
    """
    mine = [table.job_class == k for k in range(len(counters.value))]
    # Sums in floating point cannot overflow, and are exact up to 2**24.
    charged = jnp.stack([jnp.sum(jnp.where(m, amount, 0), axis=0) for m in mine])
    charged = jnp.minimum(charged, MOST_SERVICE).astype(jnp.int32)
    service = Service(charged, counters.waiting & free, counters.stayed & free, free)
    value = counters.value + charged
    left = counters.waiting & ~counters.stayed
    lowest = jnp.iinfo(jnp.int32).min
    # Of several clients whose queue one batch empties, the one with the largest counter went last.
    latest = jnp.argmax(jnp.where(left, value, lowest), axis=0).astype(jnp.int32)
    last = jnp.where(jnp.any(left, axis=0), latest, counters.last)
    level = _level(value, counters.stayed, last)
    value = jnp.where(idle & ~counters.stayed, jnp.maximum(value, level), value)
    value = jnp.clip(value - _level(value, idle, last), -MOST_SERVICE, MOST_SERVICE)
    return replace(
        counters,
        value=jnp.where(free, value, counters.value),
        last=jnp.where(free, last, counters.last),
    ), service


def _level(value: jax.Array, backlogged: jax.Array, last: jax.Array) -> jax.Array:
    """The smallest counter of the backlogged, or that of the last that was."""
    smallest = jnp.min(jnp.where(backlogged, value, jnp.iinfo(jnp.int32).max), axis=0)
    return jnp.where(jnp.any(backlogged, axis=0), smallest, select(value, last))
