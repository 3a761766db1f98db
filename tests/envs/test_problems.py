"""Problems with names, and tables that are large enough for a load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.problems import PROBLEMS
from llmgym.evaluation import policies
from llmgym.evaluation.fleet import Fleet
from llmgym.theory.capacity import at_load
from llmgym.theory.table_size import enough_slots

SUMMARY = {"mean_in_system", "goodput_per_s", "e2e_ms.mean"}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_everything_is_fixed(problem: Any) -> None:
    core = llmgym.functional(problem.id)
    made = llmgym.functional(problem.base, **problem.settings)
    assert core.task == made.task and core.scenario == made.scenario
    assert core.options["load"] == problem.load
    assert problem.metric in SUMMARY and problem.best in ("low", "high")
    assert all(problem.load[0] <= load <= problem.load[1] for load in problem.loads)
    for make in (gym.make, gym.make_vec, llmgym.functional):
        with pytest.raises(TypeError, match="got an unexpected keyword argument 'load'"):
            make(problem.id, load=0.5)


def test_a_problem_is_its_environment() -> None:
    envs = gym.make_vec("llmgym/KV-v0", num_envs=2, autoreset_mode="NextStep")
    env = gym.make("llmgym/KV-v0")
    assert env.spec is not None and env.spec.id == "llmgym/KV-v0"
    assert isinstance(env.unwrapped.core, FunctionalEngine)  # type: ignore[attr-defined]
    first, _ = envs.reset(seed=[3, 4])
    alone, _ = env.reset(seed=3)
    np.testing.assert_array_equal(first[0], alone)
    many, one = envs.step(np.array([1, 1])), env.step(1)
    np.testing.assert_array_equal(many[0][0], one[0])
    assert many[4]["load"][0] == one[4]["load"]


def test_the_size_of_a_table_follows_the_load() -> None:
    base = llmgym.scenario("geometric")
    sizes = [enough_slots(at_load(base, load)) for load in (0.3, 0.6, 0.8, 0.95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert all(size % 64 == 0 for size in sizes)
    assert enough_slots(at_load(base, 1.2)) == base.slots
    network = llmgym.scenario("fork-join")
    assert enough_slots(network) == network.slots
    bursty = llmgym.scenario("bursty")
    plain = replace(bursty, workload=llmgym.scenario("latency").workload)
    assert enough_slots(at_load(bursty, 0.7)) > enough_slots(at_load(plain, 0.7))


def test_slots_are_a_setting() -> None:
    core = llmgym.functional(
        "llmgym/Engine-v0", scenario="geometric", load=(0.2, 0.8), slots="auto"
    )
    assert core.scenario.slots == enough_slots(at_load("geometric", 0.8))
    assert llmgym.functional("llmgym/Engine-v0", slots=32).scenario.slots == 32
    for wrong in ("many", 0, 2.5):
        with pytest.raises(LLMGymError, match="slots"):
            llmgym.functional("llmgym/Engine-v0", slots=wrong)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "load"),
    [("geometric", 0.9), ("two-class", 0.8), ("bursty", 0.7), ("kv", 0.8), ("slo", 0.5)],
)
def test_a_stable_policy_drops_nothing_in_a_million_steps(name: str, load: float) -> None:
    scenario = at_load(name, load)
    scenario = replace(scenario, slots=enough_slots(scenario))
    policy = policies.resolve("sarathi" if scenario.engine.kv_cache is None else "vllm_v1")
    fleet = Fleet(scenario, policy, num_envs=64, steps=1000)
    assert fleet.run(16) >= 1_000_000
    totals = fleet.totals()
    assert totals["dropped"] == 0 and totals["arrived"] > 10_000
