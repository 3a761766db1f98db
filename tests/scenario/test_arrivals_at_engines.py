"""Requests as an engine gets them: replays, arrivals hours apart, job types merged."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from recording import requests

from llmgym.engine import simulator
from llmgym.evaluation.rollout import keys
from llmgym.evaluation.simulate import simulate
from llmgym.scenario.arrivals import (
    Deterministic,
    Poisson,
)
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.lengths import Uniform
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import JobType, Workload


def arrivals_of(workload: Any, count: int, envs: int = 1, **fields: Any) -> list[list[Any]]:
    """The first requests of a scenario, environment by environment."""
    scenario = Scenario.single_engine(Affine(10.0, 0.0), 64, workload, **fields)
    return requests(simulator.lower(scenario), keys(0, envs), count)


def test_replay_has_the_listed_requests_and_no_others() -> None:
    times = [0.0, 0.0, 0.001, 0.00123, 5.0, 9000.0]
    replay = Replay(times, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 0])
    (found,) = arrivals_of(replay, 6)
    assert [r.arrival for r in found] == [0, 0, 100, 123, 500_000, 900_000_000]
    assert [(r.prefill, r.decode) for r in found] == list(zip(*replay_lengths(replay), strict=True))
    assert len(arrivals_of(replay, 20)[0]) == 6


def replay_lengths(replay: Replay) -> tuple[list[int], list[int]]:
    return np.asarray(replay.prefill_tokens).tolist(), np.asarray(replay.decode_tokens).tolist()


@pytest.mark.parametrize("tick_ms", [0.01, 0.25, 10.0])
def test_replay_times_are_rounded_one_by_one(tick_ms: float) -> None:
    times = np.cumsum(np.random.default_rng(0).exponential(0.013, 500))
    replay = Replay(times, [1] * 500, [1] * 500)
    (found,) = arrivals_of(replay, 500, tick_ms=tick_ms)
    assert [r.arrival for r in found] == [round(t * 1000 / tick_ms) for t in times]


def run_through(workload: Any, steps: int) -> tuple[int, int]:
    """Requests that arrived and the clock in ticks after so many steps of idling."""
    physics = simulator.lower(Scenario.single_engine(Affine(1.0, 0.0), 64, workload, slots=8))
    begin = simulator.init(physics, keys(1, 1)[0])

    @jax.jit
    def idle(state: Any) -> Any:
        def body(state: Any, _: None) -> tuple[Any, None]:
            return simulator.step(physics, state, simulator.view(physics, state).empty())[0], None

        return jax.lax.scan(body, state, None, length=steps)[0]

    state = idle(begin)
    return int(state.totals.arrived), int(state.clock.to_numpy())


def test_listed_arrivals_hours_apart_all_come() -> None:
    listed = Replay(np.arange(30) * 6000.0, [5] * 30, [5] * 30)
    assert run_through(listed, 40) == (30, 29 * 600_000_000)


@pytest.mark.parametrize("replicas", [1, 2])
def test_listed_arrivals_days_apart_are_served_when_they_come(replicas: int) -> None:
    # The longest gap is 30 times what one step of idling may last.
    times = np.array([0.0, 10_737.0, 90_000.25, 90_000.25, 4e5])
    replay = Replay(times, [5] * 5, [5] * 5)
    scenario = Scenario.single_engine(Affine(10.0, 0.0), 64, replay, slots=8)
    run = simulate(scenario.override(replicas=replicas), "sarathi")
    np.testing.assert_array_equal(run.requests.arrival_ms, times * 1000)
    np.testing.assert_allclose(run.requests.finish_ms, times * 1000 + 60, rtol=1e-12)


@pytest.mark.slow
def test_random_arrivals_hours_apart_all_come() -> None:
    arrived, _ = run_through(Poisson_at(0.001), 300)
    assert arrived == 300


def Poisson_at(rate: float) -> JobType:  # noqa: N802 - reads as a constructor
    return Workload(Poisson(rate), 3, 4)


def test_job_types_merge_in_order_of_time_the_first_type_at_a_tie() -> None:
    jobs = (
        Workload(Deterministic(100.0), 1, 1, name="a"),
        Workload(Deterministic(50.0), 2, 2, name="b"),
        Workload(Poisson(80.0), Uniform(3, 9), 3, name="c"),
    )
    for found in arrivals_of(jobs, 400, envs=2):
        order = [(r.arrival, r.job_class, r.number) for r in found]
        assert order == sorted(order)
        for job_class in range(3):
            numbers = [r.number for r in found if r.job_class == job_class]
            assert numbers == list(range(len(numbers)))
        together = [r.arrival for r in found if r.job_class == 1]
        assert together == [2000 * (n + 1) for n in range(len(together))]


def test_a_job_type_does_not_depend_on_those_behind_it() -> None:
    first = Workload(Poisson(50.0), Uniform(1, 9), 3, name="a")
    other = Workload(Poisson(70.0), Uniform(1, 9), 3, name="b")
    alone = arrivals_of(first, 50)[0]
    beside = [r for r in arrivals_of((first, other), 150)[0] if r.job_class == 0]
    shared = min(len(alone), len(beside))
    assert shared > 40
    what = [(r.arrival, r.prefill) for r in alone[:shared]]
    assert what == [(r.arrival, r.prefill) for r in beside[:shared]]
    apart = [r.prefill for r in arrivals_of((first, other), 150)[0] if r.job_class == 1]
    assert apart[:30] != [r.prefill for r in alone[:30]]
