"""Calls on their way through a network: jobs arrive, calls end, set off others, and join queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from llmgym.core.arrays import first_rows, rows, select
from llmgym.core.pytree import register
from llmgym.engine import stream as streams
from llmgym.engine.dynamics import sources
from llmgym.engine.jobs import Jobs, advance, job_at, put_job
from llmgym.engine.network_state import (
    CALLS_TAKEN,
    JOBS_TAKEN,
    CallTable,
    Coming,
    Joining,
    Network,
    NetworkState,
)
from llmgym.engine.routing import route

T = TypeVar("T")


def once(wanted: jax.Array, change: Callable[[T], T], state: T) -> T:
    """The state after a change, if it is ``wanted``.

    A loop of at most one round: a condition would copy the tables when there is nothing to do.
    """

    def body(carry: tuple[T, jax.Array]) -> tuple[T, jax.Array]:
        return change(carry[0]), jnp.zeros_like(wanted)

    return jax.lax.while_loop(lambda c: c[1], body, (state, wanted))[0]


@register
@dataclass(frozen=True)
class Ended:
    """Calls that ended and are to be passed on: those of ``mask`` below row ``last`` of their station."""

    mask: jax.Array  # (rows, stations, ...)
    last: jax.Array  # (stations, ...) row that was passed on last
    count: jax.Array  # (stations, ...) that are left

    @classmethod
    def of(cls, mask: jax.Array) -> Ended:
        """All calls of a mask."""
        count = jnp.sum(mask.astype(jnp.int32), axis=0)
        return cls(mask, jnp.full_like(count, -1), count)

    @property
    def left(self) -> jax.Array:
        """The mask of those that are left."""
        return self.mask & (rows(self.mask) > self.last)

    @property
    def any(self) -> jax.Array:
        """Whether any is left."""
        return jnp.any(self.count > 0, axis=0)


def tidy(network: Network, state: NetworkState) -> NetworkState:
    """Compact the tables and draw jobs in advance: once in a while, for all environments."""
    full = jnp.full(state.present.shape, True)
    return _top_up(network, _compact(network, state), full)


def _compact(network: Network, state: NetworkState) -> NetworkState:
    """Move all calls to the top rows. Empty rows are inert: it changes no result."""
    return _compact_both(network, (state, Ended.of(jnp.zeros_like(state.table.live))))[0]


def _compact_both(network: Network, both: tuple[NetworkState, Ended]) -> tuple[NetworkState, Ended]:
    """The same while calls that ended have yet to be passed on."""
    state, ended = both
    left = ended.left
    source = sources(state.table.live | left)[: network.rows]
    index, gone = jnp.maximum(source, 0), source < 0

    def move(column: jax.Array) -> jax.Array:
        none = jnp.zeros((), column.dtype)
        top = jnp.where(gone, none, jnp.take_along_axis(column, index, axis=0))
        return jnp.concatenate([top, jnp.zeros((network.fresh, *top.shape[1:]), column.dtype)])

    table, mask = jax.tree.map(move, (state.table, left))
    ended = Ended(mask, jnp.full_like(ended.last, -1), ended.count)
    return replace(state, table=table, tail=jnp.zeros_like(state.tail)), ended


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


def settle(
    network: Network, state: NetworkState, mask: jax.Array, extra: jax.Array | None = None
) -> tuple[NetworkState, jax.Array]:
    """Let all happen that is due: jobs that came before now, calls that ended, jobs that come now.

    In this order, a few calls of every environment in each round.

    Args:
        mask: (rows, stations, ...) calls that ended.
        extra: what the routers saw of the loads, on top of the tables, when the jobs before now came.

    Returns:
        The state, and the ticks since the jobs came that joined, float32.
    """
    some = _some_of_jobs if network.plan.routes else _some_of_chains

    def spent(state: NetworkState) -> jax.Array:
        due = jnp.min(state.stream.wait, axis=0) <= 0
        return due & (state.coming.joined == state.coming.drawn)

    def more(carry: tuple[NetworkState, Ended, jax.Array]) -> jax.Array:
        state, ended, _ = carry
        _, ago, waits = _heads(network, state, 1)
        return jnp.any((waits & (ago >= 0))[0] | spent(state) | ended.any)

    def body(
        carry: tuple[NetworkState, Ended, jax.Array],
    ) -> tuple[NetworkState, Ended, jax.Array]:
        state, ended, late = carry
        wanted = spent(state)
        state = once(jnp.any(wanted), lambda s: _top_up(network, s, wanted), state)
        full = jnp.any(state.tail + network.joining > network.fresh)
        state, ended = once(full, partial(_compact_both, network), (state, ended))
        state, ended, ago = some(network, state, ended, extra)
        return state, ended, late + ago

    late = jnp.zeros(state.present.shape)
    state, _, late = jax.lax.while_loop(more, body, (state, Ended.of(mask), late))
    return state, late


def _heads(
    network: Network, state: NetworkState, several: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The jobs that come next: their index in the queue, ticks since they came, and whether they are."""
    coming = state.coming
    ahead = jnp.arange(several).reshape((-1,) + (1,) * coming.joined.ndim)
    row = coming.joined + ahead
    index = jnp.minimum(row, network.coming - 1)
    arrival = jnp.take_along_axis(coming.arrival, index, axis=0)
    return index, (state.clock.low - arrival).astype(jnp.int32), row < coming.drawn


def _admit(
    network: Network, state: NetworkState, several: int, calls_ended: jax.Array
) -> tuple[NetworkState, jax.Array, Coming, jax.Array, jax.Array]:
    """Take up to ``several`` jobs off the queue; those of now only when all calls that ended are gone.

    Returns the state; which jobs are admitted; the jobs; how long ago each came, 0 where it is not
    admitted; and whether calls that ended are to wait, as more jobs came before now.
    """
    index, ago, waits = _heads(network, state, several)
    before, now = waits & (ago > 0), waits & (ago == 0)
    due = before | (now & ~calls_ended)
    count = jnp.sum(due.astype(jnp.int32), axis=0)
    spent = state.coming.joined + count == state.coming.drawn
    calls_wait = before[-1] | (spent & (jnp.min(state.stream.wait, axis=0) < 0))
    ahead = jnp.arange(several).reshape((-1,) + (1,) * count.ndim)
    admitted = due & (ahead < network.slots - state.present)
    taken = jnp.sum(admitted.astype(jnp.int32), axis=0)
    ago = jnp.where(admitted, ago, 0)
    totals, coming = state.totals, state.coming
    request_ticks = totals.request_ticks + jnp.sum(ago & 0xFFFF, axis=0)
    request_ticks = request_ticks.add_product(jnp.sum(ago >> 16, axis=0), jnp.int32(1 << 16))
    arrival, number, job_type = (
        jnp.take_along_axis(column, index, axis=0)
        for column in (coming.arrival, coming.number, coming.job_type)
    )
    state = replace(
        state,
        coming=replace(coming, joined=coming.joined + count),
        present=state.present + taken,
        totals=replace(
            totals,
            arrived=totals.arrived + count,
            dropped=totals.dropped + count - taken,
            request_ticks=request_ticks,
        ),
    )
    jobs = Coming(coming.joined, coming.drawn, arrival, number, job_type)
    return state, admitted, jobs, ago, calls_wait


def _some_of_chains(
    network: Network, state: NetworkState, ended: Ended, extra: jax.Array | None
) -> tuple[NetworkState, Ended, jax.Array]:
    """Chains of calls: the next jobs, then calls that ended at the first station with any."""
    plan, table = network.plan, state.table
    state, admitted, jobs, ago, calls_wait = _admit(network, state, JOBS_TAKEN, ended.any)
    station = jnp.argmax(ended.count > 0, axis=0)

    def of_station(column: jax.Array) -> jax.Array:
        return select(jnp.moveaxis(column, 1, 0), station)

    mine = of_station(ended.left) & ~calls_wait
    slot, there = first_rows(mine, CALLS_TAKEN)
    here = (rows(ended.count) == station) & ~calls_wait
    ended = replace(
        ended,
        last=jnp.where(here, slot[-1], ended.last),
        count=jnp.where(here, jnp.maximum(ended.count - CALLS_TAKEN, 0), ended.count),
    )

    def take(column: jax.Array) -> jax.Array:
        every = jnp.broadcast_to(slot[:, None], (CALLS_TAKEN, *column.shape[1:]))
        return of_station(jnp.take_along_axis(column, every, axis=0))

    following = jnp.asarray(plan.next_class)[take(table.job_class)]
    completed = jnp.sum((there & (following < 0)).astype(jnp.int32), axis=0)
    candidates = jnp.concatenate([admitted, there & (following >= 0)])
    place, valid = first_rows(candidates, network.joining)

    def both(of_jobs: jax.Array, of_calls: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.concatenate([of_jobs, of_calls]), place, axis=0)

    none = jnp.zeros_like(place)
    now = jnp.broadcast_to(state.clock.low, following.shape)
    calls = Joining(
        valid=valid,
        job_class=both(jnp.asarray(plan.first_class)[jobs.job_type], jnp.maximum(following, 0)),
        number=both(jobs.number, take(table.request)),
        arrival=both(jobs.arrival, now),
        job_arrival=both(jobs.arrival, take(table.job_arrival)),
        job_row=none,
        visit=none,
        context=none,
        early=both(admitted & (ago > 0), there & False),
    )
    state = replace(
        state,
        present=state.present - completed,
        totals=replace(state.totals, completed=state.totals.completed + completed),
    )
    return _enter(network, state, calls, extra), ended, jnp.sum(ago.astype(jnp.float32), axis=0)


def _some_of_jobs(
    network: Network, state: NetworkState, ended: Ended, extra: jax.Array | None
) -> tuple[NetworkState, Ended, jax.Array]:
    """Jobs of any form: the next job, or the first call that ended, station by station."""
    plan, table = network.plan, state.table
    state, admitted, coming, ago, calls_wait = _admit(network, state, 1, ended.any)
    jobs, begins = state.jobs, admitted[0]
    assert jobs is not None
    row = jnp.argmax(ended.left, axis=0)[None]  # first of every station
    there = (ended.count > 0) & ~calls_wait
    station = jnp.argmax(there, axis=0)[None]
    ends = jnp.any(there, axis=0)
    here = (rows(there) == station) & ends
    ended = Ended(ended.mask, jnp.where(here, row[0], ended.last), ended.count - here)

    def take(column: jax.Array | None) -> jax.Array:
        assert column is not None
        return jnp.take_along_axis(jnp.take_along_axis(column, row, axis=0)[0], station, axis=0)[0]

    job_class = take(table.job_class)
    context = take(table.prompt) + take(table.output)
    context = jnp.where(jnp.asarray(plan.is_delay)[job_class], context - 1, context)
    context = jnp.where(begins, 0, context)

    free = jnp.argmax(~jobs.live, axis=0).astype(jnp.int32)
    job_row = jnp.where(begins, free, take(table.job_row))
    none, several = jnp.zeros_like(job_row), jnp.zeros_like(jobs.visits[:, 0])
    new = Jobs(
        begins, coming.job_type[0], coming.number[0], coming.arrival[0],
        none, none, none, several, several,
    )  # fmt: skip
    job = jax.tree.map(lambda n, o: jnp.where(begins, n, o), new, job_at(jobs, job_row))
    first = jnp.asarray(plan.first_class)[job.job_type]
    over = jnp.where(begins, -1, job_class - first)
    job, starts, inherited = advance(plan, state.stream.key, job, over, context)
    wanted = begins | ends
    stage = jnp.arange(plan.most_stages).reshape((-1,) + (1,) * ends.ndim)
    _, real = place = first_rows(starts & wanted, plan.most_stages)

    def each(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, starts.shape)

    def of_stage(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, place[0], axis=0)

    calls = Joining(
        valid=real,
        job_class=of_stage(first + stage),
        number=each(job.number),
        arrival=each(jnp.where(begins, job.arrival, state.clock.low)),
        job_arrival=each(job.arrival),
        job_row=each(job_row),
        visit=of_stage(job.visits),
        context=of_stage(inherited),
        early=each(ago[0] > 0),
    )
    completed = (wanted & ~job.live).astype(jnp.int32)
    state = replace(
        state,
        jobs=put_job(jobs, job_row, job, wanted),
        present=state.present - completed,
        totals=replace(state.totals, completed=state.totals.completed + completed),
    )
    return _enter(network, state, calls, extra), ended, ago[0].astype(jnp.float32)


def _enter(
    network: Network, state: NetworkState, calls: Joining, extra: jax.Array | None
) -> NetworkState:
    """Calls join the queues of their engines, behind all that are there.

    They are written to the same rows in every environment and at every station, with gaps where there
    is no call: one slice of the table, whatever happens where.
    """
    plan = network.plan
    # Behind a barrier, or every column that is written would draw the lengths again.
    prefill, decode, due = jax.lax.optimization_barrier(
        _draw_lengths(network, state.stream.key, calls)
    )
    station, state = route(network, state, calls, prefill + decode, extra)
    index = jnp.arange(plan.stations).reshape((1, -1) + (1,) * calls.valid[0].ndim)
    here = (index == station[:, None]) & calls.valid[:, None]
    start = network.rows + jnp.max(state.tail)

    def write(column: jax.Array, values: jax.Array) -> jax.Array:
        block = jnp.where(here, values[:, None].astype(column.dtype), jnp.zeros((), column.dtype))
        return jax.lax.dynamic_update_slice_in_dim(column, block, start, axis=0)

    table = state.table
    delay = jnp.asarray(plan.is_delay)[calls.job_class]
    none = jnp.zeros_like(prefill)
    tokens = jnp.where(calls.valid & ~delay, prefill + decode, 0)
    table = CallTable(
        prefill=write(table.prefill, prefill),
        decode=write(table.decode, decode),
        prompt=write(table.prompt, jnp.where(delay, calls.context, prefill)),
        output=write(table.output, decode),
        arrival=write(table.arrival, calls.arrival),
        first_token=write(table.first_token, none),
        last_token=write(table.last_token, calls.arrival + due),
        request=write(table.request, calls.number),
        job_class=write(table.job_class, calls.job_class),
        preemptions=None,
        admitted=None,
        swapped=None,
        job_arrival=write(table.job_arrival, calls.job_arrival),
        service=write(table.service, none),
        planned=write(table.planned, none),
        job_row=None if table.job_row is None else write(table.job_row, calls.job_row),
        visit=None if table.visit is None else write(table.visit, calls.visit),
    )
    used = jnp.max(jnp.where(calls.valid, rows(calls.valid) + 1, 0), axis=0)
    tail = jnp.max(state.tail) + jnp.broadcast_to(jnp.max(used), state.tail.shape)
    backlog = state.backlog + jnp.sum(tokens, axis=0)
    return replace(state, table=table, tail=tail, backlog=backlog)


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
