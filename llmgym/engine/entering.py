"""Calls join the queues of their engines: their lengths are drawn, they are routed, and written down."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import class_sums, of_class, rows
from llmgym.engine import stream as streams
from llmgym.engine.params import Params
from llmgym.engine.queues import queues
from llmgym.engine.routing import Joining, joined_loads, route
from llmgym.engine.state import State, Table, high_of


def enter(
    params: Params,
    state: State,
    calls: Joining,
    load: jax.Array | None,
    extra: jax.Array | None,
) -> tuple[State, jax.Array | None]:
    """Calls join the queues of their engines, behind all that are there.

    They are written to the same rows in every environment and at every station, with gaps where there
    is no call: one slice of the table, whatever happens where. A call that its engine's memory could
    never hold is refused: its job leaves and counts as dropped.

    Args:
        params: of the scenario.
        state: as it is now.
        calls: that join.
        load, extra: of the engines, as ``routing.route`` takes them.

    Returns the state, and the loads with the calls in it.
    """
    plan = params.plan
    # Behind a barrier; without it every column that is written would draw the lengths again.
    prefill, decode, due = jax.lax.optimization_barrier(
        _draw_lengths(params, state.stream.key, calls)
    )
    tokens = prefill + decode
    if params.kv_blocks is not None:
        state, calls = _refuse(params, state, calls, prefill, decode)
    station, state = route(params, state, calls, tokens, load, extra)
    if load is not None:
        load = joined_loads(params, load, calls, tokens, station)
    delay = of_class(plan.is_delay, calls.job_class)
    work = tokens
    if params.prompt_samples:
        work = work - ((prefill > 0) & (decode > 0))
    table = _written(params, state, calls, station, (prefill, decode, due))
    inflow = queues(state)
    used = jnp.max(jnp.where(calls.valid, rows(calls.valid) + 1, 0))
    backlog = state.backlog + jnp.sum(jnp.where(calls.valid & ~delay, work, 0), axis=0)
    inflow = replace(inflow, tail=jnp.max(inflow.tail) + jnp.full_like(inflow.tail, used))
    return replace(state, table=table, inflow=inflow, backlog=backlog), load


def _written(
    params: Params,
    state: State,
    calls: Joining,
    station: jax.Array,
    drawn: tuple[jax.Array, jax.Array, jax.Array],
) -> Table:
    """The table with the calls in its next fresh rows. Their other columns are zero, as they should be."""
    plan, (prefill, decode, due) = params.plan, drawn
    index = jnp.arange(plan.stations).reshape((1, -1) + (1,) * calls.valid[0].ndim)
    here = (index == station[:, None]) & calls.valid[:, None]
    prompt = prefill
    if calls.context is not None:
        prompt = jnp.where(of_class(plan.is_delay, calls.job_class), calls.context, prefill)
    values = {
        "prefill": prefill,
        "decode": decode,
        "prompt": prompt,
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
    start = params.rows + jnp.max(queues(state).tail)

    def write(column: jax.Array, value: jax.Array) -> jax.Array:
        block = jnp.where(here, value[:, None].astype(column.dtype), jnp.zeros((), column.dtype))
        return jax.lax.dynamic_update_slice_in_dim(column, block, start, axis=0)

    written = {
        name: write(getattr(state.table, name), value)
        for name, value in values.items()
        if value is not None
    }
    return replace(state.table, **written)


def _refuse(
    params: Params, state: State, calls: Joining, prefill: jax.Array, decode: jax.Array
) -> tuple[State, Joining]:
    """Turn away the calls that their engine's memory could never hold, and their jobs with them.

    This comes before routing: all replicas are the same, and a refused call adds no load.
    """
    assert params.kv_blocks is not None
    groups = params.plan.groups
    firsts = [0 if g < 0 else groups[g][0] for g in params.plan.group_of]
    most = (params.kv_blocks * params.block_size)[of_class(firsts, calls.job_class)]
    delay = of_class(params.plan.is_delay, calls.job_class)
    longest = prefill + decode - (params.prompt_samples & (prefill > 0))
    refused = calls.valid & ~delay & (longest > most)
    first, inflow = refused, queues(state)
    if inflow.jobs is not None:  # several calls of one job may be refused at once
        assert calls.job_row is not None
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
    dropped = totals.dropped_of_class
    if dropped is not None:
        dropped = dropped + class_sums(calls.job_class, first, params.classes)
    # A job that never got in has waited for nothing.
    ago = jnp.where(first & calls.early, (state.clock.low - calls.arrival).astype(jnp.int32), 0)
    request_ticks = totals.request_ticks
    for ticks in ago:
        request_ticks = request_ticks - ticks
    totals = replace(
        totals,
        dropped=totals.dropped + count,
        dropped_of_class=dropped,
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
        delay = of_class(plan.is_delay, calls.job_class)
        ticks = jnp.round(prefill.astype(jnp.float32) / params.tick_ms).astype(jnp.int32)
        due = jnp.where(delay, jnp.maximum(ticks, 1), 0)
        prefill, decode = jnp.where(delay, 0, prefill), jnp.where(delay, 1, decode)
    if any(plan.inherits):
        assert calls.context is not None
        inherits = of_class(plan.inherits, calls.job_class)
        prefill = jnp.where(inherits, prefill + calls.context, prefill)
    return prefill, decode, due.astype(jnp.uint32)


def call_lengths(
    params: Params,
    key: jax.Array,
    job_class: jax.Array,
    number: jax.Array,
    visit: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Lengths of calls: they depend on nothing but key, class, number and visit.

    Args:
        params: of the scenario.
        key: (2, ...) the words of the stream, uint32.
        job_class: (calls, ...) class of each.
        number: (calls, ...) of the job within its job type, int32.
        visit: (calls, ...) how often the job had been through the call before; None: it never had.

    Returns:
        Prompt and output tokens (calls, ...) int32, without inherited context. Those of a delay are
        its milliseconds, and 0.
    """
    random = streams.words(key, job_class, number, 2, visit)[1:3]
    prefill, decode = jnp.zeros_like(number), jnp.zeros_like(number)
    kind = of_class(params.length_of, job_class)
    for k, length in enumerate(params.lengths):
        drawn = length(number, random)
        prefill = jnp.where(kind == k, drawn[0], prefill)
        decode = jnp.where(kind == k, drawn[1], decode)
    return prefill, decode
