"""vLLM's scheduler request by request: what its order of service, and its prefix cache, need."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from llmgym.core.arrays import first_of, rows
from llmgym.engine.block_pool import BlockPool, find, grow, idle, keep, release, share
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


class Rules(NamedTuple):
    """The options of ``vllm_v1``."""

    token_budget: int | None
    chunked_prefill: bool
    long_prefill_cap: int
    reserve_full: bool
    watermark: float


class Scan(NamedTuple):
    """A batch while it is formed; numbers are of one environment."""

    tokens: jax.Array  # (slots,)
    undone: jax.Array  # (slots,) tokens that requests had in the batch when they were preempted
    running: jax.Array  # (slots,) who runs
    todo: jax.Array  # (slots,) who is yet to be looked at
    preempt: jax.Array  # (slots,) who lost its memory
    held: jax.Array  # (slots,) blocks
    budget: jax.Array  # tokens left
    free: jax.Array  # blocks
    stopped: jax.Array  # whether the scan has ended early
    pool: BlockPool | None


def capped(view: View, tokens: jax.Array, cap: int) -> jax.Array:
    """Tokens of each request under a cap (slots, ...), which does not hold for a request that is alone.

    Args:
        view: what the engine shows.
        tokens: before the cap (slots, ...), int32.
        cap: most tokens of a request; 0: no cap.
    """
    if not cap:
        return tokens
    alone = jnp.sum(view.live.astype(jnp.int32), axis=0) == 1
    return jnp.where(alone, tokens, jnp.minimum(tokens, cap))


def watermark_blocks(watermark: float, blocks: jax.Array) -> jax.Array:
    """The watermark in blocks; vLLM counts its null block with the others."""
    # A product that should be whole may come out just below it in 32 bits.
    return jnp.floor(watermark * (blocks + 1) + 1e-4).astype(jnp.int32)


def form(view: View, urgency: jax.Array, rules: Rules) -> Batch:
    """The batch of one environment.

    Args:
        view: what the engine shows, without batch axes.
        urgency: of each request (slots,), int32: more is admitted first and preempted last.
        rules: the options.
    """
    memory, none = view.memory, jnp.zeros_like(view.prefill)
    scan = Scan(
        tokens=none,
        undone=none,
        running=view.started,
        todo=view.started,
        preempt=jnp.zeros_like(view.live),
        held=none if memory is None else memory.held,
        budget=own_budget(view, rules.token_budget),
        free=jnp.int32(2**30) if memory is None else memory.free,
        stopped=jnp.array(False),
        pool=None if memory is None else memory.pool,
    )

    def goes_on(scan: Scan) -> jax.Array:
        return jnp.any(scan.todo) & (scan.budget > 0) & ~scan.stopped

    def seats(scan: Scan) -> jax.Array:
        if view.max_num_seqs is None:
            return jnp.array(True)
        return jnp.sum(scan.running.astype(jnp.int32)) < view.max_num_seqs

    scan = jax.lax.while_loop(goes_on, lambda s: _run(view, urgency, rules, s), scan)
    waiting = view.live & ~view.started & ~jnp.any(scan.preempt)
    scan = scan._replace(todo=waiting, stopped=jnp.array(False))
    scan = jax.lax.while_loop(
        lambda s: goes_on(s) & seats(s), lambda s: _admit(view, urgency, rules, s), scan
    )
    if memory is None:
        return Batch(scan.tokens)
    # The prefix cache keeps what preempted requests of this batch would have computed: see ``serve``.
    asked = scan.tokens if scan.pool is None else scan.tokens + scan.undone
    return Batch(asked, scan.preempt)


def _run(view: View, urgency: jax.Array, rules: Rules, scan: Scan) -> Scan:
    """The next running request gets its tokens and blocks, if need be those of the least urgent."""
    memory = view.memory
    admitted = jnp.zeros_like(urgency) if memory is None else memory.admitted
    me = first_of(scan.todo, admitted, -urgency)
    tokens = jnp.minimum(capped(view, view.demand, rules.long_prefill_cap)[me], scan.budget)
    if memory is None:
        return scan._replace(
            tokens=scan.tokens.at[me].set(tokens),
            todo=scan.todo.at[me].set(False),
            budget=scan.budget - tokens,
        )
    upto = memory.needed(tokens)[me]

    def short(scan: Scan) -> jax.Array:
        return (upto - scan.held[me] > scan.free) & ~scan.stopped

    def preempt(scan: Scan) -> Scan:
        victim = first_of(scan.running, urgency, -rows(urgency))
        return _preempt(victim, scan)._replace(stopped=victim == me)

    scan = jax.lax.while_loop(short, preempt, scan)
    given = jnp.where(scan.stopped, 0, tokens)
    upto = jnp.where(scan.stopped, scan.held[me], upto)
    scan = scan._replace(todo=scan.todo.at[me].set(False))
    return _take(view, me, memory.cached[me], given, upto, scan)


def _preempt(victim: jax.Array, scan: Scan) -> Scan:
    """A request leaves memory and the batch."""
    held = scan.held[victim]
    pool = None if scan.pool is None else release(scan.pool, victim, held)
    return scan._replace(
        tokens=scan.tokens.at[victim].set(0),
        undone=scan.undone.at[victim].set(scan.tokens[victim]),
        running=scan.running.at[victim].set(False),
        todo=scan.todo.at[victim].set(False),
        preempt=scan.preempt.at[victim].set(True),
        held=scan.held.at[victim].set(0),
        budget=scan.budget + scan.tokens[victim],
        free=scan.free + held if pool is None else pool.free,
        pool=pool,
    )


def _take(
    view: View, me: jax.Array, cached: jax.Array, tokens: jax.Array, upto: jax.Array, scan: Scan
) -> Scan:
    """A request gets ``tokens`` more, and blocks until it has ``upto``."""
    memory, pool, free = view.memory, scan.pool, scan.free - (upto - scan.held[me])
    assert memory is not None
    if pool is not None:
        assert memory.contents is not None
        size = memory.block_size
        pool = grow(pool, me, scan.held[me], upto)
        pool = keep(pool, me, memory.contents.of(me), cached // size, (cached + tokens) // size)
        free = pool.free
    return scan._replace(
        tokens=scan.tokens.at[me].set(tokens),
        held=scan.held.at[me].set(upto),
        budget=scan.budget - tokens,
        free=free,
        pool=pool,
    )


def _admit(view: View, urgency: jax.Array, rules: Rules, scan: Scan) -> Scan:
    """The most urgent waiting request is admitted, if it fits; else the admission ends."""
    me, memory, pool = first_of(scan.todo, -urgency, rows(urgency)), view.memory, scan.pool
    size = 1 if memory is None else memory.block_size
    found, count, used = jnp.zeros((1,), jnp.int32), jnp.int32(0), jnp.int32(0)
    if pool is not None:
        assert memory is not None
        assert memory.contents is not None
        found, count = find(pool, memory.contents.of(me), view.prefill[me], size)
        used = idle(pool, found, count)
    left = capped(view, view.demand - count * size, rules.long_prefill_cap)[me]
    tokens, fits = jnp.minimum(left, scan.budget), jnp.array(True)
    if not rules.chunked_prefill:
        fits = left <= scan.budget
    upto = jnp.int32(0)
    if memory is not None:
        upto = memory.needed(count * size + tokens)[me]
        full = memory.needed(view.demand)[me]
        must = full if rules.reserve_full else upto
        spare = watermark_blocks(rules.watermark, memory.blocks)
        spare = jnp.where(jnp.any(scan.running), spare, 0)
        fits &= must - count + used + spare <= scan.free
    count = jnp.where(fits, count, 0)
    tokens, upto = jnp.where(fits, tokens, 0), jnp.where(fits, upto, count)
    scan = scan._replace(
        running=scan.running.at[me].set(fits),
        todo=scan.todo.at[me].set(False),
        stopped=~fits,
    )
    if memory is None:
        return scan._replace(tokens=scan.tokens.at[me].set(tokens), budget=scan.budget - tokens)
    if pool is not None:
        shared = share(pool, me, found, count)
        scan = scan._replace(pool=shared, free=shared.free, held=scan.held.at[me].set(count))
    return _take(view, me, memory.cached[me] + count * size, tokens, upto, scan)
