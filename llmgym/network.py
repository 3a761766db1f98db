"""The physics of a network of engines: jobs whose calls go from engine to engine.

The engines are one more axis of the request table, behind the slots: what holds for one engine
(``dynamics``) runs on all of them at once. Every engine runs its own batches; a step is one decision
epoch and lasts until the next event: the end of a batch, the end of a delay, or, while some engine is
free, an arrival. Engines that are busy at an epoch ignore their part of the batch. Events of one instant
happen in this order: arrivals of new jobs before the instant; ends of batches, engine by engine, their
requests in order of the table; ends of delays; new jobs of that very instant. Whatever ends passes
on at once, and calls join the queue of their engine in the order in which they come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym import stream as streams
from llmgym.arrays import GROUP, first_rows, prefix_sum, rows, select
from llmgym.arrivals import NEVER, uniform
from llmgym.batch_time import BatchTime
from llmgym.composition import Batch, Classes, View, clip
from llmgym.dynamics import COMPACT_EVERY, credit, sources
from llmgym.errors import LLMGymError
from llmgym.jobs import CHOICE, Jobs, advance, job_at, no_jobs, put_job
from llmgym.network_plan import Plan, rows_per_slot
from llmgym.pytree import register
from llmgym.scenario import Scenario
from llmgym.state import Stream, Table, Totals, empty_totals
from llmgym.wide import Wide
from llmgym.workload import Replay

TAKEN = 4
"""Requests of an engine that are passed on in one go; more only cost another."""

NO_LIMIT = 2**20


@register
@dataclass(frozen=True)
class MixedTimes(BatchTime):
    """Batch times of several kinds: entry for entry the model number ``which``."""

    models: tuple[BatchTime, ...]
    which: jax.Array

    def formula(self, tokens: Any, xp: Any) -> Any:
        found = self.models[0].formula(tokens, xp)
        for n, model in enumerate(self.models[1:], start=1):
            found = xp.where(self.which == n, model.formula(tokens, xp), found)
        return found


@register
@dataclass(frozen=True)
class Network:
    """A scenario lowered to arrays, as ``dynamics.Physics``; per-engine arrays have shape (engines,)."""

    batch_time: BatchTime
    token_budget: jax.Array
    max_num_seqs: jax.Array | None
    tick_ms: jax.Array
    burst: jax.Array  # jobs of each type that arrive at time 0
    arrivals: tuple[Any, ...]  # of each job type
    lengths: tuple[Any, ...]  # the different ones
    means: jax.Array  # (2, classes) mean prompt and output tokens
    follows: jax.Array  # (classes, classes) calls that a call brings on, delays skipped
    plan: Plan = field(metadata={"static": True})
    length_of: tuple[int, ...] = field(metadata={"static": True})  # of each class
    slots: int = field(metadata={"static": True})  # most jobs
    rows: int = field(metadata={"static": True})  # of the table of an engine
    fresh: int = field(metadata={"static": True})  # rows behind them, for calls that join
    coming: int = field(metadata={"static": True})  # jobs drawn in advance
    resident_limit: bool = field(metadata={"static": True})
    lengths_known: bool = field(metadata={"static": True})


def lower_network(scenario: Scenario, burst: int = 0) -> Network:
    """The network of a scenario as traced parameters. ``burst``: as in ``dynamics.lower``."""
    plan, workload = Plan.of(scenario), scenario.workload
    if plan.classes > CHOICE:
        raise LLMGymError(f"A network has at most {CHOICE} stages in all, got {plan.classes}.")
    ticks_per_s = 1000.0 / scenario.tick_ms
    if isinstance(workload, Replay):
        arrivals: tuple[Any, ...] = (workload.gap_sampler(ticks_per_s),)
        lengths: tuple[Any, ...] = (workload.length_sampler(),)
        length_of: tuple[int, ...] = (0,)
        follows = np.zeros((1, 1))
    else:
        arrivals = tuple(j.arrivals.sampler(ticks_per_s) for j in workload)
        # Classes of equal lengths share a sampler: each costs in every draw.
        stages = [stage for j in workload for stage in j.stages]
        drawn = [(s.prefill, s.decode, s.paired, s.delay_ms) for s in stages]
        different = list(dict.fromkeys(drawn))
        lengths = tuple(stages[drawn.index(one)].sampler() for one in different)
        length_of = tuple(different.index(one) for one in drawn)
        follows = _follows(scenario, plan)
    engines = [e for e in scenario.engines for _ in range(e.replicas)]
    capped = [e for e in engines if e.max_num_seqs is not None]
    size = scenario.slots * rows_per_slot(scenario)
    per_batch = _calls_per_batch(scenario)
    fresh = int(np.clip(np.ceil(2 * COMPACT_EVERY * per_batch), 16, 256))
    fresh = max(fresh, plan.most_stages if plan.routes else plan.stations * TAKEN)
    fresh += -(size + fresh) % GROUP
    if size > 2**15:
        raise LLMGymError(f"{scenario.slots} slots make tables of {size} rows; at most {2**15}.")
    return Network(
        batch_time=_batch_time([e.batch_time for e in engines]),
        token_budget=jnp.asarray([e.token_budget for e in engines], jnp.int32),
        max_num_seqs=(
            jnp.asarray([e.max_num_seqs or NO_LIMIT for e in engines], jnp.int32)
            if capped
            else None
        ),
        tick_ms=jnp.float32(scenario.tick_ms),
        burst=jnp.int32(burst),
        arrivals=arrivals,
        lengths=lengths,
        means=jnp.asarray(scenario.class_means, jnp.float32).T,
        follows=jnp.asarray(follows, jnp.float32),
        plan=plan,
        length_of=length_of,
        slots=scenario.slots,
        rows=size,
        fresh=fresh,
        coming=int(np.clip(np.ceil(1.25 * COMPACT_EVERY * per_batch), 16, 256)),
        resident_limit=bool(capped) and capped[0].seq_limit == "resident",
        lengths_known=scenario.lengths_known,
    )


def _batch_time(models: list[BatchTime]) -> BatchTime:
    """One model whose constants have an axis of engines."""
    kinds = list(dict.fromkeys(type(m) for m in models))
    stacked = []
    for kind in kinds:
        # Engines of another kind get the constants of some engine of this one; they are not used.
        example = next(m for m in models if type(m) is kind)
        mine = [m if type(m) is kind else example for m in models]
        stacked.append(jax.tree.map(lambda *xs: jnp.asarray(xs, jnp.float32), *mine))
    if len(kinds) == 1:
        return stacked[0]
    return MixedTimes(tuple(stacked), jnp.asarray([kinds.index(type(m)) for m in models]))


def _calls_per_batch(scenario: Scenario) -> float:
    """Calls that join an engine in the time of a full batch, about."""
    calls = 1.0
    if not isinstance(scenario.workload, Replay):
        rates = [j.rate_per_s for j in scenario.job_types]
        calls = float(
            np.average([j.workflow.visits.sum() for j in scenario.job_types], weights=rates)
        )
    tokens = (scenario.mean_prefill + scenario.mean_decode) / calls
    return max(e.token_budget for e in scenario.engines) / max(tokens, 1.0)


def _follows(scenario: Scenario, plan: Plan) -> np.ndarray:
    """R over all classes, with delays skipped."""
    count = plan.classes
    found = np.zeros((count, count))
    for first, job in zip(plan.first_class, scenario.job_types, strict=True):
        size = len(job.stages)
        found[first : first + size, first : first + size] = job.workflow.follows
    delay = np.array(plan.is_delay)
    if delay.any():
        through = np.linalg.inv(np.eye(delay.sum()) - found[np.ix_(delay, delay)])
        skipped = found[:, delay] @ through @ found[delay, :]
        found = np.where(delay[None, :] | delay[:, None], 0, found + skipped)
    return found


@register
@dataclass(frozen=True)
class CallTable(Table):
    """The calls at every station, (rows, stations, ...): as ``Table``, and where they belong.

    ``request`` is the number of the job in its type and ``job_class`` the class of the call. In the
    station of delays a row has one token, and ``last_token`` is when the delay is over.
    """

    job_arrival: jax.Array  # low clock word of the arrival of the job
    service: jax.Array  # of the start of its first batch
    planned: jax.Array  # tokens in the batch that runs
    job_row: jax.Array | None  # row in the table of jobs, where there is one
    visit: jax.Array | None  # how often the job had been through this call before

    def details(self) -> dict[str, jax.Array]:
        own = ("prompt", "output", "job_arrival", "service", "visit")
        found = {name: getattr(self, name) for name in own}
        return super().details() | {k: v for k, v in found.items() if v is not None}


@register
@dataclass(frozen=True)
class Coming:
    """Jobs drawn in advance, axis 0; those from ``joined`` to ``drawn`` have not arrived yet."""

    joined: jax.Array
    drawn: jax.Array
    arrival: jax.Array  # low clock word
    number: jax.Array
    job_type: jax.Array


@register
@dataclass(frozen=True)
class NetworkState:
    """Everything that ``step`` carries. ``present`` counts jobs, ``backlog`` tokens of their calls."""

    table: CallTable
    pending: jax.Array  # (rows, stations, ...) calls that ended and are to be passed on
    tail: jax.Array  # (stations, ...) rows of the fresh ones that are used
    busy: jax.Array  # (engines, ...) ticks until its batch ends; 0: free
    present: jax.Array
    backlog: jax.Array
    clock: Wide
    coming: Coming
    stream: Stream
    jobs: Jobs | None
    route: jax.Array  # (groups, ...) replica that the agent named last
    turns: jax.Array  # (groups, ...) calls routed so far
    batches: jax.Array  # (engines, ...) run so far
    totals: Totals
    steps: jax.Array


@register
@dataclass(frozen=True)
class NetworkInfo:
    """What happened in one epoch; per-engine arrays (engines, ...) are of the batches that started."""

    duration: jax.Array  # ticks of the epoch
    batch_ticks: jax.Array  # of the batches that started; 0 for the other engines
    prefill_tokens: jax.Array
    decode_tokens: jax.Array
    requests: jax.Array
    completed: jax.Array  # jobs
    arrived: jax.Array  # jobs
    dropped: jax.Array  # jobs
    clipped: jax.Array
    idle: jax.Array  # whether no batch started
    request_ticks: jax.Array  # integral of the jobs present, float32
    batch: Batch  # that started
    finished: jax.Array  # (rows, stations, ...) calls, and delays, that ended
    table: CallTable  # at the end of the epoch, before anything was passed on


@register
@dataclass(frozen=True)
class Joining:
    """Calls about to join, (several, ...), in order."""

    valid: jax.Array
    job_class: jax.Array
    number: jax.Array
    arrival: jax.Array
    job_arrival: jax.Array
    job_row: jax.Array
    visit: jax.Array
    context: jax.Array


def _empty_calls(size: int, shape: tuple[int, ...], jobs: bool) -> CallTable:
    none, never = jnp.zeros((size, *shape), jnp.int32), jnp.zeros((size, *shape), jnp.uint32)
    known = none if jobs else None
    return CallTable(
        none, none, none, none, never, never, never, none, none, never, never, none, known, known
    )  # fmt: skip


def init_network(network: Network, key: jax.Array) -> NetworkState:
    """A network without jobs at time 0, and whatever arrives at that very instant."""
    data = jnp.moveaxis(jax.random.key_data(key).astype(jnp.uint32), -1, 0)
    shape, plan = data.shape[1:], network.plan
    none = jnp.zeros(shape, jnp.int32)
    count, size = plan.stations, network.rows + network.fresh
    groups, engines = (jnp.zeros((n, *shape), jnp.int32) for n in (len(plan.groups), plan.engines))
    queue = jnp.zeros((network.coming, *shape), jnp.int32)
    state = NetworkState(
        table=_empty_calls(size, (count, *shape), bool(plan.routes)),
        pending=jnp.zeros((size, count, *shape), bool),
        tail=jnp.zeros((count, *shape), jnp.int32),
        busy=engines,
        present=none,
        backlog=none,
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
    return _arrivals(network, state, 0)[0]


def network_view(network: Network, state: NetworkState) -> View:
    """What policies see: every array of a View with an axis of engines before the batch axes."""
    plan = network.plan
    table = _engines(plan, state.table)
    shape = state.busy.shape

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(x.shape[0], *[1] * (len(shape) - 1)), shape)

    live, now, seqs = table.live, state.clock.low, network.max_num_seqs
    return View(
        prefill=table.prefill,
        decoding=(table.prefill == 0) & (table.decode > 0),
        started=table.started | (table.planned > 0),
        prompt=jnp.where(live, table.prompt, 0),
        generated=jnp.where(live, table.output - table.decode, 0),
        waited=jnp.where(live, (now - table.arrival).astype(jnp.int32), 0),
        unserved=jnp.where(live, (now - table.last_token).astype(jnp.int32), 0),
        job_class=table.job_class,
        decode_left=table.decode if network.lengths_known else None,
        token_budget=spread(network.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(spread, network.batch_time),
        tick_ms=jnp.broadcast_to(network.tick_ms, shape),
        batches=state.batches,
        classes=_classes(network, table),
        resident_limit=network.resident_limit,
        free=state.busy == 0,
        job_age=jnp.where(live, (now - table.job_arrival).astype(jnp.int32), 0),
    )


def _engines(plan: Plan, table: CallTable) -> CallTable:
    """The stations that are engines."""
    if plan.stations == plan.engines:
        return table
    return jax.tree.map(lambda c: c[:, : plan.engines], table)


def _classes(network: Network, table: CallTable) -> Classes:
    plan = network.plan
    shape = table.prefill.shape[1:]
    prefills, decodes = table.prefill > 0, (table.prefill == 0) & (table.decode > 0)

    def spread(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.broadcast_to(x.reshape(-1, *[1] * len(shape)), (x.shape[0], *shape))

    def tally(values: jax.Array) -> jax.Array:
        mine = [jnp.where(table.job_class == k, values, 0) for k in range(plan.classes)]
        return jnp.stack([jnp.sum(m, axis=0) for m in mine])

    in_prefill = tally(prefills.astype(jnp.int32))
    prompt_tokens = tally(table.prefill).astype(jnp.float32)
    serves = np.array(plan.group_of)[:, None] == np.array(plan.engine_group())[None]

    def behind(here: jax.Array) -> jax.Array:
        total = jnp.sum(here, axis=1)  # over engines: (classes, ...)
        ahead = jnp.tensordot(network.follows, total.astype(jnp.float32), axes=1)
        return jnp.broadcast_to(ahead[:, None], (plan.classes, *shape))

    return Classes(
        mean_prefill=spread(network.means[0]),
        mean_decode=spread(network.means[1]),
        in_prefill=in_prefill,
        in_decode=tally(decodes.astype(jnp.int32)),
        requests_behind=behind(in_prefill),
        prompt_tokens=prompt_tokens,
        tokens_behind=behind(prompt_tokens),
        hop=spread(np.array(plan.hop, np.int32)),
        priority=spread(np.array(plan.priority, np.int32)),
        here=jnp.broadcast_to(
            serves.reshape(*serves.shape, *[1] * (len(shape) - 1)), (plan.classes, *shape)
        ),
        most=int(serves.sum(axis=0).max()),
    )


def next_job(network: Network, state: NetworkState) -> jax.Array:
    """Ticks until the next job arrives, 0 if it is overdue; NEVER where none is to come."""
    coming = state.coming
    row = rows(coming.arrival)
    waits = (row >= coming.joined) & (row < coming.drawn)
    until = (coming.arrival - state.clock.low).astype(jnp.int32)
    soonest = jnp.min(jnp.where(waits, until, NEVER), axis=0)
    return jnp.maximum(jnp.minimum(soonest, jnp.min(state.stream.wait, axis=0)), 0)


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
        pending=finished,
        busy=left,
        backlog=state.backlog - served_p - served_d,
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
    due = jnp.any(moved.steps % COMPACT_EVERY == 0)
    moved = _once(due, lambda s: _tidy(network, s), moved)
    # Jobs that came during the epoch were routed by the loads of their time: before the credit.
    extra = _loads(plan, table) - _loads(plan, credited)
    after, late = _arrivals(network, moved, 1, extra)
    after = _pass_on(network, after)
    after, _ = _arrivals(network, after, 0)
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


def _once(
    wanted: jax.Array, change: Callable[[NetworkState], NetworkState], state: NetworkState
) -> NetworkState:
    """The state after a change, where it is ``wanted``.

    A loop of at most one round: a condition would copy the tables when there is nothing to do.
    """

    def body(carry: tuple[NetworkState, jax.Array]) -> tuple[NetworkState, jax.Array]:
        return change(carry[0]), jnp.zeros_like(wanted)

    return jax.lax.while_loop(lambda c: c[1], body, (state, wanted))[0]


def _tidy(network: Network, state: NetworkState) -> NetworkState:
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


def _arrivals(
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
        state = _once(jnp.any(wanted), lambda s: _top_up(network, s, wanted), state)
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


def _pass_on(network: Network, state: NetworkState) -> NetworkState:
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
    state = _once(full, lambda s: _compact(network, s), state)
    prefill, decode, due = _draw_lengths(network, state.stream.key, calls)
    station, state = _route(network, state, calls, prefill + decode, extra)
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


def _route(
    network: Network,
    state: NetworkState,
    calls: Joining,
    tokens: jax.Array,
    extra: jax.Array | None,
) -> tuple[jax.Array, NetworkState]:
    """The station (several, ...) that each call goes to: its engine, or one of its replicas."""
    plan = network.plan
    group = jnp.asarray(plan.group_of)[calls.job_class]
    first = jnp.asarray([g for g, _ in plan.groups])[group]
    station = jnp.where(group < 0, plan.engines, first)
    if all(replicas == 1 for _, replicas in plan.groups):
        return station, state
    load = _loads(plan, state.table)
    if extra is not None:
        load = load + extra
    member = jnp.asarray(plan.engine_group()).reshape((-1,) + (1,) * state.present.ndim)
    index = rows(load)
    turns, chosen = state.turns, []
    for n in range(calls.valid.shape[0]):
        mine = member == group[n]
        count = jnp.sum(mine.astype(jnp.int32), axis=0)
        turn = select(turns, group[n])
        draw = streams.words(
            state.stream.key, calls.job_class[n] + CHOICE, calls.number[n], 2, calls.visit[n]
        )
        replica = _replica(plan.router, load, mine, first[n], count, turn, draw, state, group[n])
        to = jnp.where(group[n] < 0, plan.engines, first[n] + replica)
        chosen.append(to)
        here = (index == to) & calls.valid[n]
        load = load + jnp.where(here, _weight(plan.router, tokens[n]), 0)
        groups = rows(turns) == group[n]
        turns = turns + (groups & calls.valid[n])
    return jnp.stack(chosen), replace(state, turns=turns)


def _weight(router: str, tokens: jax.Array) -> jax.Array | int:
    """What a call that joins adds to the load that the router looks at."""
    if router == "fewest_tokens":
        return tokens
    return 0 if router == "least_kv" else 1


def _loads(plan: Plan, table: CallTable) -> jax.Array:
    """What the router looks at, (engines, ...): tokens left, tokens in memory, or requests."""
    table = _engines(plan, table)
    if plan.router == "fewest_tokens":
        return jnp.sum(table.prefill + table.decode, axis=0)
    if plan.router == "least_kv":
        held = table.prompt - table.prefill + table.output - table.decode
        return jnp.sum(jnp.where(table.live, held, 0), axis=0)
    return jnp.sum(table.live.astype(jnp.int32), axis=0)


def _replica(
    router: str,
    load: jax.Array,
    mine: jax.Array,
    first: jax.Array,
    count: jax.Array,
    turn: jax.Array,
    draw: jax.Array,
    state: NetworkState,
    group: jax.Array,
) -> jax.Array:
    """The number of the replica within its group; the first at a tie."""
    count = jnp.maximum(count, 1)

    def pick(word: jax.Array) -> jax.Array:
        return jnp.minimum((uniform(word) * count).astype(jnp.int32), count - 1)

    if router == "random":
        return pick(draw[2])
    if router == "round_robin":
        return turn % count
    if router == "action":
        return jnp.clip(select(state.route, group), 0, count - 1)
    if router == "power_of_two":
        one = pick(draw[2])
        other = (
            one + 1 + jnp.minimum((uniform(draw[3]) * (count - 1)).astype(jnp.int32), count - 2)
        ) % count
        loads = [select(load, first + r) for r in (one, other)]
        return jnp.where(loads[1] < loads[0], other, one)
    return jnp.argmin(jnp.where(mine, load, NEVER), axis=0).astype(jnp.int32) - first
