"""The simulator of engines: ``lower``, ``init``, ``view`` and ``step``, pure functions.

They know no policy and no reward. One step is one decision epoch (arXiv:2504.07347v3, section 3): the
engines that are free start their batches, which run for t_b, non-preemptively; time passes to the next
event: the end of a batch, the end of a delay, or, while some engine is free, an arrival; tokens are
credited at the end of their batch, and requests with nothing left leave. A lone engine and a network of
engines take the same step; what differs is how requests arrive: in fresh rows of the one table
(``fresh_rows``), or as calls that go from queue to queue (``calls``).

Events of one instant happen in this order: arrivals of new jobs before the instant; ends of batches,
engine by engine, their requests in order of the table; ends of delays; new jobs of that very instant. The
rows of the table in which requests stand, and the gaps between them, also depend on the other environments
of the batch; nothing else does. All functions work on one environment or on a batch of them: batch axes
stand last and need no vmap (though vmap works).
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import once
from llmgym.core.precision import in_32_bits
from llmgym.core.wide import Wide
from llmgym.engine import calls, fresh_rows, service
from llmgym.engine import stream as streams
from llmgym.engine.batches import Begun, begin, end, running
from llmgym.engine.fill import clip
from llmgym.engine.info import StepInfo
from llmgym.engine.make_view import engine_table, view
from llmgym.engine.memory.admission import empty_memory, leave
from llmgym.engine.params import COMPACT_EVERY, Params, lower
from llmgym.engine.state import State, Table, empty_table, empty_totals
from llmgym.engine.view import Batch, View
from llmgym.scenario.arrivals import NEVER

LONG = 2**30
"""Ticks after which it no longer matters how long ago a request was served: 3 hours at 0.01 ms."""


@in_32_bits
@jax.jit
def init(params: Params, key: jax.Array) -> State:
    """An empty system at time 0, with whatever arrives at that very instant.

    ``key`` is a JAX random key or an array of them; its shape is the batch shape.
    """
    data = jnp.moveaxis(jax.random.key_data(key).astype(jnp.uint32), -1, 0)
    shape, plan = data.shape[1:], params.plan
    none = jnp.zeros(shape, jnp.int32)
    stations = () if params.lone else (plan.stations,)
    engines = shape if params.lone else (plan.engines, *shape)
    rows, classes = params.rows + params.fresh, params.classes
    state = State(
        table=empty_table(
            rows,
            (*stations, *shape),
            memory=params.kv_blocks is not None,
            swaps=params.swap_tokens_per_ms is not None,
            calls=not params.lone,
            jobs=bool(plan.routes),
        ),
        busy=jnp.zeros(engines, jnp.int32),
        batches=jnp.zeros(engines, jnp.int32),
        present=none,
        backlog=Wide.zeros(shape),
        clock=Wide.zeros(shape),
        inflow=fresh_rows.nothing(shape) if params.lone else calls.nothing(params, shape),
        stream=streams.start(params.arrivals, data, params.burst, params.first),
        totals=empty_totals(shape, classes),
        steps=none,
        pool=empty_memory(params, rows, shape),
        counters=None if params.service_weights is None else service.start(classes, engines),
    )
    return _arrivals(params, state, state.table.live)[0]


@in_32_bits
@jax.jit
def next_arrival(params: Params, state: State) -> jax.Array:
    """Ticks until the next arrival from outside, 0 if it is overdue; NEVER where none is to come."""
    waiting = fresh_rows if params.lone else calls
    soonest = jnp.minimum(waiting.soonest(params, state), jnp.min(state.stream.wait, axis=0))
    return jnp.maximum(soonest, 0)


@in_32_bits
@jax.jit
def step(
    params: Params,
    state: State,
    batch: Batch,
    limit: jax.Array | None = None,
    seen: View | None = None,
) -> tuple[State, StepInfo]:
    """Start the batches of the free engines and let time pass to the next event.

    Args:
        params: of the scenario.
        state: at the decision.
        batch: of every engine; those that are busy ignore their part.
        limit: most ticks that pass. A batch of a lone engine runs to its end all the same.
        seen: the view of the state, if the caller has made it already.

    With nothing to come and no limit a step without batches takes no time: ``info.duration`` is 0.
    """
    seen = view(params, state) if seen is None else seen
    begun = begin(params, state, seen, *clip(seen, _of_free(seen, batch)))
    size = begun.prefill_tokens + begun.decode_tokens
    table = running(params, state, seen, begun)
    busy = jnp.where(size > 0, begun.ticks, state.busy)
    duration = _duration(params, state, table, busy, limit)
    clock, left = state.clock + duration, jnp.where(busy > 0, busy - duration, 0)
    credited, ended = end(params, table, (busy > 0) & (left == 0), begun, clock)
    credited_tokens, found = (
        ended.prefill_tokens + ended.decode_tokens,
        jnp.sum(begun.found, axis=0),
    )
    moved = replace(
        state,
        table=credited,
        busy=left,
        batches=state.batches + (size > 0),
        backlog=state.backlog - (credited_tokens - params.total(begun.lost - found)),
        clock=clock,
        stream=streams.pass_time(state.stream, duration),
        totals=replace(
            state.totals,
            batches=state.totals.batches + params.total((size > 0).astype(jnp.int32)),
            prefill_tokens=state.totals.prefill_tokens + ended.prefill_tokens,
            decode_tokens=state.totals.decode_tokens + ended.decode_tokens,
            request_ticks=state.totals.request_ticks.add_product(state.present, duration),
        ),
        steps=state.steps + 1,
        pool=leave(params, state, begun.pool, ended.before, ended.requests),
    )
    moved = _hold(moved, duration)
    after, late = _arrivals(params, moved, ended.all, table)
    after, served = _serve(params, state, after, seen, begun, ended.before, credited)
    return after, StepInfo(
        duration=duration,
        batch_ticks=begun.ticks,
        prefill_tokens=begun.prefill_tokens,
        decode_tokens=begun.decode_tokens,
        requests=jnp.sum((begun.batch.tokens > 0).astype(jnp.int32), axis=0),
        completed=after.totals.completed - state.totals.completed,
        arrived=after.totals.arrived - state.totals.arrived,
        dropped=after.totals.dropped - state.totals.dropped,
        clipped=begun.clipped,
        preempted=begun.preempted,
        lost=begun.lost,
        found=begun.found,
        swapped=begun.swapped,
        free_blocks=begun.free_blocks,
        idle=params.total(size) == 0,
        request_ticks=state.present.astype(jnp.float32) * duration.astype(jnp.float32) + late,
        batch=begun.batch,
        finished=ended.all,
        table=credited,
        service=served,
    )


def _of_free(seen: View, batch: Batch) -> Batch:
    """The batches of the engines that are free."""
    preempt = None if batch.preempt is None else batch.preempt & seen.free
    return Batch(jnp.where(seen.free, batch.tokens, 0), preempt)


def _duration(
    params: Params, state: State, table: Table, busy: jax.Array, limit: jax.Array | None
) -> jax.Array:
    """Ticks until a batch or a delay ends, or a request arrives that a free engine might serve."""
    plan = params.plan
    soonest = jnp.where(busy > 0, busy, NEVER)
    free = busy == 0
    if not params.lone:
        soonest, free = jnp.min(soonest, axis=0), jnp.any(free, axis=0)
    if plan.stations > plan.engines:
        until = (table.last_token[:, plan.engines] - state.clock.low).astype(jnp.int32)
        waits = table.decode[:, plan.engines] > 0
        soonest = jnp.minimum(soonest, jnp.min(jnp.where(waits, until, NEVER), axis=0))
    if plan.begins_with_delay:  # which may be over before any batch is
        free = jnp.ones_like(free)
    duration = jnp.minimum(soonest, jnp.where(free, next_arrival(params, state), NEVER))
    if limit is None:
        return jnp.where(duration >= NEVER, 0, duration)
    if params.lone:  # there is no state in the middle of its batch
        limit = jnp.where(busy > 0, NEVER, limit)
    return jnp.minimum(duration, limit)


def _hold(state: State, duration: jax.Array) -> State:
    """Let services of long ago count as 2**30 ticks old: once in a while, and after a long step.

    This keeps differences to the clock inside 32 bits. Requests never served keep their arrival.
    """
    table, now = state.table, state.clock.low

    def hold(last: jax.Array) -> jax.Array:
        old = ((now - last).astype(jnp.int32) > LONG) & (last != table.arrival)
        return jnp.where(old, now - LONG, last)

    due = jnp.any((state.steps % COMPACT_EVERY == 0) | (duration > LONG // COMPACT_EVERY // 2))
    return replace(state, table=replace(table, last_token=once(due, hold, table.last_token)))


def _arrivals(
    params: Params, state: State, ended: jax.Array, before: Table | None = None
) -> tuple[State, jax.Array]:
    """What has ended leaves or goes on, and what is due arrives.

    Args:
        params: of the scenario.
        state: at the end of a step.
        ended: (rows, stations...) requests and delays.
        before: the table before the batches were credited.

    Returns the state; and the ticks since the requests came that joined, summed, float32.
    """
    if params.lone:
        left = jnp.sum(ended.astype(jnp.int32), axis=0)
        totals = replace(state.totals, completed=state.totals.completed + left)
        return fresh_rows.arrive(
            params, replace(state, present=state.present - left, totals=totals)
        )
    return calls.arrive(params, state, ended, before)


def _serve(
    params: Params,
    state: State,
    after: State,
    seen: View,
    begun: Begun,
    before: Table,
    credited: Table,
) -> tuple[State, service.Service | None]:
    """Count the service of the batches that ended, where the scenario weighs it."""
    if params.service_weights is None:
        return after, None
    assert state.counters is not None
    assert before.planned is not None
    now, credited = view(params, after), engine_table(params.plan, credited)
    amount = service.amounts(params.service_weights, before, credited, before.planned)
    waits = now.live & ~now.started
    idle = jnp.stack([jnp.any((now.job_class == k) & waits, axis=0) for k in range(params.classes)])
    looked = service.look(state.counters, seen, begun.batch.tokens)
    counters, served = service.advance(looked, amount, before, idle, now.free)
    return replace(after, counters=counters), served


def clock_ms(params: Params, state: State) -> np.ndarray:
    """Simulated time in milliseconds, float64, on the host."""
    # The decimal that the float32 stands for.
    return state.clock.to_numpy() * float(str(np.asarray(params.tick_ms, np.float32)))


__all__ = [
    "COMPACT_EVERY",
    "Params",
    "State",
    "StepInfo",
    "clock_ms",
    "init",
    "lower",
    "next_arrival",
    "step",
    "view",
]
