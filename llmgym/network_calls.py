"""Calls on their way through a network: jobs arrive, calls end, set off others, and join queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from llmgym import stream as streams
from llmgym.arrays import first_rows, prefix_sum, rows, select
from llmgym.dynamics import sources
from llmgym.jobs import Jobs, advance, job_at, put_job
from llmgym.network_state import (
    TAKEN,
    CallTable,
    Coming,
    Joining,
    Network,
    NetworkState,
)
from llmgym.routing import route


def once(
    wanted: jax.Array, change: Callable[[NetworkState], NetworkState], state: NetworkState
) -> NetworkState:
    """The state after a change, where it is ``wanted``.

    A loop of at most one round: a condition would copy the tables when there is nothing to do.
    """

    def body(carry: tuple[NetworkState, jax.Array]) -> tuple[NetworkState, jax.Array]:
        return change(carry[0]), jnp.zeros_like(wanted)

    return jax.lax.while_loop(lambda c: c[1], body, (state, wanted))[0]


def tidy(network: Network, state: NetworkState) -> NetworkState:
    """Compact the tables and draw jobs in advance: once in a while, for all environments."""
    full = jnp.full(state.present.shape, True)
    return _top_up(network, _compact(network, state), full)


def _compact(network: Network, state: NetworkState) -> NetworkState:
    """Move all calls to the top rows. Empty rows are inert: it changes no result."""
    source = sources(state.table.live | state.pending)[: network.rows]
    index, gone = jnp.maximum(source, 0), source < 0

    def move(column: jax.Array) -> jax.Array:
        none = jnp.zeros((), column.dtype)
        top = jnp.where(gone, none, jnp.take_along_axis(column, index, axis=0))
        return jnp.concatenate([top, jnp.zeros((network.fresh, *top.shape[1:]), column.dtype)])

    table, pending = jax.tree.map(move, (state.table, state.pending))
    return replace(state, table=table, pending=pending, tail=jnp.zeros_like(state.tail))


def _top_up(network: Network, state: NetworkState, wanted: jax.Array) -> NetworkState:
    """Draw jobs to come until the queue is full, where it is ``wanted``."""
    coming, most = state.coming, network.coming
    kept = jnp.where(wanted, coming.drawn - coming.joined, coming.drawn)
    limit = jnp.where(wanted, most - kept, 0)
    nothing = tuple(_no_lengths for _ in network.arrivals)
    drawn, stream = streams.draw(
        network.arrivals, nothing, state.stream, network.burst, most, limit
    )
    row = rows(drawn.wait)
    old = jnp.minimum(row + jnp.where(wanted, coming.joined, 0), most - 1)
    new = jnp.clip(row - kept, 0, most - 1)

    def move(column: jax.Array, fresh: jax.Array) -> jax.Array:
        stays = jnp.take_along_axis(column, old, axis=0)
        return jnp.where(row < kept, stays, jnp.take_along_axis(fresh, new, axis=0))

    return replace(
        state,
        coming=Coming(
            jnp.where(wanted, 0, coming.joined),
            kept + drawn.count,
            move(coming.arrival, state.clock.low + drawn.wait.astype(jnp.uint32)),
            move(coming.number, drawn.request),
            move(coming.job_type, drawn.job_class),
        ),
        stream=stream,
    )


def _no_lengths(index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Jobs have no length: their calls do."""
    return jnp.zeros_like(index), jnp.zeros_like(index)


def admit_jobs(
    network: Network, state: NetworkState, before: int, extra: jax.Array | None = None
) -> tuple[NetworkState, jax.Array]:
    """Let the jobs join that arrived at least ``before`` ticks ago. Also their ticks since, float32."""
    several = 1 if network.plan.routes else TAKEN

    def spent(state: NetworkState) -> jax.Array:
        due = jnp.min(state.stream.wait, axis=0) <= -before
        return due & (state.coming.joined == state.coming.drawn)

    def heads(state: NetworkState) -> tuple[jax.Array, jax.Array]:
        coming = state.coming
        ahead = jnp.arange(several).reshape((-1,) + (1,) * coming.joined.ndim)
        row = coming.joined + ahead
        index = jnp.minimum(row, network.coming - 1)
        arrival = jnp.take_along_axis(coming.arrival, index, axis=0)
        ago = (state.clock.low - arrival).astype(jnp.int32)
        return index, (row < coming.drawn) & (ago >= before)

    def more(carry: tuple[NetworkState, jax.Array]) -> jax.Array:
        return jnp.any(heads(carry[0])[1][0] | spent(carry[0]))

    def some(carry: tuple[NetworkState, jax.Array]) -> tuple[NetworkState, jax.Array]:
        state, late = carry
        wanted = spent(state)
        state = once(jnp.any(wanted), lambda s: _top_up(network, s, wanted), state)
        index, due = heads(state)
        arrival, number, job_type = (
            jnp.take_along_axis(column, index, axis=0)
            for column in (state.coming.arrival, state.coming.number, state.coming.job_type)
        )
        count = jnp.sum(due.astype(jnp.int32), axis=0)
        ahead = jnp.arange(several).reshape((-1,) + (1,) * count.ndim)
        admitted = due & (ahead < network.slots - state.present)
        taken = jnp.sum(admitted.astype(jnp.int32), axis=0)
        ago = jnp.where(admitted, (state.clock.low - arrival).astype(jnp.int32), 0)
        totals = state.totals
        request_ticks = totals.request_ticks + jnp.sum(ago & 0xFFFF, axis=0)
        request_ticks = request_ticks.add_product(jnp.sum(ago >> 16, axis=0), jnp.int32(1 << 16))
        state = replace(
            state,
            coming=replace(state.coming, joined=state.coming.joined + count),
            present=state.present + taken,
            totals=replace(
                totals,
                arrived=totals.arrived + count,
                dropped=totals.dropped + count - taken,
                request_ticks=request_ticks,
            ),
        )
        if network.plan.routes:
            state = _begin(network, state, admitted[0], number[0], arrival[0], job_type[0], extra)
        else:
            none = jnp.zeros_like(number)
            first = jnp.asarray(network.plan.first_class)[job_type]
            calls = Joining(admitted, first, number, arrival, arrival, none, none, none)
            state = _enter(network, state, calls, extra)
        return state, late + jnp.sum(ago.astype(jnp.float32), axis=0)

    return jax.lax.while_loop(more, some, (state, jnp.zeros(state.present.shape)))


def _begin(
    network: Network,
    state: NetworkState,
    begins: jax.Array,
    number: jax.Array,
    arrival: jax.Array,
    job_type: jax.Array,
    extra: jax.Array | None,
) -> NetworkState:
    """Give a new job a row, and start its first calls."""
    jobs = state.jobs
    assert jobs is not None
    row = jnp.argmax(~jobs.live, axis=0).astype(jnp.int32)
    none = jnp.zeros_like(number)
    several = jnp.zeros((jobs.visits.shape[0], *none.shape), jnp.int32)
    job = Jobs(begins, job_type, number, arrival, none, none, none, several, several)
    return _set_off(network, state, row, job, none - 1, none, begins, arrival, extra)


def _set_off(
    network: Network,
    state: NetworkState,
    row: jax.Array,
    job: Jobs,
    ended: jax.Array,
    context: jax.Array,
    wanted: jax.Array,
    now: jax.Array,
    extra: jax.Array | None = None,
) -> NetworkState:
    """Write down that a stage of a job ended, and let the calls join that it sets off."""
    assert state.jobs is not None
    plan = network.plan
    job, starts, inherited = advance(plan, state.stream.key, job, ended, context)
    stage = jnp.arange(plan.most_stages).reshape((-1,) + (1,) * row.ndim)

    def each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, starts.shape)

    calls = Joining(
        valid=starts & wanted,
        job_class=jnp.asarray(plan.first_class)[job.job_type] + stage,
        number=each(job.number),
        arrival=each(now),
        job_arrival=each(job.arrival),
        job_row=each(row),
        visit=job.visits,
        context=inherited,
    )
    over = wanted & ~job.live
    completed = over.astype(jnp.int32)
    state = replace(
        state,
        jobs=put_job(state.jobs, row, job, wanted),
        present=state.present - completed,
        totals=replace(state.totals, completed=state.totals.completed + completed),
    )
    return _enter(network, state, calls, extra)


def pass_on(network: Network, state: NetworkState) -> NetworkState:
    """Let every call that ended set off what follows it."""
    one = _pass_one if network.plan.routes else _pass_several
    return jax.lax.while_loop(lambda s: jnp.any(s.pending), lambda s: one(network, s), state)


def _pass_several(network: Network, state: NetworkState) -> NetworkState:
    """Chains of calls: pass on up to TAKEN calls of the first station that has any."""
    plan, table, pending = network.plan, state.table, state.pending
    station = jnp.argmax(jnp.any(pending, axis=0), axis=0)

    def of_station(column: jax.Array) -> jax.Array:
        return select(jnp.moveaxis(column, 1, 0), station)

    mine = of_station(pending)
    rank = prefix_sum(mine)
    slot, there = first_rows(mine, TAKEN)
    at = jnp.arange(plan.stations).reshape((-1,) + (1,) * station.ndim) == station
    pending = pending & (~at | (rank > TAKEN)[:, None])

    def take(column: jax.Array) -> jax.Array:
        every = jnp.broadcast_to(slot[:, None], (TAKEN, *column.shape[1:]))
        return of_station(jnp.take_along_axis(column, every, axis=0))

    following = jnp.asarray(plan.next_class)[take(table.job_class)]
    completed = jnp.sum((there & (following < 0)).astype(jnp.int32), axis=0)
    none = jnp.zeros_like(following)
    calls = Joining(
        valid=there & (following >= 0),
        job_class=jnp.maximum(following, 0),
        number=take(table.request),
        arrival=jnp.broadcast_to(state.clock.low, following.shape),
        job_arrival=take(table.job_arrival),
        job_row=none,
        visit=none,
        context=none,
    )
    state = replace(
        state,
        pending=pending,
        present=state.present - completed,
        totals=replace(state.totals, completed=state.totals.completed + completed),
    )
    return _enter(network, state, calls)


def _pass_one(network: Network, state: NetworkState) -> NetworkState:
    """Jobs of any form: pass on the first call that ended, station by station."""
    table, pending, jobs = state.table, state.pending, state.jobs
    assert jobs is not None
    row = jnp.argmax(pending, axis=0)[None]  # first of every station
    there = jnp.any(pending, axis=0)
    station = jnp.argmax(there, axis=0)[None]
    wanted = jnp.any(there, axis=0)

    def take(column: jax.Array | None) -> jax.Array:
        assert column is not None
        return jnp.take_along_axis(jnp.take_along_axis(column, row, axis=0)[0], station, axis=0)[0]

    at = jnp.arange(pending.shape[1]).reshape((-1,) + (1,) * wanted.ndim) == station
    state = replace(state, pending=pending & ~((rows(pending) == row) & at & wanted))
    job_row, job_class = take(table.job_row), take(table.job_class)
    job = job_at(jobs, job_row)
    first = jnp.asarray(network.plan.first_class)[job.job_type]
    context = take(table.prompt) + take(table.output)
    delay = jnp.asarray(network.plan.is_delay)[job_class]
    context = jnp.where(delay, context - 1, context)
    ended = job_class - first
    return _set_off(network, state, job_row, job, ended, context, wanted, state.clock.low)


def _enter(
    network: Network, state: NetworkState, calls: Joining, extra: jax.Array | None = None
) -> NetworkState:
    """Calls join the queues of their engines, behind all that are there.

    ``extra`` is what the routers see of the loads on top of the tables.
    """
    plan, several = network.plan, calls.valid.shape[0]
    full = jnp.any(state.tail + several > network.fresh)
    state = once(full, lambda s: _compact(network, s), state)
    prefill, decode, due = _draw_lengths(network, state.stream.key, calls)
    station, state = route(network, state, calls, prefill + decode, extra)
    tail, places = state.tail, []
    index = jnp.arange(plan.stations).reshape((-1,) + (1,) * calls.valid[0].ndim)
    for n in range(several):
        here = (index == station[n]) & calls.valid[n]
        places.append((here, tail))
        tail = tail + here.astype(jnp.int32)

    table, size = state.table, network.rows
    row = rows(table.prefill[size:])
    hits = [here & (row == place) for here, place in places]
    joined = hits[0]
    for hit in hits[1:]:
        joined = joined | hit

    def write(column: Any, values: jax.Array) -> Any:
        if column is None:
            return None
        fresh = column[size:]
        for hit, value in zip(hits, values, strict=True):
            fresh = jnp.where(hit, value.astype(column.dtype), fresh)
        return column.at[size:].set(fresh)

    def clear(column: jax.Array) -> jax.Array:
        return column.at[size:].set(jnp.where(joined, 0, column[size:]))

    delay = jnp.asarray(plan.is_delay)[calls.job_class]
    tokens = jnp.where(calls.valid & ~delay, prefill + decode, 0)
    prompt = jnp.where(delay, calls.context, prefill)
    table = CallTable(
        prefill=write(table.prefill, prefill),
        decode=write(table.decode, decode),
        prompt=write(table.prompt, prompt),
        output=write(table.output, decode),
        arrival=write(table.arrival, calls.arrival),
        first_token=clear(table.first_token),
        last_token=write(table.last_token, calls.arrival + due),
        request=write(table.request, calls.number),
        job_class=write(table.job_class, calls.job_class),
        job_arrival=write(table.job_arrival, calls.job_arrival),
        service=clear(table.service),
        planned=clear(table.planned),
        job_row=write(table.job_row, calls.job_row),
        visit=write(table.visit, calls.visit),
    )
    return replace(state, table=table, tail=tail, backlog=state.backlog + jnp.sum(tokens, axis=0))


def _draw_lengths(
    network: Network, key: jax.Array, calls: Joining
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompt and output tokens of calls, and the ticks of those that are delays (uint32)."""
    plan = network.plan
    prefill, decode = call_lengths(network, key, calls.job_class, calls.number, calls.visit)
    due = jnp.zeros_like(prefill)
    if any(plan.is_delay):
        delay = jnp.asarray(plan.is_delay)[calls.job_class]
        ticks = jnp.round(prefill.astype(jnp.float32) / network.tick_ms).astype(jnp.int32)
        due = jnp.where(delay, jnp.maximum(ticks, 1), 0)
        prefill, decode = jnp.where(delay, 0, prefill), jnp.where(delay, 1, decode)
    if any(plan.inherits):
        inherits = jnp.asarray(plan.inherits)[calls.job_class]
        prefill = jnp.where(inherits, prefill + calls.context, prefill)
    return prefill, decode, due.astype(jnp.uint32)


def call_lengths(
    network: Network, key: jax.Array, job_class: jax.Array, number: jax.Array, visit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Own prompt and output tokens of calls, inherited context left out; of delays milliseconds, 0."""
    random = streams.words(key, job_class, number, 2, visit)[1:3]
    prefill, decode = jnp.zeros_like(number), jnp.zeros_like(number)
    kind = jnp.asarray(network.length_of)[job_class]
    for k, length in enumerate(network.lengths):
        drawn = length(number, random)
        prefill = jnp.where(kind == k, drawn[0], prefill)
        decode = jnp.where(kind == k, drawn[1], decode)
    return prefill, decode
