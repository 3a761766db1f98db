"""A step as KV memory sees it: who enters, who is preempted, what is found, lost or moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import one_by_one
from llmgym.engine.block_pool import BlockPool, empty_pool
from llmgym.engine.memory import prefix_cache
from llmgym.engine.memory.paged import cached_tokens
from llmgym.engine.params import Params
from llmgym.engine.state import State, Table
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class Admission:
    """Batches that fit into memory, and what they change before they run. Counts are in tokens."""

    batch: Batch
    table: Table
    pool: BlockPool | None
    found: jax.Array  # (slots, engines...) that prefix caching found in memory
    lost: jax.Array  # of engines: to be computed again
    swapped: jax.Array  # of engines: moved to the host or back
    free: jax.Array  # of engines: blocks
    preempted: jax.Array  # of engines: requests


def empty_memory(params: Params, rows: int, shape: tuple[int, ...]) -> BlockPool | None:
    """The blocks of every engine, all free; None unless prefix caching needs them one by one.

    Args:
        params: of the scenario.
        rows: of the request table of an engine, fresh ones included.
        shape: batch axes.
    """
    if params.prefixes is None:
        return None
    assert params.kv_blocks is not None
    size, most = params.pool_size, params.prefixes.most
    if params.lone:
        return empty_pool(params.kv_blocks, size, rows, most, shape)
    pools = [empty_pool(blocks, size, rows, most, shape) for blocks in params.kv_blocks]
    batch = len(shape)
    return jax.tree.map(lambda *one: jnp.stack(one, axis=one[0].ndim - batch), *pools)


def admit(params: Params, state: State, seen: View, table: Table, batch: Batch) -> Admission:
    """Let requests into memory and take it from others: as ``fill.clip`` says, or the pool if there is one.

    Args:
        params: of the scenario.
        state: at the decision.
        seen: the view of it.
        table: of the engines.
        batch: what ``fill.clip`` left of the batches; nothing of engines that are busy.
    """
    memory, pool = seen.memory, state.pool
    none, nothing = jnp.zeros_like(state.busy), jnp.zeros_like(batch.tokens)
    if memory is None:
        return Admission(batch, table, None, nothing, none, none, none, none)
    assert batch.preempt is not None
    found = nothing
    if pool is not None:
        served = one_by_one(
            prefix_cache.serve,
            state.busy.shape,
            memory,
            seen.prefill,
            batch.tokens,
            batch.preempt,
            seen.urgency,
        )
        batch, pool, found = Batch(served.tokens, served.gone), served.pool, served.found
        table = replace(table, prefill=table.prefill - found)
    assert table.admitted is not None
    assert batch.preempt is not None
    enters = (batch.tokens > 0) & ~seen.started
    table = replace(table, admitted=jnp.where(enters, state.steps, table.admitted))
    table, lost, swapped = _preempt(params, seen, table, batch.tokens, batch.preempt)
    inside = (memory.resident & ~batch.preempt) | (batch.tokens > 0)
    held = jnp.where(inside, memory.needed(found + batch.tokens), 0)
    free = memory.blocks - jnp.sum(held, axis=0) if pool is None else pool.free
    preempted = jnp.sum(batch.preempt.astype(jnp.int32), axis=0)
    return Admission(batch, table, pool, found, lost, swapped, free, preempted)


def _preempt(
    params: Params, seen: View, table: Table, tokens: jax.Array, preempt: jax.Array
) -> tuple[Table, jax.Array, jax.Array]:
    """The table after some lost their memory; the tokens to compute again, and those swapped."""
    assert table.preemptions is not None
    assert seen.memory is not None
    table = replace(table, preemptions=table.preemptions + preempt)
    known = table.prompt + table.output - table.decode
    # With prompt_samples the token that ends a prompt counts as one of the prompt.
    ends = params.prompt_samples & (table.prefill == 0) & (table.decode > 0)
    again, moved = preempt, jnp.zeros_like(seen.free, jnp.int32)
    if table.swapped is not None:
        assert params.swap_tokens_per_ms is not None
        swaps = params.swap_tokens_per_ms > 0
        swaps = swaps.reshape(*swaps.shape, *[1] * (seen.free.ndim - swaps.ndim))
        again = preempt & ~swaps
        returns = (tokens > 0) & table.swapped
        moves = (preempt & swaps) | returns
        moved = jnp.sum(jnp.where(moves, seen.memory.cached, 0), axis=0)
        table = replace(table, swapped=(table.swapped & ~returns) | (preempt & swaps))
    lost = jnp.sum(jnp.where(again, known - table.prefill - ends.astype(jnp.int32), 0), axis=0)
    return replace(table, prefill=jnp.where(again, known, table.prefill)), lost, moved


def leave(
    params: Params, state: State, pool: BlockPool | None, table: Table, finished: jax.Array
) -> BlockPool | None:
    """The pool after the requests that finished gave back their blocks.

    Args:
        params: of the scenario.
        state: the decision before.
        pool: the blocks while the batches ran.
        table: of the engines before the batches were credited, with their tokens ``planned``.
        finished: (rows, engines...) requests.
    """
    if pool is None:
        return None
    assert table.planned is not None
    cached = cached_tokens(table, params.prompt_samples)
    held = -(-(cached + table.planned) // params.block_size)
    assert table.admitted is not None
    urgency = jnp.zeros_like(table.job_class)
    for k in range(params.classes):
        urgency = jnp.where(table.job_class == k, params.priority[k], urgency)
    columns = table.admitted, finished, held, urgency
    return one_by_one(prefix_cache.leave, state.busy.shape, pool, *columns)
