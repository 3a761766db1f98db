"""How calls choose among the replicas of an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import of_class, rows, select
from llmgym.core.pytree import register
from llmgym.engine import stream as streams
from llmgym.engine.make_view import engine_table
from llmgym.engine.memory.paged import cached_tokens
from llmgym.engine.params import Params
from llmgym.engine.plan import CHOICE
from llmgym.engine.state import Queues, State, Table
from llmgym.scenario.arrivals import NEVER, uniform


@register
@dataclass(frozen=True)
class Joining:
    """Calls about to join, (several, ...), in order."""

    valid: jax.Array
    job_class: jax.Array
    number: jax.Array
    arrival: jax.Array
    job_arrival: jax.Array
    job_arrival_high: jax.Array
    job_row: jax.Array | None  # where some jobs are not chains
    visit: jax.Array | None  # where a call may come again
    context: jax.Array | None  # where calls inherit it, or its sum is kept
    early: jax.Array  # routed by the loads before the present moment


def route(
    params: Params,
    state: State,
    calls: Joining,
    tokens: jax.Array,
    load: jax.Array | None,
    extra: jax.Array | None,
) -> tuple[jax.Array, State]:
    """The station (several, ...) that each call goes to: its engine, or one of its replicas.

    Args:
        params: of the scenario.
        state: as it is now.
        calls: that are about to join.
        tokens: (several, ...) of each call.
        load: (engines, ...) what the router looks at; None where there are no replicas.
        extra: (engines, ...) what calls that are ``early`` see on top of that load.

    Also returns the state, in which the turns of the routed groups have moved on.
    """
    plan, inflow = params.plan, state.inflow
    assert isinstance(inflow, Queues)
    group = of_class(plan.group_of, calls.job_class)
    first = of_class([g if g < 0 else plan.groups[g][0] for g in plan.group_of], calls.job_class)
    station = jnp.where(group < 0, plan.engines, first)
    if load is None:
        return station, state
    member = jnp.asarray(plan.engine_group()).reshape((-1,) + (1,) * state.present.ndim)
    index = rows(load)
    turns, chosen = inflow.turns, []
    draws = None
    if plan.router in ("random", "power_of_two"):
        of_choice = calls.job_class + CHOICE
        draws = streams.words(state.stream.key, of_choice, calls.number, 2, calls.visit)
    for n in range(calls.valid.shape[0]):
        mine = member == group[n]
        count = jnp.sum(mine.astype(jnp.int32), axis=0)
        turn = select(turns, group[n])
        seen = load if extra is None else load + jnp.where(calls.early[n], extra, 0)
        named = select(inflow.route, group[n])
        draw = None if draws is None else draws[:, n]
        replica = _replica(plan.router, seen, mine, first[n], count, turn, draw, named)
        to = jnp.where(group[n] < 0, plan.engines, first[n] + replica)
        chosen.append(to)
        here = (index == to) & calls.valid[n]
        load = load + jnp.where(here, _weight(plan.router, tokens[n]), 0)
        groups = rows(turns) == group[n]
        turns = turns + (groups & calls.valid[n])
    station, turns = jax.lax.optimization_barrier((jnp.stack(chosen), turns))
    return station, replace(state, inflow=replace(inflow, turns=turns))


def joined_loads(
    params: Params, load: jax.Array, calls: Joining, tokens: jax.Array, station: jax.Array
) -> jax.Array:
    """The loads (engines, ...) when the calls have joined at their stations.

    Args:
        params: of the scenario.
        load: (engines, ...) before.
        calls: that join.
        tokens: (several, ...) of each call; one without tokens adds nothing.
        station: (several, ...) where each goes, as ``route`` gives it.
    """
    for n in range(calls.valid.shape[0]):
        here = (rows(load) == station[n]) & calls.valid[n] & (tokens[n] > 0)
        load = load + jnp.where(here, _weight(params.plan.router, tokens[n]), 0)
    return load


def _weight(router: str, tokens: jax.Array) -> jax.Array | int:
    """What a call that joins adds to the load that the router looks at."""
    if router == "fewest_tokens":
        return tokens
    return 0 if router == "least_kv" else 1


def loads(params: Params, table: Table) -> jax.Array:
    """What the router looks at, (engines, ...): tokens left, tokens in KV memory, or requests."""
    table = engine_table(params.plan, table)
    if params.plan.router == "fewest_tokens":
        return jnp.sum(table.prefill + table.decode, axis=0)
    if params.plan.router == "least_kv":
        return jnp.sum(_held(params, table), axis=0)
    return jnp.sum(table.live.astype(jnp.int32), axis=0)


def _held(params: Params, table: Table) -> jax.Array:
    """Tokens of each request in KV memory; of engines without one the tokens computed so far."""
    computed = table.prompt - table.prefill + table.output - table.decode
    computed = jnp.where(table.live, computed, 0)
    if params.kv_blocks is None:
        return computed
    cached = cached_tokens(table, params.prompt_samples)
    if table.swapped is not None:
        cached = jnp.where(table.swapped, 0, cached)
    limited = jnp.asarray(params.limited)
    return jnp.where(limited.reshape(-1, *[1] * (cached.ndim - 2)), cached, computed)


def _replica(
    router: str,
    load: jax.Array,
    mine: jax.Array,
    first: jax.Array,
    count: jax.Array,
    turn: jax.Array,
    draw: jax.Array | None,
    named: jax.Array,
) -> jax.Array:
    """The number of the replica within its group; the first at a tie."""
    count = jnp.maximum(count, 1)

    def pick(word: jax.Array) -> jax.Array:
        return jnp.minimum((uniform(word) * count).astype(jnp.int32), count - 1)

    if router == "random":
        assert draw is not None
        return pick(draw[2])
    if router == "round_robin":
        return turn % count
    if router == "action":
        return jnp.clip(named, 0, count - 1)
    if router == "power_of_two":
        assert draw is not None
        one = pick(draw[2])
        other = (
            one + 1 + jnp.minimum((uniform(draw[3]) * (count - 1)).astype(jnp.int32), count - 2)
        ) % count
        loads = [select(load, first + r) for r in (one, other)]
        return jnp.where(loads[1] < loads[0], other, one)
    return jnp.argmin(jnp.where(mine, load, NEVER), axis=0).astype(jnp.int32) - first
