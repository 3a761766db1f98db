"""A step as KV memory sees it: who enters, who is preempted, what is found, lost or moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.arrays import one_by_one
from llmgym.engine.block_pool import BlockPool
from llmgym.engine.memory import prefix_cache
from llmgym.engine.params import Physics
from llmgym.engine.state import State, Table
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class Admission:
    """A batch that fits into memory, and what it changes before it runs. Counts are in tokens."""

    batch: Batch
    table: Table
    pool: BlockPool | None
    cut: jax.Array  # whether less runs than was asked for
    found: jax.Array  # (slots, ...) that prefix caching found in memory
    lost: jax.Array  # to be computed again
    swapped: jax.Array  # moved to the host or back
    held: jax.Array  # (slots, ...) blocks of each request
    free: jax.Array  # blocks


def admit(physics: Physics, state: State, seen: View, batch: Batch) -> Admission:
    """Let requests into memory and others lose it, as ``composition.clip`` or the pool says."""
    memory, table, pool = seen.memory, state.table, state.pool
    assert memory is not None
    assert batch.preempt is not None
    found, cut = jnp.zeros_like(batch.tokens), jnp.zeros(state.present.shape, bool)
    if pool is not None:
        asked = jnp.where(batch.preempt, 0, batch.tokens)
        served = _each(prefix_cache.serve, state)(
            memory, seen.prefill, batch.tokens, batch.preempt, seen.urgency
        )
        batch, pool, found = Batch(served.tokens, served.gone), served.pool, served.found
        cut = jnp.any(asked != batch.tokens, axis=0)
        table = replace(table, prefill=table.prefill - found)
    assert table.admitted is not None
    assert batch.preempt is not None
    enters = (batch.tokens > 0) & ~seen.started
    table = replace(table, admitted=jnp.where(enters, state.steps, table.admitted))
    table, lost, swapped = _preempt(physics, seen, table, batch.tokens, batch.preempt)
    inside = (memory.resident & ~batch.preempt) | (batch.tokens > 0)
    held = jnp.where(inside, memory.needed(found + batch.tokens), 0)
    free = memory.blocks - jnp.sum(held, axis=0) if pool is None else pool.free
    return Admission(batch, table, pool, cut, found, lost, swapped, held, free)


def _preempt(
    physics: Physics, seen: View, table: Table, tokens: jax.Array, preempt: jax.Array
) -> tuple[Table, jax.Array, jax.Array]:
    """The table after some lost their memory; the tokens to compute again, and those swapped."""
    assert table.preemptions is not None
    assert seen.memory is not None
    table = replace(table, preemptions=table.preemptions + preempt)
    if table.swapped is not None:
        returns = (tokens > 0) & table.swapped
        moved = jnp.sum(jnp.where(preempt | returns, seen.memory.cached, 0), axis=0)
        swapped = (table.swapped & ~returns) | preempt
        return replace(table, swapped=swapped), jnp.zeros_like(moved), moved
    known = table.prompt + table.output - table.decode
    # With prompt_samples the token that ends a prompt counts as one of the prompt.
    ends = physics.prompt_samples & (table.prefill == 0) & (table.decode > 0)
    lost = jnp.sum(jnp.where(preempt, known - table.prefill - ends.astype(jnp.int32), 0), axis=0)
    table = replace(table, prefill=jnp.where(preempt, known, table.prefill))
    return table, lost, jnp.zeros_like(lost)


def leave(state: State, seen: View, admission: Admission, finished: jax.Array) -> BlockPool | None:
    """The pool after the requests that finished gave back their blocks."""
    if admission.pool is None:
        return None
    assert seen.memory is not None
    return _each(prefix_cache.leave, state)(
        admission.pool, seen.memory, finished, admission.held, seen.urgency
    )


def _each(function: Callable[..., Any], state: State) -> Callable[..., Any]:
    """A function of one environment for all of them."""
    return partial(one_by_one, function) if state.present.ndim else function
