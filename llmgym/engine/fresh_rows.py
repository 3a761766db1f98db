"""How requests arrive at a lone engine: drawn in advance into the fresh rows of its table.

An arrival moves no data; once in a while, all requests move to the top rows and new ones are drawn.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import class_sums, compacted, float_sum, prefix_sum, rows
from llmgym.engine import stream as streams
from llmgym.engine.params import COMPACT_EVERY, Params
from llmgym.engine.state import FreshRows, State, Table, high_of
from llmgym.scenario.arrivals import NEVER


def nothing(shape: tuple[int, ...]) -> FreshRows:
    """No request drawn yet, for batch axes ``shape``."""
    none = jnp.zeros(shape, jnp.int32)
    return FreshRows(none, none)


def _fresh(state: State) -> FreshRows:
    assert isinstance(state.inflow, FreshRows)
    return state.inflow


def soonest(params: Params, state: State) -> jax.Array:
    """Ticks until the first request in the fresh rows arrives; NEVER where there is none."""
    until = (state.table.arrival[params.slots :] - state.clock.low).astype(jnp.int32)
    return jnp.min(jnp.where(_coming(params, state), until, NEVER), axis=0)


def _coming(params: Params, state: State) -> jax.Array:
    """Which fresh rows hold a request that has not arrived yet."""
    row = rows(state.table.arrival[params.slots :])
    return (row >= _fresh(state).joined) & (row < _fresh(state).drawn)


def arrive(params: Params, state: State) -> tuple[State, jax.Array]:
    """Let every request join whose time has come; also the ticks that they have waited, summed, float32."""
    scheduled = state.steps % COMPACT_EVERY == 0

    def wanting(state: State) -> jax.Array:
        fresh = _fresh(state)
        spent = fresh.joined == fresh.drawn
        overdue = jnp.min(state.stream.wait, axis=0) <= 0
        return spent & overdue | scheduled & (fresh.joined > 0)

    def refill(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, late = carry
        state, waited = _join(params, _compact(params, state, wanting(state)))
        return state, late + waited

    # Once in COMPACT_EVERY steps, or when more arrive than were drawn in advance.
    return jax.lax.while_loop(lambda c: jnp.any(wanting(c[0])), refill, _join(params, state))


def _join(params: Params, state: State) -> tuple[State, jax.Array]:
    """Wake the fresh rows that are due; those that find all slots taken are dropped."""
    table, totals, slots, fresh = state.table, state.totals, params.slots, _fresh(state)
    ago = (state.clock.low - table.arrival[slots:]).astype(jnp.int32)
    due = _coming(params, state) & (ago >= 0)
    count = jnp.sum(due.astype(jnp.int32), axis=0)
    if params.kv_blocks is None:
        taken = jnp.minimum(count, slots - state.present)
        joins = due & (rows(due) < fresh.joined + taken)
    else:  # what could never fit into memory is dropped
        sampled = params.prompt_samples & (table.prompt[slots:] > 0)
        longest = table.prompt[slots:] + table.output[slots:] - sampled
        fits = due & (longest <= params.kv_blocks * params.block_size)
        joins = fits & (prefix_sum(fits) <= slots - state.present)
        taken = jnp.sum(joins.astype(jnp.int32), axis=0)
    prefill, decode = (jnp.where(joins, c[slots:], 0) for c in (table.prompt, table.output))
    work = prefill + decode
    if params.prompt_samples:
        work = work - ((prefill > 0) & (decode > 0))

    def wake(column: jax.Array, tokens: jax.Array) -> jax.Array:
        return column.at[slots:].add(tokens)

    waited = jnp.where(joins, ago, 0)
    dropped_of_class = totals.dropped_of_class
    if dropped_of_class is not None:
        dropped_of_class += class_sums(table.job_class[slots:], due & ~joins, len(dropped_of_class))
    state = replace(
        state,
        table=replace(
            table, prefill=wake(table.prefill, prefill), decode=wake(table.decode, decode)
        ),
        inflow=replace(fresh, joined=fresh.joined + count),
        present=state.present + taken,
        backlog=state.backlog + jnp.sum(work, axis=0),
        totals=replace(
            totals,
            arrived=totals.arrived + count,
            dropped=totals.dropped + count - taken,
            request_ticks=totals.request_ticks.add_sum(waited),
            dropped_of_class=dropped_of_class,
        ),
    )
    return state, float_sum(waited)


def _compact(params: Params, state: State, wanted: jax.Array) -> State:
    """Move all requests to the top rows and draw new ones to come, where it is ``wanted``."""
    table, slots, most, fresh = state.table, params.slots, params.fresh, _fresh(state)
    source = compacted(table.live)[:slots]
    index = jnp.where(wanted, jnp.maximum(source, 0), rows(source))
    gone = wanted & (source < 0)

    kept = jnp.where(wanted, fresh.drawn - fresh.joined, fresh.drawn)
    limit = jnp.where(wanted, most - kept, 0)
    drawn, stream = streams.draw(
        params.arrivals, params.lengths, state.stream, params.burst, most, limit, params.first
    )
    row = rows(drawn.wait)
    old = slots + jnp.minimum(row + jnp.where(wanted, fresh.joined, 0), most - 1)
    new = jnp.clip(row - kept, 0, most - 1)
    keeps = row < kept
    coming = _rows_to_come(state, drawn)

    def move(column: jax.Array, coming: jax.Array) -> jax.Array:
        top = jnp.where(
            gone, jnp.zeros((), column.dtype), jnp.take_along_axis(column, index, axis=0)
        )
        bottom = jnp.where(
            keeps | ~wanted,
            jnp.take_along_axis(column, old, axis=0),
            jnp.take_along_axis(coming, new, axis=0),
        )
        return jnp.concatenate([top, bottom])

    pool = state.pool
    if pool is not None:  # the blocks of a request move with it
        held = jnp.take_along_axis(pool.table, index[:, None], axis=0)
        pool = replace(pool, table=pool.table.at[:slots].set(held))
    return replace(
        state,
        pool=pool,
        table=jax.tree.map(move, table, coming),
        inflow=FreshRows(jnp.where(wanted, 0, fresh.joined), kept + drawn.count),
        stream=stream,
    )


def _rows_to_come(state: State, drawn: streams.Drawn) -> Table:
    """Requests to come as rows of a table: without tokens until they arrive."""
    table, arrival = state.table, state.clock.low + drawn.wait.astype(jnp.uint32)
    none, never = jnp.zeros_like(drawn.prefill), jnp.zeros_like(arrival)
    return Table(
        prefill=none,
        decode=none,
        prompt=drawn.prefill,
        output=drawn.decode,
        arrival=arrival,
        first_token=never,
        last_token=arrival,
        request=drawn.request,
        job_class=drawn.job_class,
        arrival_high=high_of(state.clock, arrival),
        first_high=jnp.zeros(arrival.shape, jnp.uint16),
        preemptions=None if table.preemptions is None else none,
        admitted=None if table.admitted is None else none,
        swapped=None if table.swapped is None else none > 0,
    )
