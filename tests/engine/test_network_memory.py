"""KV memory in the plain network simulator: one station of it against the JAX engine, batch by batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from network_recording import form
from network_reference import NetworkSimulator
from network_sites import simulators
from network_workloads import POLICIES, Structure, random_network, structures
from recording import Recorded, environment, facts
from single_stations import SINGLES, single

from llmgym.engine.params import Params
from llmgym.engine.simulator import init, lower, step, view
from llmgym.engine.state import State
from llmgym.evaluation.rollout import keys

STEPS, ENVS, REPEATS = 128, 4, 3
"""Batches of a run; environments of a scenario; random scenarios under every policy."""


@partial(jax.jit, static_argnames="steps")
def trace(
    physics: Params, keys: jax.Array, number: jax.Array, token_budget: jax.Array, steps: int
) -> tuple[State, dict[str, jax.Array]]:
    """``steps`` batches of the JAX engine under policy ``number`` of POLICIES (axis 0: steps)."""

    def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
        seen = view(physics, state)
        batch = form(number, token_budget, keys, seen)
        after, info = step(physics, state, batch)
        return after, facts(state, seen, info) | {
            "preempted": info.preempted,
            "lost": info.lost,
            "swapped": info.swapped,
            "found_tokens": jnp.sum(info.found, axis=0),
        }

    return jax.lax.scan(body, init(physics, keys), None, length=steps)


def cases(
    structure: Structure, seed: int
) -> Iterator[tuple[Recorded, dict[str, int], NetworkSimulator]]:
    """What JAX did with a single engine, its counts, and the network of one to compare with."""
    network, environments, number = single(structure, seed), keys(seed, ENVS), seed % len(POLICIES)
    physics = replace(lower(network.scenario, network.burst), fresh=structure.fresh)
    if physics.prefixes is not None:  # so that one program serves all seeds
        physics = replace(physics, prefixes=replace(physics.prefixes, most=64))
    settings = jnp.int32(number), jnp.int32(network.token_budget)
    state, out = jax.device_get(trace(physics, environments, *settings, STEPS))
    plain = simulators(network, environments, number)
    for env, simulator in enumerate(plain):
        names = {"found": "found_tokens"} | {k: k for k in ("preempted", "lost", "swapped")}
        counts = {
            k: int(out[name][:, env].sum()) for k, name in names.items() if out[name] is not None
        }
        yield environment(out, state, env), counts, simulator


def compare(recorded: Recorded, counts: dict[str, int], simulator: NetworkSimulator) -> None:
    """Every batch, every time and every count must be equal."""
    while simulator.now < recorded.end:
        assert simulator.step(), "the reference has nothing left to do"
    (server,) = simulator.servers
    calls = [
        replace(ran, prefill=_requests(ran.prefill), decode=_requests(ran.decode))
        for ran in server.batches
    ]
    assert calls == recorded.batches
    assert _requests(simulator.finished) == recorded.finished
    assert simulator.now == recorded.end
    for count in ("arrived", "dropped", "present", "backlog"):
        assert getattr(simulator, count) == getattr(recorded, count), count
    assert simulator.dropped == simulator.refused  # that slots last is what the two may differ in
    assert {k: simulator.count(k) for k in counts} == counts


def _requests(calls: dict[Any, Any]) -> dict[Any, Any]:
    """The calls by the names of a single engine: job type and number."""
    return {name[:2]: value for name, value in calls.items()}


@pytest.mark.parametrize(
    "structure",
    [pytest.param(s, marks=[pytest.mark.slow] * (n > 0)) for n, s in enumerate(SINGLES)],
    ids=lambda s: s.label,
)
def test_one_station_is_the_single_engine(structure: Structure) -> None:
    seen: Counter[str] = Counter()
    for seed in range(REPEATS * len(POLICIES)):
        for recorded, counts, simulator in cases(structure, seed):
            compare(recorded, counts, simulator)
            seen.update(counts)
            seen["refused"] += simulator.refused
            seen["completed"] += simulator.completed
            seen["batches"] += len(recorded.batches)
    limited = structure.memories != ("none",)
    assert seen["batches"] > 0.5 * STEPS * ENVS * REPEATS * len(POLICIES)
    assert seen["completed"] > 1000
    assert (seen["preempted"] > 25) == (seen["refused"] > 10) == limited
    assert (seen["found"] > 500) == ("prefix" in structure.memories)
    assert (seen["swapped"] > 200) == ("swap" in structure.memories)
    assert (seen["lost"] > 50) == (limited and "swap" not in structure.memories)


FEATURED = [s for s in structures(plain=False) if s.featured]


@pytest.mark.parametrize(
    "structure",
    [pytest.param(s, marks=[pytest.mark.slow] * (n > 0)) for n, s in enumerate(FEATURED)],
    ids=lambda s: s.label,
)
def test_random_networks_lose_no_token_and_no_block(structure: Structure) -> None:
    preempted = 0
    for seed in range(len(POLICIES)):
        network = random_network(structure, seed)
        for simulator in simulators(network, keys(seed, 2), seed):
            for _ in range(STEPS):
                if not simulator.step():
                    break
                check(simulator)
            preempted += simulator.count("preempted")
    assert (preempted > 2) == any(memory != "none" for memory in structure.memories)


def check(simulator: NetworkSimulator) -> None:
    """What is left to compute is what joined, less what ran; and blocks are held once, or free."""
    ran = sum(batch.tokens for server in simulator.servers for batch in server.batches)
    running = sum(sum((server.running or {}).values()) for server in simulator.servers)
    computed_again = simulator.count("lost") - simulator.count("found")
    assert ran - running + simulator.backlog == simulator.joined + computed_again
    assert simulator.arrived == simulator.dropped + simulator.completed + simulator.present
    for server in simulator.servers:
        memory, now = server.engine.memory, server.running or {}
        if memory is None:
            continue
        inside = [c for c in server.calls if c.resident or c.name in now]
        needed = {c.name: memory.needed(c, now.get(c.name, 0)) for c in inside}
        if memory.pool is None:
            assert sum(needed.values()) <= memory.kv.blocks
        else:
            assert {c.name: len(c.blocks) for c in server.calls if c.blocks} == needed
            held = {block for call in server.calls for block in call.blocks}
            assert not held & set(memory.pool.free)
            assert len(held) + len(memory.pool.free) == memory.kv.blocks
