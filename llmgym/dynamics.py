"""The physics of an engine: ``init`` and ``step``, pure functions that know no policy and no reward.

One step is one decision epoch (arXiv:2504.07347v3, section 3): the batch runs for t_b, non-preemptively,
its tokens are credited at the end, requests with nothing left leave, and the requests that arrived
meanwhile join the table. All functions work on one environment or on a batch of them: batch axes stand
last and need no vmap (though vmap works).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym import fairness, memory_step
from llmgym import stream as streams
from llmgym.arrays import class_sums, prefix_sum, rows
from llmgym.arrivals import NEVER
from llmgym.batch_time import NO_ATTENTION, Attention
from llmgym.block_pool import empty_pool
from llmgym.composition import Batch, View, clip
from llmgym.engine_view import view
from llmgym.kv_cache import cached_tokens
from llmgym.physics import COMPACT_EVERY, Physics, StepInfo, lower
from llmgym.precision import in_32_bits
from llmgym.state import State, Table, Totals, empty_table, empty_totals
from llmgym.wide import Wide

T = TypeVar("T", bound=Table)


@in_32_bits
def init(physics: Physics, key: jax.Array) -> State:
    """An empty engine at time 0, with whatever arrives at that very instant.

    ``key`` is a JAX random key or an array of them; its shape is the batch shape.
    """
    data = jnp.moveaxis(jax.random.key_data(key).astype(jnp.uint32), -1, 0)
    shape, none = data.shape[1:], jnp.zeros(data.shape[1:], jnp.int32)
    count, swaps = physics.slots + physics.fresh, physics.swap_tokens_per_ms is not None
    pool = None
    if physics.prefixes is not None:
        assert physics.kv_blocks is not None
        most = physics.prefixes.most
        pool = empty_pool(physics.kv_blocks, physics.pool_size, count, most, shape)
    classes = physics.means.shape[1]
    state = State(
        table=empty_table(count, shape, physics.kv_blocks is not None, swaps),
        joined=none,
        drawn=none,
        present=none,
        backlog=Wide.zeros(shape),
        clock=Wide.zeros(shape),
        stream=streams.start(physics.arrivals, data, physics.burst),
        totals=empty_totals(shape, classes),
        steps=none,
        pool=pool,
        counters=None if physics.service_weights is None else fairness.start(classes, shape),
    )
    return _admit(physics, state)[0]


@in_32_bits
def next_arrival(physics: Physics, state: State) -> jax.Array:
    """Ticks until the next arrival; NEVER where none is to come."""
    coming = _coming(physics, state)
    until = (state.table.arrival[physics.slots :] - state.clock.low).astype(jnp.int32)
    soonest = jnp.min(jnp.where(coming, until, NEVER), axis=0)
    return jnp.minimum(soonest, jnp.min(state.stream.wait, axis=0))


def _coming(physics: Physics, state: State) -> jax.Array:
    """Which fresh rows hold a request that has not arrived yet."""
    row = rows(state.table.arrival[physics.slots :])
    return (row >= state.joined) & (row < state.drawn)


@in_32_bits
def step(
    physics: Physics, state: State, batch: Batch, idle_limit: jax.Array | None = None
) -> tuple[State, StepInfo]:
    """Run one batch. An empty batch idles until the next arrival, or for ``idle_limit`` ticks.

    With nothing to come and no limit an empty batch takes no time: ``info.duration`` is then 0.
    """
    seen = view(physics, state)
    batch, clipped = clip(seen, batch)
    table, none = state.table, jnp.zeros_like(state.present)
    admission, preempted, lost, swapped, free = None, none, none, none, none
    found = jnp.zeros_like(batch.tokens)
    if seen.memory is not None:
        admission = memory_step.admit(physics, state, seen, batch)
        batch, table, clipped = admission.batch, admission.table, clipped | admission.cut
        lost, swapped, free = admission.lost, admission.swapped, admission.free
        found = admission.found
        preempted = jnp.sum(jnp.asarray(batch.preempt, jnp.int32), axis=0)
    tokens = batch.tokens
    prefill_tokens = jnp.sum(jnp.where(seen.decoding, 0, tokens), axis=0)
    decode_tokens = jnp.sum(jnp.where(seen.decoding, tokens, 0), axis=0)
    size = prefill_tokens + decode_tokens
    wait = next_arrival(physics, state)
    idle = jnp.where(wait >= NEVER, 0 if idle_limit is None else NEVER, wait)
    if idle_limit is not None:
        idle = jnp.minimum(idle, idle_limit)
    running = seen.batch_time.ticks(size, seen.tick_ms, _attention(physics, seen, table, tokens))
    if physics.swap_tokens_per_ms is not None:
        moving = swapped / physics.swap_tokens_per_ms / physics.tick_ms
        running = running + jnp.ceil(moving).astype(jnp.int32)
    duration = jnp.where(size > 0, running, idle)
    clock = state.clock + duration
    table, finished = credit(table, seen.decoding, tokens, clock.low, physics.prompt_samples)
    completed = jnp.sum(finished.astype(jnp.int32), axis=0)
    pool = None
    if admission is not None:
        pool = memory_step.leave(state, seen, admission, finished)
    totals = state.totals
    moved = replace(
        state,
        table=table,
        present=state.present - completed,
        backlog=state.backlog - (size - lost + jnp.sum(found, axis=0)),
        clock=clock,
        stream=streams.pass_time(state.stream, duration),
        totals=replace(
            totals,
            completed=totals.completed + completed,
            batches=totals.batches + (size > 0).astype(jnp.int32),
            prefill_tokens=totals.prefill_tokens + prefill_tokens,
            decode_tokens=totals.decode_tokens + decode_tokens,
            request_ticks=totals.request_ticks.add_product(state.present, duration),
        ),
        steps=state.steps + 1,
        pool=pool,
    )
    after, late = _admit(physics, moved)
    service = None
    if physics.service_weights is not None:
        assert after.counters is not None
        service = fairness.serve(physics.service_weights, seen, tokens, state.table, table)
        counters = fairness.advance(after.counters, service, view(physics, after))
        after = replace(after, counters=counters)
    info = StepInfo(
        duration=duration,
        batch_ticks=jnp.where(size > 0, duration, 0),
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        requests=jnp.sum((tokens > 0).astype(jnp.int32), axis=0),
        completed=completed,
        arrived=after.totals.arrived - totals.arrived,
        dropped=after.totals.dropped - totals.dropped,
        clipped=clipped,
        preempted=preempted,
        lost=lost,
        found=found,
        swapped=swapped,
        free_blocks=free,
        idle=size == 0,
        request_ticks=state.present.astype(jnp.float32) * duration.astype(jnp.float32) + late,
        batch=batch,
        finished=finished,
        table=table,
        service=service,
    )
    return after, info


def _attention(physics: Physics, seen: View, table: Table, tokens: jax.Array) -> Attention:
    """What attention reads in the batch, where the batch time depends on it."""
    if not physics.batch_time.needs_attention:
        return NO_ATTENTION
    before = cached_tokens(table, physics.prompt_samples).astype(jnp.float32)
    chunk = tokens.astype(jnp.float32)
    decodes = seen.decoding & (tokens > 0)
    pairs = jnp.where(seen.decoding, 0.0, chunk * (before + chunk / 2))
    return Attention(
        decode_context=jnp.sum(jnp.where(decodes, before + 1, 0.0), axis=0),
        prefill_pairs=jnp.sum(pairs, axis=0),
    )


def credit(
    table: T, decoding: jax.Array, tokens: jax.Array, now: jax.Array, prompt_samples: bool = False
) -> tuple[T, jax.Array]:
    """The table after the batch, and which requests it completed."""
    ran = tokens > 0
    prefill = jnp.where(decoding, table.prefill, table.prefill - tokens)
    decode = jnp.where(decoding, table.decode - tokens, table.decode)
    samples = decoding & ran
    if prompt_samples:
        samples = samples | (ran & (prefill == 0) & (table.decode > 0))
        decode = table.decode - samples
    finished = ran & (prefill == 0) & (decode == 0)
    # A request without output tokens has its answer when its prompt is done.
    first = (samples & (table.decode == table.output)) | (finished & (table.output == 0))
    credited = replace(
        table,
        prefill=prefill,
        decode=decode,
        first_token=jnp.where(first, now, table.first_token),
        last_token=jnp.where(ran, now, table.last_token),
    )
    return credited, finished


def _admit(physics: Physics, state: State) -> tuple[State, jax.Array]:
    """Let every request join whose time has come. Also the request-ticks they have waited, float32."""
    scheduled = state.steps % COMPACT_EVERY == 0

    def wanting(state: State) -> jax.Array:
        spent = state.joined == state.drawn
        overdue = jnp.min(state.stream.wait, axis=0) <= 0
        return spent & overdue | scheduled & (state.joined > 0)

    def refill(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, late = carry
        state, waited = _join(physics, _compact(physics, state, wanting(state)))
        return state, late + waited

    # Once in COMPACT_EVERY steps, or when more arrive than were drawn in advance.
    return jax.lax.while_loop(lambda c: jnp.any(wanting(c[0])), refill, _join(physics, state))


def _join(physics: Physics, state: State) -> tuple[State, jax.Array]:
    """Wake the fresh rows that are due; those that find all slots taken are dropped."""
    table, totals, slots = state.table, state.totals, physics.slots
    ago = (state.clock.low - table.arrival[slots:]).astype(jnp.int32)
    due = _coming(physics, state) & (ago >= 0)
    count = jnp.sum(due.astype(jnp.int32), axis=0)
    if physics.kv_blocks is None:
        taken = jnp.minimum(count, slots - state.present)
        joins = due & (rows(due) < state.joined + taken)
    else:  # what could never fit into memory is dropped
        longest = table.prompt[slots:] + table.output[slots:] - physics.prompt_samples
        fits = due & (longest <= physics.kv_blocks * physics.block_size)
        joins = fits & (prefix_sum(fits) <= slots - state.present)
        taken = jnp.sum(joins.astype(jnp.int32), axis=0)
    prefill, decode = (jnp.where(joins, c[slots:], 0) for c in (table.prompt, table.output))
    work = prefill + decode
    if physics.prompt_samples:
        work = work - ((prefill > 0) & (decode > 0))

    def wake(column: jax.Array, tokens: jax.Array) -> jax.Array:
        return column.at[slots:].add(tokens)

    waited = jnp.where(joins, ago, 0)
    request_ticks = totals.request_ticks + jnp.sum(waited & 0xFFFF, axis=0)
    request_ticks = request_ticks.add_product(jnp.sum(waited >> 16, axis=0), jnp.int32(1 << 16))
    dropped_of_class = totals.dropped_of_class
    if dropped_of_class is not None:
        dropped_of_class += class_sums(table.job_class[slots:], due & ~joins, len(dropped_of_class))
    state = replace(
        state,
        table=replace(
            table, prefill=wake(table.prefill, prefill), decode=wake(table.decode, decode)
        ),
        joined=state.joined + count,
        present=state.present + taken,
        backlog=state.backlog + jnp.sum(work, axis=0),
        totals=replace(
            totals,
            arrived=totals.arrived + count,
            dropped=totals.dropped + count - taken,
            request_ticks=request_ticks,
            dropped_of_class=dropped_of_class,
        ),
    )
    return state, jnp.sum(waited.astype(jnp.float32), axis=0)


def _compact(physics: Physics, state: State, wanted: jax.Array) -> State:
    """Move all requests to the top rows and draw new ones to come, where it is ``wanted``."""
    table, slots, fresh = state.table, physics.slots, physics.fresh
    source = sources(table.live)[:slots]
    index = jnp.where(wanted, jnp.maximum(source, 0), rows(source))
    gone = wanted & (source < 0)

    kept = jnp.where(wanted, state.drawn - state.joined, state.drawn)
    limit = jnp.where(wanted, fresh - kept, 0)
    drawn, stream = streams.draw(
        physics.arrivals, physics.lengths, state.stream, physics.burst, fresh, limit
    )
    row = rows(drawn.wait)
    old = slots + jnp.minimum(row + jnp.where(wanted, state.joined, 0), fresh - 1)
    new = jnp.clip(row - kept, 0, fresh - 1)
    keeps = row < kept
    arrival = state.clock.low + drawn.wait.astype(jnp.uint32)
    none, never = jnp.zeros_like(drawn.prefill), jnp.zeros_like(arrival)
    coming = Table(
        none,
        none,
        drawn.prefill,
        drawn.decode,
        arrival,
        never,
        arrival,
        drawn.request,
        drawn.job_class,
        None if table.preemptions is None else none,
        None if table.admitted is None else none,
        None if table.swapped is None else none > 0,
    )

    def move(column: jax.Array, coming: jax.Array) -> jax.Array:
        top = jnp.where(
            gone, jnp.zeros((), column.dtype), jnp.take_along_axis(column, index, axis=0)
        )
        bottom = jnp.where(
            keeps | ~wanted,
            jnp.take_along_axis(column, old, axis=0),
            jnp.take_along_axis(coming, new, axis=0),
        )
        return jnp.concatenate([top, bottom])

    pool = state.pool
    if pool is not None:  # the blocks of a request move with it
        held = jnp.take_along_axis(pool.table, index[:, None], axis=0)
        pool = replace(pool, table=pool.table.at[:slots].set(held))
    return replace(
        state,
        pool=pool,
        table=jax.tree.map(move, table, coming),
        joined=jnp.where(wanted, 0, state.joined),
        drawn=kept + drawn.count,
        stream=stream,
    )


def sources(live: jax.Array) -> jax.Array:
    """For each row of the compacted table the row it comes from; -1 past the last request.

    Every request moves up by the number of empty rows before it, one bit of that number at a time:
    lowest bit first no two requests ever meet (the parallel "compress" of bit manipulation).
    """
    count, row = live.shape[0], rows(live)
    shift = prefix_sum(~live)
    packed = jnp.where(live, (shift << 16) | (row + 1), 0)
    for bit in range((count - 1).bit_length()):
        distance = 1 << bit
        padded = jnp.concatenate([packed, jnp.zeros((distance, *live.shape[1:]), jnp.int32)])
        padded = jax.lax.optimization_barrier(padded)  # else every pass recomputes those before it
        here, ahead = padded[:count], padded[distance:]
        moves, arrives = (here >> 16) & distance, (ahead >> 16) & distance
        packed = jnp.where(arrives > 0, ahead, jnp.where(moves > 0, 0, here))
    return jnp.where(packed > 0, (packed & 0xFFFF) - 1, -1)


def clock_ms(physics: Physics, state: State) -> np.ndarray:
    """Simulated time in milliseconds, float64, on the host."""
    # The decimal that the float32 stands for.
    return state.clock.to_numpy() * float(str(np.asarray(physics.tick_ms, np.float32)))


__all__ = [
    "COMPACT_EVERY",
    "Physics",
    "StepInfo",
    "Totals",
    "clock_ms",
    "init",
    "lower",
    "next_arrival",
    "step",
    "view",
]
