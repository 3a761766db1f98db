"""Policies with a memory: one result however they run, memories that wait with their engines, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from remembering import COUNTING, MOODY

import llmgym
from llmgym import LLMGymError, baselines
from llmgym.agents.trials import measure_policy
from llmgym.baselines import decisions
from llmgym.engine import simulator
from llmgym.engine.view import Batch, View
from llmgym.evaluation import fleet, policies, rollout
from llmgym.reproduce.watch import watch
from llmgym.theory.capacity import at_load

ENVS, STEPS = 3, 60
SCENARIOS = {
    "engine": at_load(llmgym.scenario("paper-figure-1", slots=64), 0.8),
    "network": at_load(llmgym.scenario("rybko-stolyar", slots=32), 0.6),
}
both = pytest.mark.parametrize("name", SCENARIOS)
slow_network = pytest.mark.parametrize(
    "name", ["engine", pytest.param("network", marks=pytest.mark.slow)]
)


def same(one: Any, other: Any) -> None:
    """Every array, bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module", params=SCENARIOS)
def run(request: pytest.FixtureRequest) -> tuple[Any, jax.Array, rollout.Carry]:
    """Parameters, keys, and the end of STEPS steps in one chunk."""
    physics, keys = simulator.lower(SCENARIOS[request.param]), rollout.keys(1, ENVS)
    carry = rollout.begin(physics, MOODY, keys)
    carry, _ = rollout.run_chunk(physics, carry, keys, None, MOODY, STEPS, False)
    assert float(np.min(carry.memory["mean"])) > 0
    return physics, keys, carry


def test_chunks_of_any_length_end_alike(run: Any) -> None:
    physics, keys, expected = run
    carry = rollout.begin(physics, MOODY, keys)
    for length in (20, 20, 20):
        carry, _ = rollout.run_chunk(physics, carry, keys, None, MOODY, length, False)
    same(carry, expected)


def test_a_loop_is_a_scan(run: Any) -> None:
    physics, keys, expected = run
    step = jax.jit(lambda carry: rollout.step(physics, MOODY, carry, keys)[0])
    carry = rollout.begin(physics, MOODY, keys)
    for _ in range(STEPS):
        carry = step(carry)
    same(carry, expected)


def test_a_row_of_a_vmap_is_an_environment(run: Any) -> None:
    physics, keys, expected = run

    def one(key: jax.Array) -> rollout.Carry:
        state = simulator.init(physics, key)
        carry = rollout.Carry(state, decisions.start(MOODY, simulator.view(physics, state)))
        return rollout.scan(physics, MOODY, carry, key, STEPS)[0]

    rows = jax.jit(jax.vmap(one))(keys)
    last = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), rows)
    same(last.memory, expected.memory)
    same(last.state.totals, expected.state.totals)
    same(last.state.clock, expected.state.clock)


@both
def test_a_memory_counts_the_decisions_of_its_engine(name: str) -> None:
    """It stays where an engine is busy."""
    physics, keys = simulator.lower(SCENARIOS[name]), rollout.keys(2, ENVS)

    @jax.jit
    def free(carry: rollout.Carry) -> tuple[rollout.Carry, jax.Array]:
        return rollout.scan(
            physics, COUNTING, carry, keys, STEPS, keep=lambda epoch: (epoch.view.free, epoch.told)
        )

    _, (free_engines, counts) = free(rollout.begin(physics, COUNTING, keys))
    np.testing.assert_array_equal(np.cumsum(free_engines, axis=0), counts)
    busy = 0 if name == "engine" else 10
    assert (~np.asarray(free_engines)).sum() >= busy


@both
def test_a_memory_stands_still_at_the_horizon(name: str) -> None:
    scenario = SCENARIOS[name]
    physics, keys = simulator.lower(scenario), rollout.keys(0, ENVS)
    carry, decided = rollout.begin(physics, COUNTING, keys), 0
    for horizon in (5_000, 40_000):  # of one run: the second goes on from the first
        for after, steps in rollout.rollout(physics, COUNTING, carry, keys, horizon):
            carry = after
            going = steps.start.to_numpy() < horizon
            decided = decided + going.sum(axis=0)
            assert not going[-1].all() or name == "engine"
    count = np.asarray(carry.memory)
    assert (count <= decided).all() and (count.max(axis=0) > 0).all()
    if name == "engine":
        np.testing.assert_array_equal(count, decided)
        assert (np.asarray(carry.state.steps) > decided).all()  # they stood still in between


@slow_network
def test_a_memory_that_changes_nothing_changes_nothing(name: str) -> None:
    """simulate, with a warm-up, gives what the policy without the memory gives."""
    chosen = {"duration_s": 3.0, "warmup_s": 1.0, "num_envs": 2, "record": False}
    plain = llmgym.simulate(SCENARIOS[name], "sarathi", **chosen).raw
    found = llmgym.simulate(SCENARIOS[name], COUNTING, **chosen).raw
    assert plain.keys() == found.keys()
    for key, column in plain.items():
        np.testing.assert_array_equal(column, found[key], err_msg=key)


@pytest.mark.slow
def test_it_drives_every_other_measurement() -> None:
    scenario = SCENARIOS["engine"]
    sarathi = baselines.make("sarathi")
    one, other = (
        llmgym.stability(scenario, p, replications=2, horizon_s=5.0) for p in (sarathi, COUNTING)
    )
    assert one == other
    one, other = (
        llmgym.estimate_capacity(scenario, p, "bisection", replications=2, requests=20)
        for p in (sarathi, COUNTING)
    )
    assert one == other
    look = lambda view, info: {"tokens": info.prefill_tokens}  # noqa: E731
    same(*(watch(scenario, p, look, 30, num_envs=2) for p in (sarathi, COUNTING)))
    settings = {"num_envs": 2, "warmup_s": 0.5, "duration_s": 1.0}
    same(*(vars(measure_policy(scenario, p, **settings)) for p in (sarathi, COUNTING)))
    fleets = [fleet.Fleet(scenario, p, 4, 10, block=3) for p in (sarathi, COUNTING)]
    assert [f.run(2) for f in fleets] == [80, 80]
    assert fleets[0].totals() == fleets[1].totals()
    assert [int(x) for c in fleets[1].carries for x in c.memory] == [20] * 4


MINE = """
from remembering import Moody

mine = Moody()
"""


def test_a_policy_with_a_memory_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    found = policies.resolve(f"{tmp_path}/mine.py:mine")
    run = llmgym.simulate(SCENARIOS["engine"], found, duration_s=1.0)
    assert run.summary["batches"] > 0


class Broken:
    """A policy with a memory, and one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.batched = fault == "axes"

    def start(self, view: View) -> Any:
        return jnp.float32(0)

    def __call__(self, key: jax.Array, view: View, memory: Any) -> Any:
        batch = view.empty()
        return {
            "batch alone": batch,
            "the other way round": (memory, batch),
            "three": (batch, memory, memory),
            "dtype": (batch, jnp.int32(0)),
            "shape": (batch, jnp.zeros(3)),
            "structure": (batch, {"mean": memory}),
            "axes": (batch, memory),
        }[self.fault]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("batch alone", r"'Broken' has a memory, so it must return \(Batch, memory\), not Batch"),
        ("the other way round", r"must return \(Batch, memory\), not a tuple"),
        ("three", r"must return \(Batch, memory\), not a tuple"),
        ("dtype", r"was given the memory float32\[\] and returns int32\[\]"),
        ("shape", r"returns float32\[3\]; structure, shapes and dtypes must stay"),
        ("structure", r"returns \{mean: float32\[\]\}"),
        ("axes", r"shape \(\) where its last axes must be .*\(1,\)\. .*batched = False"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(fault: str, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        llmgym.simulate(SCENARIOS["engine"], Broken(fault), duration_s=1.0)


def without_start(key: jax.Array, view: View, memory: Any) -> Any:
    return view.empty(), memory


class WithoutMemory:
    """It has a start, and no use for a memory."""

    def start(self, view: View) -> Any:
        return jnp.float32(0)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        return view.empty()


def pair(key: jax.Array, view: View) -> Any:
    return view.empty(), jnp.float32(0)


def nothing(key: jax.Array, view: View) -> Any:
    return None


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (without_start, r"'without_start' takes a memory, .*has no start\(view\) -> memory"),
        (WithoutMemory(), r"has a start\(view\), so it is called as policy\(key, view, memory\)"),
        (pair, r"'pair' returns a tuple but has no start\(view\)"),
        (nothing, "'nothing' returns NoneType; it must return a Batch"),
    ],
)
def test_a_policy_of_the_wrong_form_is_refused(policy: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        llmgym.simulate(SCENARIOS["engine"], policy, duration_s=1.0)


def test_compose_is_for_policies_without_a_memory() -> None:
    with pytest.raises(LLMGymError, match="has a memory: ask it with decide"):
        policies.compose(MOODY, rollout.keys(0, 1), None)  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="has no memory"):
        baselines.make("priority", base=baselines.make("slai", average_weight=0.1))
