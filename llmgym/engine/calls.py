"""Calls on their way through a network: jobs arrive, calls end, set off others, and join queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from llmgym.core.arrays import first_rows, rows, select
from llmgym.engine.jobs import advance, job_at, put_jobs
from llmgym.engine.params import CALLS_TAKEN, COMPACT_EVERY, JOBS_TAKEN, Params
from llmgym.engine.queues import (
    Ended,
    Heads,
    admit,
    compact,
    complete,
    enter,
    heads,
    nothing,
    once,
    queues,
    soonest,
    tidy,
    top_up,
    waiting,
)
from llmgym.engine.routing import Joining, loads
from llmgym.engine.state import Jobs, State, Table, high_of

Carry = tuple[State, Ended, jax.Array]


@dataclass(frozen=True)
class Events:
    """Jobs that begin and calls that ended (events, ...), in order."""

    row: jax.Array  # of the job in the table of jobs
    job: Jobs  # before the event
    ended: jax.Array  # stage that ended, within the job type; -1 where the job begins
    context: jax.Array  # prompt and output tokens of that call
    begins: jax.Array  # whether the job begins
    counts: jax.Array  # whether there is such an event
    apart: jax.Array  # whether it and those before it are of different jobs
    early: jax.Array  # whether the job came before the present moment


def arrive(
    params: Params, state: State, mask: jax.Array, before: Table | None
) -> tuple[State, jax.Array]:
    """Process all due events: jobs that came before now, calls that ended, jobs that come now.

    In this order, a few calls of every environment in each round.

    Args:
        params: of the scenario.
        state: at the end of a step.
        mask: (rows, stations, ...) calls and delays that ended.
        before: the table before the batches were credited, as the routers saw it when the jobs came
            that came before now.

    Returns:
        The state, and the ticks since the jobs came that joined, float32.
    """
    extra = None if before is None else loads(params, before) - loads(params, state.table)
    some = _some_of_jobs if params.plan.routes else _some_of_chains

    def spent(state: State) -> jax.Array:
        coming = queues(state).coming
        return (jnp.min(state.stream.wait, axis=0) <= 0) & (coming.joined == coming.drawn)

    def more(carry: Carry) -> jax.Array:
        state, ended, _ = carry
        _, ago, waits = waiting(params, state, 1)
        return jnp.any((waits & (ago >= 0))[0] | spent(state) | ended.any)

    def body(carry: Carry) -> Carry:
        state, ended, late = carry
        wanted = spent(state)
        state = once(jnp.any(wanted), lambda s: top_up(params, s, wanted), state)
        full = jnp.any(queues(state).tail + params.joining > params.fresh)
        state, ended = once(full, partial(compact, params), (state, ended))
        state, ended, ago = some(params, state, ended, extra)
        return state, ended, late + ago

    late = jnp.zeros(state.present.shape)
    state, _, late = jax.lax.while_loop(more, body, (state, Ended.of(mask), late))
    due = (state.steps > 0) & (state.steps % COMPACT_EVERY == 0)
    return once(jnp.any(due), partial(tidy, params), state), late


def _next_ended(
    ended: Ended, wait: jax.Array
) -> tuple[jax.Array, jax.Array, Callable[[jax.Array], jax.Array], jax.Array]:
    """The next calls that ended, at the first station with any: rows, which exist, and how to read them.

    The last is the station of each environment; ``wait``: where none is to be taken.
    """
    station = jnp.argmax(ended.count > 0, axis=0)

    def of_station(column: jax.Array) -> jax.Array:
        return select(jnp.moveaxis(column, 1, 0), station)

    slot, there = first_rows(of_station(ended.left) & ~wait, CALLS_TAKEN)

    def take(column: jax.Array) -> jax.Array:
        every = jnp.broadcast_to(slot[:, None], (CALLS_TAKEN, *column.shape[1:]))
        return of_station(jnp.take_along_axis(column, every, axis=0))

    return slot, there, take, station


def _passed_on(ended: Ended, station: jax.Array, slot: jax.Array, taken: jax.Array) -> Ended:
    """The calls that are left when those of the mask ``taken`` (several, ...) are passed on."""
    here = (rows(ended.count) == station) & taken[0]
    last = jnp.max(jnp.where(taken, slot, -1), axis=0)
    count = jnp.sum(taken.astype(jnp.int32), axis=0)
    return replace(
        ended,
        last=jnp.where(here, last, ended.last),
        count=jnp.where(here, ended.count - count, ended.count),
    )


def _some_of_chains(params: Params, state: State, ended: Ended, extra: jax.Array | None) -> Carry:
    """Chains of calls: the next jobs, then calls that ended at the first station with any."""
    plan, table = params.plan, state.table
    jobs = heads(params, state, JOBS_TAKEN, ended.any)
    state, late = admit(params, state, jobs, jobs.due)
    slot, there, take, station = _next_ended(ended, jobs.calls_wait)
    ended = _passed_on(ended, station, slot, there)
    following = jnp.asarray(plan.next_class)[take(table.job_class)]
    goes_on = there & (following >= 0)
    completed = jnp.sum((there & ~goes_on).astype(jnp.int32), axis=0)
    place, valid = first_rows(jnp.concatenate([jobs.admitted, goes_on]), params.joining)

    def both(of_jobs: jax.Array, of_calls: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.concatenate([of_jobs, of_calls]), place, axis=0)

    none = jnp.zeros_like(place)
    now = jnp.broadcast_to(state.clock.low, following.shape)
    assert table.job_arrival is not None
    assert table.job_arrival_high is not None
    calls = Joining(
        valid=valid,
        job_class=both(jnp.asarray(plan.first_class)[jobs.job_type], jnp.maximum(following, 0)),
        number=both(jobs.number, take(table.request)),
        arrival=both(jobs.arrival, now),
        job_arrival=both(jobs.arrival, take(table.job_arrival)),
        job_arrival_high=both(high_of(state.clock, jobs.arrival), take(table.job_arrival_high)),
        job_row=none,
        visit=none,
        context=none,
        early=both(jobs.admitted & (jobs.ago > 0), there & False),
    )
    return enter(params, complete(state, completed), calls, extra), ended, late


def _some_of_jobs(params: Params, state: State, ended: Ended, extra: jax.Array | None) -> Carry:
    """Jobs of any form: the next jobs, then calls that ended at the first station with any.

    As many of these events, in order, as the calls that they start find rows for, and of each job one:
    what it sets off depends on what was done before.
    """
    plan = params.plan
    coming = heads(params, state, JOBS_TAKEN, ended.any)
    slot, there, take, station = _next_ended(ended, coming.calls_wait)
    events = _events(params, state, coming, there, take)
    jobs = queues(state).jobs
    assert jobs is not None
    job, starts, inherited = advance(
        plan, state.stream.key, events.job, events.ended, events.context
    )
    starts = starts & events.counts
    # Events in order as long as there is room for all the calls that they start.
    upto = jnp.cumsum(jnp.sum(starts.astype(jnp.int32), axis=0), axis=0)
    fits = (upto <= params.joining) & events.apart
    wanted, of_jobs = events.counts & fits, coming.due.shape[0]
    state, late = admit(params, state, coming, fits[:of_jobs])
    ended = _passed_on(ended, station, slot, there & fits[of_jobs:])
    done = jnp.sum((wanted & ~job.live).astype(jnp.int32), axis=0)
    inflow = replace(queues(state), jobs=put_jobs(jobs, events.row, job, wanted))
    state = complete(replace(state, inflow=inflow), done)

    stages = plan.most_stages
    flat = jnp.moveaxis(starts & wanted, 0, 1).reshape(-1, *done.shape)  # event by event
    place, valid = first_rows(flat, params.joining)

    def of_stage(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.moveaxis(x, 0, 1).reshape(flat.shape), place, axis=0)

    def of_event(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, place // stages, axis=0)

    first = jnp.asarray(plan.first_class)[job.job_type]
    calls = Joining(
        valid=valid,
        job_class=of_event(first) + place % stages,
        number=of_event(job.number),
        arrival=of_event(jnp.where(events.begins, job.arrival, state.clock.low)),
        job_arrival=of_event(job.arrival),
        job_arrival_high=of_event(job.arrival_high),
        job_row=of_event(events.row),
        visit=of_stage(job.visits),
        context=of_stage(inherited),
        early=of_event(events.early),
    )
    calls = replace(calls, job_class=jnp.where(valid, calls.job_class, 0))
    return enter(params, state, calls, extra), ended, late


def _events(
    params: Params,
    state: State,
    coming: Heads,
    there: jax.Array,
    take: Callable[[jax.Array], jax.Array],
) -> Events:
    """Jobs that begin, then calls that ended, of one round."""
    plan, table, jobs = params.plan, state.table, queues(state).jobs
    assert jobs is not None
    assert table.job_row is not None
    nothing_here = jnp.zeros_like(there)
    begins = jnp.concatenate([coming.admitted, nothing_here])
    row = jnp.concatenate([first_rows(~jobs.live, len(coming.due))[0], take(table.job_row)])
    job_class, number = take(table.job_class), take(table.request)
    context = take(table.prompt) + take(table.output)
    context = jnp.where(jnp.asarray(plan.is_delay)[job_class], context - 1, context)
    none = jnp.zeros_like(coming.number)
    known = job_at(jobs, row)
    blank = jnp.zeros_like(row)

    def of_new(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((len(there), *x.shape[1:]), x.dtype)])

    new = Jobs(
        begins, of_new(coming.job_type), of_new(coming.number), of_new(coming.arrival),
        of_new(high_of(state.clock, coming.arrival)), blank, blank, blank,
        jnp.zeros_like(known.visits), jnp.zeros_like(known.visits),
    )  # fmt: skip
    job = jax.tree.map(lambda n, o: jnp.where(begins, n, o), new, known)
    # A job that was dropped has left; in its row there may be another.
    type_of = jnp.asarray(plan.type_of)[job_class]
    own = job.live[len(none) :] & (job.number[len(none) :] == number)
    own = own & (job.job_type[len(none) :] == type_of)
    counts = jnp.concatenate([coming.admitted, there & own])
    ended = job_class - jnp.asarray(plan.first_class)[type_of]
    return Events(
        row=row,
        job=job,
        ended=jnp.concatenate([none - 1, ended]),
        context=jnp.concatenate([none, context]),
        begins=begins,
        counts=counts,
        apart=_apart(row, counts),
        early=jnp.concatenate([coming.ago > 0, nothing_here]),
    )


def _apart(row: jax.Array, counts: jax.Array) -> jax.Array:
    """Whether no two of the events up to each one are of the same job (row)."""
    count = len(row)
    same = (row[:, None] == row[None]) & counts[:, None] & counts[None]
    earlier = jnp.tril(jnp.ones((count, count), bool), -1)
    clash = jnp.any(same & earlier.reshape(count, count, *[1] * (row.ndim - 1)), axis=1)
    return jnp.cumsum(clash.astype(jnp.int32), axis=0) == 0


__all__ = ["arrive", "nothing", "soonest"]
