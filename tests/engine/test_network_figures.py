"""Networks against theory: who carries what, and classical queueing networks as special cases."""

from __future__ import annotations

import math

import numpy as np
import pytest

import llmgym
from llmgym import Stage, baselines, theory
from llmgym.engine import simulator
from llmgym.evaluation import rollout
from llmgym.evaluation.statistics import mean_interval
from llmgym.theory.capacity import at_load

pytestmark = pytest.mark.slow


def at_rho(rho: float) -> llmgym.Scenario:
    return at_load(llmgym.scenario("rybko-stolyar", slots=512), rho)


def peaks(rho: float, windows: int = 5) -> np.ndarray:
    """Peaks (windows, seeds) of the tokens left, a second each, from a backlog of 200 jobs a type."""
    scenario = at_load(llmgym.scenario("rybko-stolyar", slots=2048), rho)
    physics, keys = simulator.lower(scenario, burst=200), rollout.keys(0, 8)
    horizon = round(1000 * windows / scenario.tick_ms)
    time, backlog = [], []
    policy = baselines.make("priority")
    start = rollout.begin(physics, policy, keys)
    for carry, steps in rollout.rollout(physics, policy, start, keys, horizon):
        assert not np.asarray(carry.state.totals.dropped).any()
        time.append(steps.start.to_numpy() * scenario.tick_ms)
        backlog.append(steps.backlog.to_numpy())
    window, tokens = np.concatenate(time) // 1000, np.concatenate(backlog)
    return np.array([np.where(window == n, tokens, 0).max(axis=0) for n in range(windows)])


def test_exit_priority_turns_at_the_virtual_station() -> None:
    critical = theory.virtual_station(at_rho(0.9))
    assert critical is not None
    assert critical.critical_load == pytest.approx(0.559, abs=0.001)
    below, above = peaks(0.50), peaks(0.62)
    assert (below[-1] < 0.25 * below[0]).all()
    assert (above[-1] > 1.5 * above[0]).all()


@pytest.mark.parametrize("policy", ["fbfs", "round_robin", "max_pressure"])
def test_policies_that_carry_rybko_stolyar(policy: str) -> None:
    found = llmgym.stability(at_rho(0.95), policy, replications=8)
    assert found.verdict == "stable", found


def acyclic(seed: int) -> llmgym.Scenario:
    """A random DAG of calls on 2 to 5 engines that are visited in ascending order only."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 6))
    engines = tuple(
        llmgym.Engine(
            llmgym.Staircase(float(rng.integers(5, 20)), float(rng.integers(10, 40)), 64),
            int(rng.choice([64, 128, 192])),
            name=f"engine-{n}",
        )
        for n in range(count)
    )
    stages = []
    for n in range(count):
        before = rng.random(n) < 0.6
        after = tuple(f"call-{m}" for m in np.flatnonzero(before)) or (
            (f"call-{n - 1}",) if n and rng.random() < 0.5 else ()
        )
        lengths = (llmgym.Geometric(float(m)) for m in rng.integers(30, 200, 2))
        stages.append(Stage(*lengths, engine=f"engine-{n}", name=f"call-{n}", after=after))
    job = llmgym.JobType(llmgym.Poisson(1.0), tuple(stages), name="job")
    return at_load(llmgym.Scenario(engines, (job,)), 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_acyclic_networks_carry_what_the_plan_says(seed: int) -> None:
    scenario = acyclic(seed)
    limit = llmgym.capacity(scenario).requests_per_s
    found = llmgym.estimate_capacity(scenario, "sarathi")
    assert found.method == "overload"
    assert found.requests_per_s == pytest.approx(limit, rel=0.01)


def mean_jobs(scenario: llmgym.Scenario, num_envs: int, seconds: float) -> tuple[float, float]:
    """Mean number of jobs in the network after a warm-up, and the half width of its 99.9 % interval."""
    warm = seconds / 5
    run = llmgym.simulate(
        scenario, "sarathi", duration_s=seconds, warmup_s=warm, num_envs=num_envs, record=False
    )
    assert run.summary["dropped"] == 0
    ticks = run.raw["end_request_ticks"] - run.raw["warm_request_ticks"]
    mean, low, high = mean_interval(ticks / (run.raw["end_clock"] - run.raw["warm_clock"]))
    return mean, (high - low) / 2 * 3.29 / 1.96


def geometric_queue(rate: float, mean: float) -> float:
    """Mean number in an M/G/1 queue with geometric service (Pollaczek-Khinchine)."""
    rho, square = rate * mean, 2 * mean**2 - mean
    return rho + rate**2 * square / (2 * (1 - rho))


def tandem(rng: np.random.Generator, rates: tuple[float, float], means: tuple[float, float],
           jobs: int) -> float:  # fmt: skip
    """Mean jobs of the criss-cross network, first come, first served, by Lindley's recursion.

    Both classes are served at the first queue; class 1 then goes to the second.
    """
    arrival = np.cumsum(rng.exponential(1 / sum(rates), jobs))
    goes_on = rng.random(jobs) < rates[0] / sum(rates)

    def depart(arrival: np.ndarray, mean: float) -> np.ndarray:
        service = rng.geometric(1 / mean, arrival.size)
        done = np.cumsum(service)
        return done + np.maximum.accumulate(arrival - (done - service))

    first = depart(arrival, means[0])
    second = depart(first[goes_on], means[1])
    stays = np.sum(first - arrival) + np.sum(second - first[goes_on])
    return float(stays / arrival[-1])


def criss_cross(means: tuple[float, float], rate: float) -> llmgym.Scenario:
    """One-token batches of 1 ms: a request is served for as many ms as it has tokens."""
    engines = tuple(llmgym.Engine(llmgym.Affine(1.0, 0.0), 1, name=n) for n in ("one", "two"))
    call = Stage(0, llmgym.Geometric(means[0]), engine="one", name="call")
    more = Stage(0, llmgym.Geometric(means[1]), engine="two", name="more")
    jobs = (
        llmgym.JobType(llmgym.Poisson(rate), (call, more), name="through"),
        llmgym.JobType(llmgym.Poisson(rate), (call,), name="short"),
    )
    return llmgym.Scenario(engines, jobs, slots=256, tick_ms=0.001)


def test_criss_cross_is_the_classical_network() -> None:
    means, rate = (10.0, 18.0), 0.035  # loads 0.7 and 0.63
    scenario = criss_cross(means, 1000 * rate)
    rng = np.random.default_rng(0)
    samples = [tandem(rng, (rate, rate), means, 50_000) for _ in range(32)]
    known, error = np.mean(samples), np.std(samples, ddof=1) / math.sqrt(len(samples))
    found, half = mean_jobs(scenario, 24, 300)
    assert found == pytest.approx(known, abs=math.hypot(half, 3.29 * error))
    assert half < 0.1 * known
    # The first queue alone is M/G/1, and the second nearly M/M/1 (a product form).
    product = geometric_queue(2 * rate, means[0]) + geometric_queue(rate, means[1])
    assert found == pytest.approx(product, rel=0.05)


def test_re_entrant_line_has_its_product_form() -> None:
    """Kelly's network: equal mean service at each visit, first come, first served: N = sum rho/(1 - rho)."""
    engines = tuple(llmgym.Engine(llmgym.Affine(1.0, 0.0), 1, name=n) for n in ("one", "two"))
    mean, rate = 20.0, 0.0175  # both engines twice: load 0.7
    stages = tuple(
        Stage(0, llmgym.Geometric(mean), engine=engine, name=f"visit-{n}")
        for n, engine in enumerate(("one", "two", "one", "two"))
    )
    job = llmgym.JobType(llmgym.Poisson(1000 * rate), stages, name="job")
    scenario = llmgym.Scenario(engines, (job,), slots=256, tick_ms=0.001)
    found, half = mean_jobs(scenario, 24, 400)
    # Geometric service has a squared coefficient of variation of 1 - 1/mean instead of 1.
    known = 2 * geometric_queue(2 * rate, mean)
    assert found == pytest.approx(known, abs=half + 0.03 * known)
