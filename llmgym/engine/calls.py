"""Calls on their way through a network: jobs arrive, calls end, set off others, and join queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from llmgym.core.arrays import counted, first_rows, of_class, once
from llmgym.engine.ended import Ended
from llmgym.engine.entering import enter
from llmgym.engine.jobs import advance, job_at, no_jobs, put_jobs
from llmgym.engine.params import Params
from llmgym.engine.queues import (
    Heads,
    admit,
    compact,
    complete,
    heads,
    nothing,
    queues,
    soonest,
    top_up,
    waiting,
)
from llmgym.engine.routing import Joining, loads
from llmgym.engine.state import Jobs, State, Table, high_of

Carry = tuple[State, Ended, jax.Array | None]
"""The state, the calls that are to be passed on, and the loads that the routers look at."""


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
        before: the table before the batches were credited, which the routers see for the jobs that
            came before now.

    Returns:
        The state; and the ticks since the jobs came that joined, summed, (...) float32.
    """
    routed = any(replicas > 1 for _, replicas in params.plan.groups)
    load = loads(params, state.table) if routed else None
    extra = None if load is None or before is None else loads(params, before) - load
    some = _some_of_jobs if params.plan.routes else _some_of_chains

    def spent(state: State) -> jax.Array:
        coming = queues(state).coming
        return (jnp.min(state.stream.wait, axis=0) <= 0) & (coming.joined == coming.drawn)

    def more(carry: tuple[Carry, jax.Array]) -> jax.Array:
        (state, ended, _), _ = carry
        _, ago, waits = waiting(params, state, 1)
        return jnp.any((waits & (ago >= 0))[0] | spent(state) | ended.any)

    def body(carry: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
        (state, ended, load), late = carry
        state = once(jnp.any(spent(state)), partial(top_up, params), state)
        full = jnp.any(queues(state).tail + params.joining > params.fresh)
        state, ended = once(full, partial(compact, params), (state, ended))
        after, ago = some(params, (state, ended, load), extra)
        return after, late + ago

    start = (state, Ended.of(mask, jnp.any(state.steps > 0)), load), jnp.zeros(state.present.shape)
    (state, _, _), late = jax.lax.while_loop(more, body, start)
    return state, late


def _some_of_chains(
    params: Params, carry: Carry, extra: jax.Array | None
) -> tuple[Carry, jax.Array]:
    """Chains of calls: the next jobs, then calls that ended, as many as find rows to join."""
    (state, ended, load), plan = carry, params.plan
    of_jobs, of_calls = params.taken
    table, jobs = state.table, heads(params, state, of_jobs, ended.any)
    take, there = ended.next(of_calls, plan.stations)
    there = there & ~jobs.calls_wait
    following = of_class(plan.next_class, take(table.job_class))
    goes_on = there & (following >= 0)
    joins = jnp.concatenate([jobs.admitted, goes_on])
    fits = counted(joins) <= params.joining
    state, late = admit(params, state, jobs, fits[:of_jobs])
    there = there & fits[of_jobs:]
    passed = jnp.sum(there.astype(jnp.int32), axis=0)
    completed = jnp.sum((there & ~goes_on).astype(jnp.int32), axis=0)
    place, valid = _places(params, joins)

    def both(of_jobs: jax.Array, of_calls: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.concatenate([of_jobs, of_calls]), place, axis=0)

    now = jnp.broadcast_to(state.clock.low, following.shape)
    assert table.job_arrival is not None
    assert table.job_arrival_high is not None
    calls = Joining(
        valid=valid,
        job_class=both(of_class(plan.first_class, jobs.job_type), jnp.maximum(following, 0)),
        number=both(jobs.number, take(table.request)),
        arrival=both(jobs.arrival, now),
        job_arrival=both(jobs.arrival, take(table.job_arrival)),
        job_arrival_high=both(high_of(state.clock, jobs.arrival), take(table.job_arrival_high)),
        job_row=None,
        visit=None,
        context=None,
        early=both(jobs.admitted & (jobs.ago > 0), there & False),
    )
    state, load = enter(params, complete(state, completed), calls, load, extra)
    return (state, replace(ended, passed=ended.passed + passed), load), late


def _places(params: Params, joins: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where among the events (events, ...) the first that join stand, and which of these places are real."""
    none = jnp.zeros((params.joining, *joins.shape[1:]), jnp.int32)
    # Computed once; otherwise every column of the calls that join would compute it again.
    return once(jnp.any(joins), lambda _: first_rows(joins, params.joining), (none, none > 0))


def _some_of_jobs(params: Params, carry: Carry, extra: jax.Array | None) -> tuple[Carry, jax.Array]:
    """Jobs of any form: the next jobs, then calls that ended.

    It takes these events in order, as many as there are rows for the calls that they start, and at most
    one of each job, because what an event sets off depends on what was done before.
    """
    (state, ended, load), plan = carry, params.plan
    of_jobs, of_calls = params.taken
    coming = heads(params, state, of_jobs, ended.any)
    take, there = ended.next(of_calls, plan.stations)
    there = there & ~coming.calls_wait
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
    wanted = events.counts & fits
    state, late = admit(params, state, coming, fits[:of_jobs])
    passed = jnp.sum((there & fits[of_jobs:]).astype(jnp.int32), axis=0)
    done = jnp.sum((wanted & ~job.live).astype(jnp.int32), axis=0)
    inflow = replace(queues(state), jobs=put_jobs(jobs, events.row, job, wanted))
    state = complete(replace(state, inflow=inflow), done)
    calls = _started(params, state, events, job, starts & wanted, inherited)
    state, load = enter(params, state, calls, load, extra)
    return (state, replace(ended, passed=ended.passed + passed), load), late


def _started(
    params: Params,
    state: State,
    events: Events,
    job: Jobs,
    starts: jax.Array,
    inherited: jax.Array | None,
) -> Joining:
    """The calls (stages, events, ...) that the events start, event by event."""
    stages = params.plan.most_stages
    flat = jnp.moveaxis(starts, 0, 1).reshape(-1, *starts.shape[2:])
    place, valid = _places(params, flat)

    def of_stage(x: jax.Array | None) -> jax.Array | None:
        if x is None:
            return None
        return jnp.take_along_axis(jnp.moveaxis(x, 0, 1).reshape(flat.shape), place, axis=0)

    def of_event(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, place // stages, axis=0)

    first = of_class(params.plan.first_class, job.job_type)
    job_class = of_event(first) + place % stages
    return Joining(
        valid=valid,
        job_class=jnp.where(valid, job_class, 0),
        number=of_event(job.number),
        arrival=of_event(jnp.where(events.begins, job.arrival, state.clock.low)),
        job_arrival=of_event(job.arrival),
        job_arrival_high=of_event(job.arrival_high),
        job_row=of_event(events.row),
        visit=of_stage(job.visits),
        context=of_stage(inherited),
        early=of_event(events.early),
    )


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
    none = jnp.zeros_like(coming.number)
    context = jnp.zeros_like(job_class)
    if plan.keeps_context:
        context = take(table.prompt) + take(table.output)
        context = jnp.where(of_class(plan.is_delay, job_class), context - 1, context)

    def of_new(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((len(there), *x.shape[1:]), x.dtype)])

    new = replace(
        no_jobs(plan, row.shape),
        live=begins,
        job_type=of_new(coming.job_type),
        number=of_new(coming.number),
        arrival=of_new(coming.arrival),
        arrival_high=of_new(high_of(state.clock, coming.arrival)),
    )
    job = jax.tree.map(lambda n, o: jnp.where(begins, n, o), new, job_at(jobs, row))
    # A job that was dropped has left; in its row there may be another.
    type_of = of_class(plan.type_of, job_class)
    own = job.live[len(none) :] & (job.number[len(none) :] == number)
    own = own & (job.job_type[len(none) :] == type_of)
    counts = jnp.concatenate([coming.admitted, there & own])
    ended = job_class - of_class(plan.first_class, type_of)
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
