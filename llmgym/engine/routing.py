"""How calls choose among the replicas of an engine."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import rows, select
from llmgym.engine import stream as streams
from llmgym.engine.jobs import CHOICE
from llmgym.engine.network_state import CallTable, Joining, Network, NetworkState
from llmgym.engine.network_view import engine_table
from llmgym.engine.plan import Plan
from llmgym.scenario.arrivals import NEVER, uniform


def route(
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
    load = loads(plan, state.table)
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
        seen = load if extra is None else load + jnp.where(calls.early[n], extra, 0)
        replica = _replica(plan.router, seen, mine, first[n], count, turn, draw, state, group[n])
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


def loads(plan: Plan, table: CallTable) -> jax.Array:
    """What the router looks at, (engines, ...): tokens left, tokens in memory, or requests."""
    table = engine_table(plan, table)
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
