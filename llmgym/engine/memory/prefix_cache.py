"""What a batch does to KV memory with prefix caching: block by block, in the order of vLLM."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmgym.core.arrays import first_of, rows
from llmgym.engine.block_pool import BlockPool, find, grow, idle, keep, release, share
from llmgym.engine.view import Memory


class Served(NamedTuple):
    """A batch as memory allows it."""

    pool: BlockPool
    tokens: jax.Array  # (slots,) that run
    gone: jax.Array  # (slots,) who was preempted
    found: jax.Array  # (slots,) tokens of requests that enter which were in memory already


class _Scan(NamedTuple):
    pool: BlockPool
    held: jax.Array  # (slots,) blocks
    named: jax.Array  # (slots,) who is to be preempted and still holds memory
    gone: jax.Array
    todo: jax.Array
    tokens: jax.Array
    found: jax.Array


def serve(
    memory: Memory, prefill: jax.Array, asked: jax.Array, preempt: jax.Array, urgency: jax.Array
) -> Served:
    """Give blocks to the requests of a batch of one engine.

    Those in memory come first, in order of admission. When blocks run out, those go whom ``preempt``
    names, the least urgent first; then, if that does not suffice, the least urgent of the others. Those
    named all go in the end, needed or not. A request that is named may be ``asked`` to run: it takes its
    blocks in turn before it loses them, as one that vLLM unschedules. Then, if nobody had to go, requests
    enter in order of urgency up to the first that does not fit.

    Args:
        memory: as the policy sees it.
        prefill: (slots,) prompt tokens to compute.
        asked: (slots,) tokens of the batch.
        preempt: (slots,) who is named.
        urgency: (slots,) more goes first; at a tie the earlier arrival.
    """
    assert memory.pool is not None
    size = memory.block_size
    after = memory.cached + asked
    acts = (memory.needed(asked) > memory.held) | (after // size > memory.cached // size)
    nobody = jnp.zeros_like(preempt)
    scan = _Scan(
        pool=memory.pool,
        held=memory.held,
        named=preempt & memory.resident,
        gone=nobody,
        todo=memory.resident & (asked > 0) & acts,
        tokens=jnp.where(memory.resident, asked, 0),
        found=jnp.zeros_like(asked),
    )
    scan = jax.lax.while_loop(
        lambda s: jnp.any(s.todo), lambda s: _run(memory, asked, urgency, s), scan
    )
    scan = jax.lax.while_loop(
        lambda s: jnp.any(s.named), lambda s: _drop(_last(s.named, urgency), s), scan
    )
    scan = scan._replace(todo=~memory.resident & (asked > 0) & ~jnp.any(scan.gone))
    scan = jax.lax.while_loop(
        lambda s: jnp.any(s.todo), lambda s: _enter(memory, prefill, asked, urgency, s), scan
    )
    tokens = jnp.where(scan.gone, 0, scan.tokens)
    return Served(scan.pool, tokens, scan.gone, scan.found)


def _run(memory: Memory, asked: jax.Array, urgency: jax.Array, scan: _Scan) -> _Scan:
    """The next request in memory gets the blocks for its tokens, unless it is preempted itself."""
    me = first_of(scan.todo, memory.admitted, -urgency)
    upto = memory.needed(asked)[me]

    def short(scan: _Scan) -> jax.Array:
        return (upto - scan.held[me] > scan.pool.free) & ~scan.gone[me]

    def preempt(scan: _Scan) -> _Scan:
        present = memory.resident & ~scan.gone
        candidates = jnp.where(jnp.any(scan.named), scan.named, present)
        return _drop(_last(candidates, urgency), scan)

    scan = jax.lax.while_loop(short, preempt, scan)
    stays = ~scan.gone[me]
    held = scan.held[me]
    upto = jnp.where(stays, upto, held)
    begin = memory.cached[me] // memory.block_size
    end = jnp.where(stays, (memory.cached[me] + asked[me]) // memory.block_size, begin)
    assert memory.contents is not None
    pool = keep(grow(scan.pool, me, held, upto), me, memory.contents.of(me), begin, end)
    return scan._replace(
        pool=pool, held=scan.held.at[me].set(upto), todo=scan.todo.at[me].set(False)
    )


def _drop(victim: jax.Array, scan: _Scan) -> _Scan:
    """A request loses its memory."""
    return scan._replace(
        pool=release(scan.pool, victim, scan.held[victim]),
        held=scan.held.at[victim].set(0),
        named=scan.named.at[victim].set(False),
        gone=scan.gone.at[victim].set(True),
        todo=scan.todo.at[victim].set(False),
    )


def _enter(
    memory: Memory, prefill: jax.Array, asked: jax.Array, urgency: jax.Array, scan: _Scan
) -> _Scan:
    """The most urgent of those that enter gets what is found and blocks for the rest, if it fits."""
    assert memory.contents is not None
    me, size = first_of(scan.todo, -urgency, rows(urgency)), memory.block_size
    found, count = find(scan.pool, memory.contents.of(me), prefill[me], size)
    tokens = jnp.where(
        prefill[me] > 0, jnp.minimum(asked[me], prefill[me] - count * size), asked[me]
    )
    after = count * size + tokens
    upto = -(-after // size)
    fits = upto - count + idle(scan.pool, found, count) <= scan.pool.free
    count, upto = jnp.where(fits, count, 0), jnp.where(fits, upto, 0)
    pool = grow(share(scan.pool, me, found, count), me, count, upto)
    pool = keep(pool, me, memory.contents.of(me), count, jnp.where(fits, after // size, count))
    return scan._replace(
        pool=pool,
        todo=scan.todo.at[me].set(False) & fits,
        tokens=scan.tokens.at[me].set(jnp.where(fits, tokens, 0)),
        found=scan.found.at[me].set(count * size),
    )


def leave(
    pool: BlockPool,
    admitted: jax.Array,
    finished: jax.Array,
    held: jax.Array,
    urgency: jax.Array,
) -> BlockPool:
    """The pool after the finished requests gave back their blocks, in order of admission.

    Args:
        pool: of one engine.
        admitted: (rows,) number of the step in which each request got its memory, int32.
        finished: (rows,) which requests finished.
        held: (rows,) blocks of each.
        urgency: (rows,) more goes first where the step is the same; then the earlier row.
    """

    def one(carry: tuple[BlockPool, jax.Array]) -> tuple[BlockPool, jax.Array]:
        pool, todo = carry
        me = first_of(todo, admitted, -urgency)
        return release(pool, me, held[me]), todo.at[me].set(False)

    return jax.lax.while_loop(lambda c: jnp.any(c[1]), one, (pool, finished))[0]


def _last(mask: jax.Array, urgency: jax.Array) -> jax.Array:
    """The least urgent slot of a mask, the latest arrival at a tie."""
    return first_of(mask, urgency, -rows(urgency))
