"""The queues of a network: jobs to come, calls that join, calls that ended, and the rows they stand in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import jax
import jax.numpy as jnp

from llmgym.core.arrays import GROUP, class_sums, compacted, float_sum, of_class, rows
from llmgym.engine import stream as streams
from llmgym.engine.ended import Ended
from llmgym.engine.jobs import no_jobs
from llmgym.engine.params import Params
from llmgym.engine.state import Coming, Queues, State
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
    jobs = no_jobs(plan, (params.slots, *shape)) if plan.routes else None
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


def tidy(params: Params, state: State) -> State:
    """Compact the tables and draw jobs in advance, for all environments."""
    nobody = Ended.of(jnp.zeros_like(state.table.live), jnp.asarray(False))
    return top_up(params, compact(params, (state, nobody))[0])


def compact(params: Params, both: tuple[State, Ended]) -> tuple[State, Ended]:
    """Move all calls to the top rows, those that have yet to be passed on among them.

    Empty rows are inert: it changes no result. The rows below are left all zero.
    """
    state, ended = both
    size, stations = state.table.live.shape[:2]
    left = ended.mask(size, stations)
    kept = state.table.live | left
    source = jax.lax.optimization_barrier(compacted(kept))
    index, gone = jnp.maximum(source, 0), source < 0
    # A chunk of rows at a time, up to the last that is needed: gathers cost most. Rows come from below,
    # so no chunk writes what a later one reads.
    chunks = -(-jnp.max(jnp.sum(kept.astype(jnp.int32), axis=0)) // GROUP)

    def chunk(n: jax.Array, columns: T) -> T:
        place, none = (jax.lax.dynamic_slice_in_dim(x, n * GROUP, GROUP) for x in (index, gone))

        def move(column: jax.Array) -> jax.Array:
            found = jnp.take_along_axis(column, place, axis=0, mode="promise_in_bounds")
            found = jnp.where(none, jnp.zeros((), column.dtype), found)
            return jax.lax.dynamic_update_slice_in_dim(column, found, n * GROUP, axis=0)

        return jax.tree.map(move, columns)

    below = rows(source) >= chunks * GROUP
    table, left = jax.tree.map(
        lambda column: jnp.where(below, jnp.zeros((), column.dtype), column),
        jax.lax.fori_loop(0, chunks, chunk, (state.table, left)),
    )
    pool = state.pool
    if pool is not None:  # the blocks of a request move with it
        engines = index[: params.rows, : params.plan.engines]
        held = jnp.take_along_axis(pool.table, engines[:, None], axis=0)
        pool = replace(pool, table=pool.table.at[: params.rows].set(held))
    inflow = replace(queues(state), tail=jnp.zeros_like(queues(state).tail))
    return replace(state, table=table, pool=pool, inflow=inflow), Ended.of(
        left, jnp.any(ended.left > 0)
    )


def top_up(params: Params, state: State) -> State:
    """Draw jobs to come until the queue is full."""
    coming, most = queues(state).coming, params.coming
    kept = coming.drawn - coming.joined
    unsized = tuple(streams.Unsized.of(length) for length in params.lengths[:1])
    unsized = unsized * len(params.arrivals)  # only a replay lists classes, and it has one list
    drawn, stream = streams.draw(
        params.arrivals, unsized, state.stream, params.burst, most, most - kept, params.first
    )
    row = rows(drawn.wait)
    old = jnp.minimum(row + coming.joined, most - 1)
    new = jnp.clip(row - kept, 0, most - 1)

    def move(column: jax.Array, fresh: jax.Array) -> jax.Array:
        stays = jnp.take_along_axis(column, old, axis=0)
        return jnp.where(row < kept, stays, jnp.take_along_axis(fresh, new, axis=0))

    coming = Coming(
        jnp.zeros_like(coming.joined),
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
    calls_wait: jax.Array  # (...) whether calls that ended must wait, as more jobs came before now


def waiting(params: Params, state: State, several: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The jobs that come next.

    Args:
        params: of the scenario.
        state: as it is now.
        several: how many.

    Returns:
        Their index in the queue, the ticks since they came (negative: until they come), and whether
        there are so many at all; each (several, ...).
    """
    coming = queues(state).coming
    ahead = jnp.arange(several).reshape((-1,) + (1,) * coming.joined.ndim)
    row = coming.joined + ahead
    index = jnp.minimum(row, params.coming - 1)
    arrival = jnp.take_along_axis(coming.arrival, index, axis=0)
    return index, (state.clock.low - arrival).astype(jnp.int32), row < coming.drawn


def heads(params: Params, state: State, several: int, calls_ended: jax.Array) -> Heads:
    """The jobs at the head of the queue.

    Those that come at this very instant are due only when all calls that ended are passed on.

    Args:
        params: of the scenario.
        state: as it is now.
        several: how many jobs at most.
        calls_ended: (...) whether calls that ended have yet to be passed on.
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
    """Take jobs off the queue; those that find no slot are dropped.

    Args:
        params: of the scenario.
        state: as it is now.
        jobs: the head of its queue.
        taken: (several, ...) which of those that are due to take: the first of them, without a gap.

    Returns:
        The state; and the ticks since the jobs came that found a slot, summed, (...) float32.
    """
    coming, totals = queues(state).coming, state.totals
    due, admitted = jobs.due & taken, jobs.admitted & taken
    count, joined = (jnp.sum(x.astype(jnp.int32), axis=0) for x in (due, admitted))
    ago = jnp.where(admitted, jobs.ago, 0)
    dropped = totals.dropped_of_class
    if dropped is not None:
        first = of_class(params.plan.first_class, jobs.job_type)
        dropped = dropped + class_sums(first, due & ~admitted, params.classes)
    state = replace(
        state,
        inflow=replace(queues(state), coming=replace(coming, joined=coming.joined + count)),
        present=state.present + joined,
        totals=replace(
            totals,
            arrived=totals.arrived + count,
            dropped=totals.dropped + count - joined,
            request_ticks=totals.request_ticks.add_sum(ago),
            dropped_of_class=dropped,
        ),
    )
    return state, float_sum(ago)


def complete(state: State, count: jax.Array) -> State:
    """``count`` jobs are done and leave."""
    totals = replace(state.totals, completed=state.totals.completed + count)
    return replace(state, present=state.present - count, totals=totals)
