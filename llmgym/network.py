"""The physics of a network of engines: jobs whose calls go from engine to engine.

The engines are one more axis of the request table, behind the slots: what holds for one engine
(``dynamics``) runs on all of them at once. Every engine runs its own batches; a step is one decision
epoch and lasts until the next event: the end of a batch, the end of a delay, or, while some engine is
free, an arrival. Engines that are busy at an epoch ignore their part of the batch. Events of one instant
happen in this order: arrivals of new jobs before the instant; ends of batches, engine by engine, their
requests in order of the table; ends of delays; new jobs of that very instant. Whatever ends passes
on at once, and calls join the queue of their engine in the order in which they come. In which rows of the
table they stand, and with what gaps, also depends on the environments beside; nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from llmgym import stream as streams
from llmgym.arrays import rows
from llmgym.arrivals import NEVER
from llmgym.composition import Batch, clip
from llmgym.dynamics import COMPACT_EVERY, credit
from llmgym.jobs import no_jobs
from llmgym.network_calls import call_lengths, once, settle, tidy
from llmgym.network_plan import Plan
from llmgym.network_state import (
    CallTable,
    Coming,
    Network,
    NetworkInfo,
    NetworkState,
    empty_calls,
    lower_network,
)
from llmgym.network_view import network_view
from llmgym.precision import in_32_bits
from llmgym.routing import loads
from llmgym.state import empty_totals
from llmgym.wide import Wide


@in_32_bits
def init_network(network: Network, key: jax.Array) -> NetworkState:
    """A network without jobs at time 0, and whatever arrives at that very instant."""
    data = jnp.moveaxis(jax.random.key_data(key).astype(jnp.uint32), -1, 0)
    shape, plan = data.shape[1:], network.plan
    none = jnp.zeros(shape, jnp.int32)
    count, size = plan.stations, network.rows + network.fresh
    groups, engines = (jnp.zeros((n, *shape), jnp.int32) for n in (len(plan.groups), plan.engines))
    queue = jnp.zeros((network.coming, *shape), jnp.int32)
    state = NetworkState(
        table=empty_calls(size, (count, *shape), bool(plan.routes)),
        tail=none,
        busy=engines,
        present=none,
        backlog=Wide.zeros(shape),
        clock=Wide.zeros(shape),
        coming=Coming(none, none, queue.astype(jnp.uint32), queue, queue),
        stream=streams.start(network.arrivals, data, network.burst),
        jobs=no_jobs(network.slots, plan.most_stages, shape) if plan.routes else None,
        route=groups,
        turns=groups,
        batches=engines,
        totals=empty_totals(shape),
        steps=none,
    )
    return settle(network, state, state.table.live)[0]


@in_32_bits
def next_job(network: Network, state: NetworkState) -> jax.Array:
    """Ticks until the next job arrives, 0 if it is overdue; NEVER where none is to come."""
    coming = state.coming
    row = rows(coming.arrival)
    waits = (row >= coming.joined) & (row < coming.drawn)
    until = (coming.arrival - state.clock.low).astype(jnp.int32)
    soonest = jnp.min(jnp.where(waits, until, NEVER), axis=0)
    return jnp.maximum(jnp.minimum(soonest, jnp.min(state.stream.wait, axis=0)), 0)


@in_32_bits
def step_network(
    network: Network, state: NetworkState, batch: Batch, limit: jax.Array | None = None
) -> tuple[NetworkState, NetworkInfo]:
    """Start the batches of the free engines and let time pass to the next event, at most ``limit`` ticks.

    With nothing to come and no limit an epoch without batches takes no time.
    """
    plan, seen = network.plan, network_view(network, state)
    batch, clipped = clip(seen, Batch(jnp.where(seen.free, batch.tokens, 0)))
    tokens, table = batch.tokens, state.table
    prefill_tokens = jnp.sum(jnp.where(seen.decoding, 0, tokens), axis=0)
    decode_tokens = jnp.sum(jnp.where(seen.decoding, tokens, 0), axis=0)
    size = prefill_tokens + decode_tokens
    ticks = jnp.where(size > 0, seen.batch_time.ticks(size, seen.tick_ms), 0)
    busy = jnp.where(size > 0, ticks, state.busy)
    at_all = _at_engines(plan, tokens, axis=1)
    now = state.clock.low
    table = replace(
        table,
        planned=jnp.where(_at_engines(plan, seen.free), at_all, table.planned),
        service=jnp.where((at_all > 0) & ~table.started, now, table.service),
    )
    duration = _next_event(network, state, table, busy)
    duration = jnp.where(duration >= NEVER, 0 if limit is None else NEVER, duration)
    if limit is not None:
        duration = jnp.minimum(duration, limit)

    clock, totals = state.clock + duration, state.totals
    left = jnp.where(busy > 0, busy - duration, 0)
    ends = (busy > 0) & (left == 0)
    decoding = (table.prefill == 0) & (table.decode > 0)
    done = jnp.where(_at_engines(plan, ends), table.planned, 0)
    credited, finished = credit(table, decoding, done, clock.low)
    if plan.stations > plan.engines:
        over = _due_delays(plan, table, clock.low)
        credited = replace(credited, decode=jnp.where(over, 0, credited.decode))
        finished = finished | over
    credited = replace(credited, planned=jnp.where(_at_engines(plan, ends), 0, table.planned))
    served_p = jnp.sum(jnp.where(decoding, 0, done), axis=(0, 1))
    served_d = jnp.sum(jnp.where(decoding, done, 0), axis=(0, 1))
    moved = replace(
        state,
        table=credited,
        busy=left,
        backlog=state.backlog - (served_p + served_d),
        clock=clock,
        stream=streams.pass_time(state.stream, duration),
        batches=state.batches + (size > 0),
        totals=replace(
            totals,
            batches=totals.batches + jnp.sum((size > 0).astype(jnp.int32), axis=0),
            prefill_tokens=totals.prefill_tokens + served_p,
            decode_tokens=totals.decode_tokens + served_d,
            request_ticks=totals.request_ticks.add_product(state.present, duration),
        ),
        steps=state.steps + 1,
    )
    # Jobs that came during the epoch were routed by the loads of their time: before the credit.
    extra = loads(plan, table) - loads(plan, credited)
    after, late = settle(network, moved, finished, extra)
    due = jnp.any(after.steps % COMPACT_EVERY == 0)
    after = once(due, partial(tidy, network), after)
    info = NetworkInfo(
        duration=duration,
        batch_ticks=ticks,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        requests=jnp.sum((tokens > 0).astype(jnp.int32), axis=0),
        completed=after.totals.completed - totals.completed,
        arrived=after.totals.arrived - totals.arrived,
        dropped=after.totals.dropped - totals.dropped,
        clipped=clipped,
        idle=jnp.sum(size, axis=0) == 0,
        request_ticks=state.present.astype(jnp.float32) * duration.astype(jnp.float32) + late,
        batch=batch,
        finished=finished,
        table=credited,
    )
    return after, info


def _at_engines(plan: Plan, x: jax.Array, axis: int = 0) -> jax.Array:
    """The array with zeros for the station of delays, if there is one."""
    if plan.stations == plan.engines:
        return x
    one = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([x, one], axis=axis)


def _next_event(
    network: Network, state: NetworkState, table: CallTable, busy: jax.Array
) -> jax.Array:
    """Ticks until a batch ends, a delay ends, or a job arrives that a free engine might serve."""
    plan = network.plan
    soonest = jnp.min(jnp.where(busy > 0, busy, NEVER), axis=0)
    if plan.stations > plan.engines:
        until = (table.last_token[:, plan.engines] - state.clock.low).astype(jnp.int32)
        waiting = table.decode[:, plan.engines] > 0
        soonest = jnp.minimum(soonest, jnp.min(jnp.where(waiting, until, NEVER), axis=0))
    heeded = jnp.any(busy == 0, axis=0)
    if plan.begins_with_delay:  # which may be over before any batch is
        heeded = jnp.ones_like(heeded)
    arrival = jnp.where(heeded, next_job(network, state), NEVER)
    return jnp.minimum(soonest, arrival)


def _due_delays(plan: Plan, table: CallTable, now: jax.Array) -> jax.Array:
    """The delays that are over."""
    station = jnp.arange(plan.stations).reshape((1, -1) + (1,) * (table.decode.ndim - 2))
    past = (now - table.last_token).astype(jnp.int32) >= 0
    return (station == plan.engines) & (table.decode > 0) & past


__all__ = [
    "Network",
    "call_lengths",
    "init_network",
    "lower_network",
    "network_view",
    "next_job",
    "step_network",
]
