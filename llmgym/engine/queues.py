"""The queues of a network: jobs to come, calls that join, calls that ended, and the rows they stand in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from llmgym.core.arrays import class_sums, compacted, rows, select
from llmgym.core.pytree import register
from llmgym.engine import stream as streams
from llmgym.engine.jobs import no_jobs
from llmgym.engine.params import Params
from llmgym.engine.routing import Joining, route
from llmgym.engine.state import Coming, Queues, State, high_of
from llmgym.scenario.arrivals import NEVER

T = TypeVar("T")


def queues(state: State) -> Queues:
    """How calls arrive."""
    assert isinstance(state.inflow, Queues)
    return state.inflow


def nothing(params: Params, shape: tuple[int, ...]) -> Queues:
    """No job drawn, and none in the network, for batch axes ``shape``."""
    plan, none = params.plan, jnp.zeros(shape, jnp.int32)
    groups = jnp.zeros((len(plan.groups), *shape), jnp.int32)
    queue = jnp.zeros((params.coming, *shape), jnp.int32)
    jobs = no_jobs(params.slots, plan.most_stages, shape) if plan.routes else None
    return Queues(
        Coming(none, none, queue.astype(jnp.uint32), queue, queue), none, jobs, groups, groups
    )


def soonest(params: Params, state: State) -> jax.Array:
    """Ticks until the next job of those drawn in advance; NEVER where there is none."""
    coming = queues(state).coming
    row = rows(coming.arrival)
    waits = (row >= coming.joined) & (row < coming.drawn)
    until = (coming.arrival - state.clock.low).astype(jnp.int32)
    return jnp.min(jnp.where(waits, until, NEVER), axis=0)


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


def tidy(params: Params, state: State) -> State:
    """Compact the tables and draw jobs in advance: once in a while, for all environments."""
    full = jnp.full(state.present.shape, True)
    nobody = Ended.of(jnp.zeros_like(state.table.live))
    return top_up(params, compact(params, (state, nobody))[0], full)


def compact(params: Params, both: tuple[State, Ended]) -> tuple[State, Ended]:
    """Move all calls to the top rows, those that have yet to be passed on among them.

    Empty rows are inert: it changes no result.
    """
    state, ended = both
    left = ended.left
    source = compacted(state.table.live | left)[: params.rows]
    index, gone = jnp.maximum(source, 0), source < 0

    def move(column: jax.Array) -> jax.Array:
        none = jnp.zeros((), column.dtype)
        top = jnp.where(gone, none, jnp.take_along_axis(column, index, axis=0))
        return jnp.concatenate([top, jnp.zeros((params.fresh, *top.shape[1:]), column.dtype)])

    table, mask = jax.tree.map(move, (state.table, left))
    pool = state.pool
    if pool is not None:  # the blocks of a request move with it
        engines = index[:, : params.plan.engines]
        held = jnp.take_along_axis(pool.table, engines[:, None], axis=0)
        pool = replace(pool, table=pool.table.at[: params.rows].set(held))
    ended = Ended(mask, jnp.full_like(ended.last, -1), ended.count)
    inflow = replace(queues(state), tail=jnp.zeros_like(queues(state).tail))
    return replace(state, table=table, pool=pool, inflow=inflow), ended


def top_up(params: Params, state: State, wanted: jax.Array) -> State:
    """Draw jobs to come until the queue is full, where it is ``wanted``."""
    coming, most = queues(state).coming, params.coming
    kept = jnp.where(wanted, coming.drawn - coming.joined, coming.drawn)
    limit = jnp.where(wanted, most - kept, 0)
    unsized = tuple(streams.Unsized.of(length) for length in params.lengths[:1])
    unsized = unsized * len(params.arrivals)  # a replay has one list, and nothing else a class
    drawn, stream = streams.draw(params.arrivals, unsized, state.stream, params.burst, most, limit)
    row = rows(drawn.wait)
    old = jnp.minimum(row + jnp.where(wanted, coming.joined, 0), most - 1)
    new = jnp.clip(row - kept, 0, most - 1)

    def move(column: jax.Array, fresh: jax.Array) -> jax.Array:
        stays = jnp.take_along_axis(column, old, axis=0)
        return jnp.where(row < kept, stays, jnp.take_along_axis(fresh, new, axis=0))

    coming = Coming(
        jnp.where(wanted, 0, coming.joined),
        kept + drawn.count,
        move(coming.arrival, state.clock.low + drawn.wait.astype(jnp.uint32)),
        move(coming.number, drawn.request),
        move(coming.job_type, drawn.job_class),
    )
    return replace(state, inflow=replace(queues(state), coming=coming), stream=stream)


@dataclass(frozen=True)
class Heads:
    """The next jobs (several, ...) of the queue, and which of them are due."""

    due: jax.Array
    admitted: jax.Array  # those that find a slot
    ago: jax.Array  # ticks since they came; 0 where they are not admitted
    job_type: jax.Array
    number: jax.Array
    arrival: jax.Array
    calls_wait: jax.Array  # (...) whether calls that ended wait, as more jobs came before now


def waiting(params: Params, state: State, several: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The jobs that come next: their index in the queue, ticks since they came, and whether they are."""
    coming = queues(state).coming
    ahead = jnp.arange(several).reshape((-1,) + (1,) * coming.joined.ndim)
    row = coming.joined + ahead
    index = jnp.minimum(row, params.coming - 1)
    arrival = jnp.take_along_axis(coming.arrival, index, axis=0)
    return index, (state.clock.low - arrival).astype(jnp.int32), row < coming.drawn


def heads(params: Params, state: State, several: int, calls_ended: jax.Array) -> Heads:
    """Up to ``several`` jobs at the head of the queue.

    Those of now are due only when all ``calls_ended`` are passed on.
    """
    coming = queues(state).coming
    index, ago, waits = waiting(params, state, several)
    before, now = waits & (ago > 0), waits & (ago == 0)
    due = before | (now & ~calls_ended)
    spent = coming.joined + jnp.sum(due.astype(jnp.int32), axis=0) == coming.drawn
    ahead = jnp.arange(several).reshape((-1,) + (1,) * spent.ndim)
    admitted = due & (ahead < params.slots - state.present)

    def take(column: jax.Array) -> jax.Array:
        return jnp.take_along_axis(column, index, axis=0)

    return Heads(
        due=due,
        admitted=admitted,
        ago=jnp.where(admitted, ago, 0),
        job_type=take(coming.job_type),
        number=take(coming.number),
        arrival=take(coming.arrival),
        calls_wait=before[-1] | (spent & (jnp.min(state.stream.wait, axis=0) < 0)),
    )


def admit(params: Params, state: State, jobs: Heads, taken: jax.Array) -> tuple[State, jax.Array]:
    """Take the jobs of the mask ``taken`` off the queue; those that find no slot are dropped.

    Returns the state, and the ticks since the others came, float32.
    """
    coming, totals = queues(state).coming, state.totals
    due, admitted = jobs.due & taken, jobs.admitted & taken
    count, joined = (jnp.sum(x.astype(jnp.int32), axis=0) for x in (due, admitted))
    ago = jnp.where(admitted, jobs.ago, 0)
    of_class = totals.dropped_of_class
    if of_class is not None:
        first = jnp.asarray(params.plan.first_class)[jobs.job_type]
        of_class = of_class + class_sums(first, due & ~admitted, params.classes)
    state = replace(
        state,
        inflow=replace(queues(state), coming=replace(coming, joined=coming.joined + count)),
        present=state.present + joined,
        totals=replace(
            totals,
            arrived=totals.arrived + count,
            dropped=totals.dropped + count - joined,
            request_ticks=totals.request_ticks.add_sum(ago),
            dropped_of_class=of_class,
        ),
    )
    return state, jnp.sum(ago.astype(jnp.float32), axis=0)


def complete(state: State, count: jax.Array) -> State:
    """``count`` jobs are done and leave."""
    totals = replace(state.totals, completed=state.totals.completed + count)
    return replace(state, present=state.present - count, totals=totals)


def enter(params: Params, state: State, calls: Joining, extra: jax.Array | None) -> State:
    """Calls join the queues of their engines, behind all that are there.

    They are written to the same rows in every environment and at every station, with gaps where there
    is no call: one slice of the table, whatever happens where. A call that its engine's memory could
    never hold is refused: its job leaves and counts as dropped.
    """
    plan = params.plan
    # Behind a barrier, or every column that is written would draw the lengths again.
    prefill, decode, due = jax.lax.optimization_barrier(
        _draw_lengths(params, state.stream.key, calls)
    )
    station, state = route(params, state, calls, prefill + decode, extra)
    if params.kv_blocks is not None:
        state, calls = _refuse(params, state, calls, prefill + decode, station)
    index = jnp.arange(plan.stations).reshape((1, -1) + (1,) * calls.valid[0].ndim)
    here = (index == station[:, None]) & calls.valid[:, None]
    inflow = queues(state)
    start = params.rows + jnp.max(inflow.tail)
    delay = jnp.asarray(plan.is_delay)[calls.job_class]
    work = prefill + decode
    if params.prompt_samples:
        work = work - ((prefill > 0) & (decode > 0))
    values = {
        "prefill": prefill,
        "decode": decode,
        "prompt": jnp.where(delay, calls.context, prefill),
        "output": decode,
        "arrival": calls.arrival,
        "last_token": calls.arrival + due,
        "request": calls.number,
        "job_class": calls.job_class,
        "arrival_high": high_of(state.clock, calls.arrival),
        "job_arrival": calls.job_arrival,
        "job_arrival_high": calls.job_arrival_high,
        "job_row": calls.job_row,
        "visit": calls.visit,
    }

    def write(name: str) -> jax.Array:
        column, value = getattr(state.table, name), values.get(name)
        block = jnp.zeros(here.shape, column.dtype)
        if value is not None:
            block = jnp.where(here, value[:, None].astype(column.dtype), block)
        return jax.lax.dynamic_update_slice_in_dim(column, block, start, axis=0)

    present = (name for name, column in vars(state.table).items() if column is not None)
    table = replace(state.table, **{name: write(name) for name in present})
    used = jnp.max(jnp.where(calls.valid, rows(calls.valid) + 1, 0), axis=0)
    tail = jnp.max(inflow.tail) + jnp.broadcast_to(jnp.max(used), inflow.tail.shape)
    backlog = state.backlog + jnp.sum(jnp.where(calls.valid & ~delay, work, 0), axis=0)
    return replace(state, table=table, inflow=replace(inflow, tail=tail), backlog=backlog)


def _refuse(
    params: Params, state: State, calls: Joining, tokens: jax.Array, station: jax.Array
) -> tuple[State, Joining]:
    """Turn away the calls that their engine's memory could never hold, and their jobs with them."""
    assert params.kv_blocks is not None
    most = params.kv_blocks * params.block_size
    most = select(most.reshape(-1, *[1] * station.ndim), station)
    delay = jnp.asarray(params.plan.is_delay)[calls.job_class]
    refused = calls.valid & ~delay & (tokens - params.prompt_samples > most)
    first, inflow = refused, queues(state)
    if inflow.jobs is not None:  # several calls of one job may be refused at once
        several = len(refused)
        earlier = jnp.tril(jnp.ones((several, several), bool), -1)
        earlier = earlier.reshape(several, several, *[1] * (refused.ndim - 1))
        same = earlier & (calls.job_row[:, None] == calls.job_row[None])
        first = refused & ~jnp.any(same & refused[None], axis=1)
        live = inflow.jobs.live
        for n in range(refused.shape[0]):
            live = live & ~((rows(live) == calls.job_row[n]) & refused[n])
        inflow = replace(inflow, jobs=replace(inflow.jobs, live=live))
    count, totals = jnp.sum(first.astype(jnp.int32), axis=0), state.totals
    of_class = totals.dropped_of_class
    if of_class is not None:
        of_class = of_class + class_sums(calls.job_class, first, params.classes)
    # A job that never got in has waited for nothing.
    ago = jnp.where(first & calls.early, (state.clock.low - calls.arrival).astype(jnp.int32), 0)
    request_ticks = totals.request_ticks
    for ticks in ago:
        request_ticks = request_ticks - ticks
    totals = replace(
        totals,
        dropped=totals.dropped + count,
        dropped_of_class=of_class,
        request_ticks=request_ticks,
    )
    state = replace(state, present=state.present - count, totals=totals, inflow=inflow)
    return state, replace(calls, valid=calls.valid & ~refused)


def _draw_lengths(
    params: Params, key: jax.Array, calls: Joining
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prompt and output tokens of calls, and the ticks of those that are delays (uint32)."""
    plan = params.plan
    prefill, decode = call_lengths(params, key, calls.job_class, calls.number, calls.visit)
    due = jnp.zeros_like(prefill)
    if any(plan.is_delay):
        delay = jnp.asarray(plan.is_delay)[calls.job_class]
        ticks = jnp.round(prefill.astype(jnp.float32) / params.tick_ms).astype(jnp.int32)
        due = jnp.where(delay, jnp.maximum(ticks, 1), 0)
        prefill, decode = jnp.where(delay, 0, prefill), jnp.where(delay, 1, decode)
    if any(plan.inherits):
        inherits = jnp.asarray(plan.inherits)[calls.job_class]
        prefill = jnp.where(inherits, prefill + calls.context, prefill)
    return prefill, decode, due.astype(jnp.uint32)


def call_lengths(
    params: Params, key: jax.Array, job_class: jax.Array, number: jax.Array, visit: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Own prompt and output tokens of calls, inherited context left out; of delays milliseconds, 0."""
    random = streams.words(key, job_class, number, 2, visit)[1:3]
    prefill, decode = jnp.zeros_like(number), jnp.zeros_like(number)
    kind = jnp.asarray(params.length_of)[job_class]
    for k, length in enumerate(params.lengths):
        drawn = length(number, random)
        prefill = jnp.where(kind == k, drawn[0], prefill)
        decode = jnp.where(kind == k, drawn[1], decode)
    return prefill, decode
