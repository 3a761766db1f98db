"""The JAX network against the plain event simulator, batch by batch and to the tick."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policies
from network_recording import Recorded, record, run, trace
from network_reference import Draws, Loop, NetworkSimulator, Site, Step
from network_sites import JOBS, reference_steps, simulators
from network_workflows import FORMS
from network_workloads import (
    BATCH_TIME_KINDS,
    MEMORIES,
    POLICIES,
    ROUTERS,
    Structure,
    random_network,
    structures,
)
from reference import Engine, affine

from llmgym.engine.params import Params
from llmgym.engine.queues import tidy
from llmgym.engine.simulator import init, lower
from llmgym.engine.state import State
from llmgym.evaluation.rollout import keys
from llmgym.scenario import arrivals
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.engine import Engine as ScenarioEngine
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType

STEPS, ENVS = 144, 4
"""Epochs of a run; environments of a network."""

REPEATS = 3
"""Random networks of a structure under every policy."""


def compare(recorded: Recorded, simulator: NetworkSimulator) -> None:
    """Every batch, every time and every count must be equal, and nothing may get lost."""
    while simulator.now < recorded.end:
        assert simulator.step(), "the reference has nothing left to do"
    for engine, server in enumerate(simulator.servers):
        assert server.batches == recorded.batches[engine], f"engine {engine}"
    assert simulator.now == recorded.end
    limited = any(server.engine.memory is not None for server in simulator.servers)
    assert limited or not recorded.clipped  # a batch may be cut where memory does not suffice
    assert set(simulator.decisions) <= set(recorded.epochs) <= set(simulator.events)
    assert simulator.finished == recorded.finished
    for count in ("arrived", "dropped", "present", "completed", "backlog"):
        assert getattr(simulator, count) == getattr(recorded, count), count
    assert recorded.arrived - recorded.dropped - recorded.completed == recorded.present
    for count in ("preempted", "found"):
        assert getattr(recorded, count) == simulator.count(count), count
    computed_again = simulator.count("lost") - simulator.count("found")
    assert recorded.served + recorded.backlog == simulator.joined + computed_again


def lowered(structure: Structure, seed: int) -> Params:
    """The network of a seed, with tables of the sizes that the structure says."""
    network = random_network(structure, seed)
    small = {"fresh": structure.fresh, "coming": structure.fresh}
    return replace(lower(network.scenario, network.burst), **small)


def cases(
    structure: Structure, seed: int, **other: Any
) -> Iterator[tuple[Recorded, NetworkSimulator]]:
    """A random network in ENVS environments: what JAX did, and the simulator to compare with.

    ``other`` are changes to the site of the simulator, or the token budget of its policy.
    """
    number, environments = seed % len(POLICIES), keys(seed, ENVS)
    network, physics = random_network(structure, seed), lowered(structure, seed)
    recorded = record(physics, environments, number, network.token_budget, STEPS)
    plain = simulators(network, environments, number, **other)
    for one, simulator in zip(recorded, plain, strict=True):
        assert one.arrived < JOBS
        yield one, simulator


def run_structure(structure: Structure) -> None:
    """Every policy on random networks; and the networks must be worth comparing."""
    seen: Counter[str] = Counter()
    for seed in range(REPEATS * len(POLICIES)):
        for recorded, simulator in cases(structure, seed):
            compare(recorded, simulator)
            seen["batches"] += sum(len(batches) for batches in recorded.batches)
            for count in ("dropped", "completed"):
                seen[count] += getattr(recorded, count)
            for count in ("passed_over", "rounds", "refused"):
                seen[count] += getattr(simulator, count)
            for count in ("preempted", "found", "lost", "swapped"):
                seen[count] += simulator.count(count)
    assert seen["batches"] > 0.4 * STEPS * ENVS * REPEATS * len(POLICIES)
    assert min(seen["dropped"], seen["completed"]) > 8
    steps = [s for job in reference_steps(random_network(structure, 0).scenario) for s in job]
    assert (seen["rounds"] > 20) == any(s.loop for s in steps)
    assert (seen["passed_over"] > 20) == any(s.probability for s in steps)
    memories = set(structure.memories)
    assert (seen["preempted"] > 50) == (seen["refused"] > 50) == (memories != {"none"})
    assert (seen["lost"] > 100) == bool(memories & {"recompute", "prefix"})
    assert (seen["swapped"] > 1000) == ("swap" in memories)
    assert (seen["found"] > 500) == ("prefix" in memories)


ALL = structures()
QUICK, SLOW = ALL[3:4], ALL[:3] + ALL[4:]


@pytest.mark.parametrize("structure", QUICK, ids=lambda s: s.label)
def test_random_networks_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)


@pytest.mark.slow
@pytest.mark.parametrize("structure", SLOW, ids=lambda s: s.label)
def test_more_random_networks_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)


def test_all_kinds_are_among_them() -> None:
    assert len(ALL) * len(POLICIES) * REPEATS >= 210  # networks, each in ENVS environments
    assert {s.form for s in ALL} == {*FORMS, "replay"}
    assert {s.router for s in ALL if max(s.engines) > 1} == set(ROUTERS)
    assert {s.cap for s in ALL} == {None, "batch", "resident"}
    assert {s.batch_time for s in ALL} == set(BATCH_TIME_KINDS)
    assert {s.types for s in ALL} == {1, 2, 3}
    scenarios = [random_network(s, 0).scenario for s in ALL]
    types = [job for scenario in scenarios for job in scenario.job_types]
    assert {type(job.arrivals) for job in types} == set(arrivals.ARRIVALS.values())
    stages = [stage for job in types for stage in job.stages]
    loops = [stage.repeat for stage in stages if stage.repeat]
    assert any(loop.rounds for loop in loops) and any(loop.probability for loop in loops)
    assert any(stage.is_delay and not stage.after for stage in stages)
    assert any(stage.inherits and len(stage.after or ()) > 1 for stage in stages)
    assert any(stage.probability and len(stage.after or ()) > 1 for stage in stages)
    assert any(stage.probability and not stage.after for stage in stages)


def test_most_networks_have_memory_or_what_depends_on_it() -> None:
    featured = [s for s in ALL if s.featured]
    assert len(featured) * len(POLICIES) * REPEATS >= 150
    assert {memory for s in ALL for memory in s.memories} == set(MEMORIES)
    mixed = [set(s.memories) for s in ALL if len(set(s.memories)) > 1]
    assert sum("none" in memories for memories in mixed) >= 3
    assert not any({"prefix", "swap"} <= memories for memories in mixed)
    assert {s.first_token for s in featured} == {"decode", "prefill"}
    assert {s.cap for s in featured} == {None, "batch", "resident"}
    assert {s.router for s in featured if max(s.engines) > 1} == set(ROUTERS)
    engines = [e for s in featured for e in random_network(s, 0).scenario.engines]
    assert sum(e.batch_time.needs_attention for e in engines) >= 5


@pytest.mark.parametrize("change", ["token_budget", "router", "slots"])
def test_a_difference_is_noticed(change: str) -> None:
    structure = ALL[3]
    other = {"token_budget": 3, "router": "round_robin", "slots": structure.slots - 1}
    noticed = 0
    for recorded, simulator in cases(structure, 5, **{change: other[change]}):
        try:
            compare(recorded, simulator)
        except AssertionError:
            noticed += 1
    assert noticed >= ENVS - 1


@pytest.mark.slow
def test_loop_scan_and_vmap_end_in_equal_states() -> None:
    # Where calls stand in a table, and with what gaps, depends on the environments beside it; what stands
    # there, and all else, does not.
    physics, environments = replace(lowered(ALL[12], 0), fresh=256), keys(5, 3)
    settings = jnp.int32(0), jnp.int32(12)
    scanned, _ = trace(physics, environments, *settings, 40)
    one = jax.jit(partial(run, steps=1))
    state = jax.jit(init)(physics, environments)
    for _ in range(40):
        state, _ = one(physics, state, environments, *settings)

    def alone(key: jax.Array) -> Any:
        return run(physics, init(physics, key), key, *settings, steps=40)[0]

    mapped = jax.jit(jax.vmap(alone, out_axes=-1))(environments)
    assert (np.asarray(scanned.totals.batches) > 0).all()

    @jax.jit
    def without_gaps(state: State) -> State:
        # The fraction of a tick that a gap leaves is the last digits of a float, which compiled forms
        # round differently; whole ticks are what counts.
        after = tidy(physics, state)
        stream = replace(after.stream, memory=after.stream.memory[:, :1])
        return replace(after, stream=stream)

    scanned = without_gaps(scanned)
    for other in (state, mapped):
        jax.tree.map(np.testing.assert_array_equal, scanned, without_gaps(other))


def test_a_wide_fork_has_room_to_join() -> None:
    # All branches join at one instant: none may fall behind the end of the table.
    long = {"prefill": 40, "decode": 0, "engine": "b"}
    branches = [Stage(**long, name=f"branch-{n}", after=("root",)) for n in range(20)]
    job = JobType(arrivals.Poisson(1), (Stage(40, 0, engine="a", name="root"), *branches))
    engines = tuple(ScenarioEngine(Affine(1, 0), 8, name=name) for name in "ab")
    assert lower(Scenario(engines, (job,), slots=4)).fresh >= len(branches)


class NoDraws(Draws):
    """Lengths by hand, (prompt, output) of each stage of the only job type; nothing else is random."""

    def __init__(self, *lengths: tuple[int, int]) -> None:
        self.given = lengths

    def lengths(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int]:
        return self.given[stage]

    def uniform(self, what: str, job: tuple[int, int], stage: int, visit: int) -> float:
        return 0.5


def by_hand(steps: list[Step], numbers: Draws, arriving: list[int]) -> NetworkSimulator:
    """Two engines, t_b = 2 and 3 ticks, Sarathi-Serve with a budget of 4, until all is done."""
    engines = tuple((Engine(affine(ms, 0), 4, tick_ms=Fraction(1)),) for ms in (2, 3))
    coming = [(arrival, 0, n) for n, arrival in enumerate(arriving)]
    site = Site(engines, "fewest_requests", 8, Fraction(1))
    simulator = NetworkSimulator(site, [steps], reference_policies.sarathi(), coming, numbers)
    while simulator.step():
        pass
    return simulator


def test_the_reference_forks_and_joins_by_hand() -> None:
    # Root: 0-2. Branch at engine 1: 2-5; delay of 4: 2-6. Join with their contexts, 3 + 1: 6-8, 8-10.
    join = Step(0, (1, 2), inherits=True)
    steps = [Step(0, ()), Step(1, (0,)), Step(None, (0,)), join]
    simulator = by_hand(steps, NoDraws((1, 0), (3, 0), (4, 0), (0, 1)), [0])
    ends = {stage: end for (_, _, stage, _), (_, end) in simulator.finished.items()}
    assert ends == {0: 2, 1: 5, 2: 6, 3: 10}
    prompt, output = simulator.servers[0].batches[1:]
    assert (prompt.start, prompt.tokens) == (6, 4) and (output.start, output.tokens) == (8, 1)


def test_the_reference_loops_and_chooses_by_hand() -> None:
    # Two rounds of 0 and, of the choice, 2; the second job waits in turn. Stage 1 is passed over.
    steps = [
        Step(0, ()),
        Step(1, (0,), probability=0.4),
        Step(1, (0,), probability=0.6),
        Step(0, (1, 2), loop=Loop(0, rounds=2)),
    ]
    simulator = by_hand(steps, NoDraws((4, 0), (1, 0), (1, 0), (4, 0)), [0])
    ends = {name[2:]: end for name, (_, end) in simulator.finished.items()}
    assert ends == {(0, 0): 2, (2, 0): 5, (3, 0): 7, (0, 1): 9, (2, 1): 12, (3, 1): 14}
    assert (simulator.completed, simulator.present, simulator.passed_over) == (1, 0, 2)
