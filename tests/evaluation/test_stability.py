"""Verdicts and capacities against what theory gives exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.core.errors import LLMGymError
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.evaluation.stability import Trend, _judge, stability, trend
from llmgym.evaluation.statistics import mean_interval
from llmgym.theory.bounds import faster_transformer_capacity, fluid_growth, pollaczek_khinchine
from llmgym.theory.capacity import at_load

pytestmark = pytest.mark.long_runs

FIGURE_1 = llmgym.scenario("paper-figure-1")


@pytest.mark.parametrize("policy", ["sarathi", "orca"])
def test_work_conserving_policies_reach_the_limit(policy: str) -> None:
    # Issue figure: within 0.1 % of 13.871 requests/s.
    estimate = estimate_capacity(FIGURE_1, policy)
    assert estimate.method == "saturation"
    assert estimate.requests_per_s == pytest.approx(13.871, rel=1e-3)
    assert estimate.low <= llmgym.capacity(FIGURE_1).requests_per_s <= estimate.high


def test_saturation_counts_what_a_small_budget_loses() -> None:
    # A budget of 128 serves 128 tokens in 46.75 ms.
    estimate = estimate_capacity(FIGURE_1, baselines.make("sarathi", token_budget=128))
    assert estimate.requests_per_s == pytest.approx(128 / 46.75 * 1000 / 241, rel=2e-3)


def test_saturation_with_random_lengths_agrees_with_the_limit() -> None:
    scenario = llmgym.scenario("geometric")
    estimate = estimate_capacity(scenario, "sarathi")
    assert estimate.requests_per_s == pytest.approx(13.871, rel=2e-3)


def test_idle_has_no_capacity() -> None:
    assert estimate_capacity(FIGURE_1, "idle", requests=50, replications=4).requests_per_s == 0


@pytest.mark.slow
def test_faster_transformer_meets_its_closed_form() -> None:
    closed_form = faster_transformer_capacity(129, 112, FIGURE_1.engine)
    assert closed_form == pytest.approx(0.557, abs=5e-4)
    estimate = estimate_capacity(FIGURE_1, "faster_transformer", requests=400)
    assert estimate.method == "bisection"
    assert estimate.low <= closed_form <= estimate.high
    assert estimate.high - estimate.low < 0.02 * closed_form


@pytest.mark.slow
def test_vanilla_vllm_carries_about_three_quarters() -> None:
    estimate = estimate_capacity(FIGURE_1, "vllm")
    assert estimate.requests_per_s == pytest.approx(10.5, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("load", "verdict"), [(0.9, "stable"), (1.1, "unstable")])
def test_sarathi_on_both_sides_of_the_limit(load: float, verdict: str) -> None:
    assert stability(FIGURE_1, "sarathi", load=load).verdict == verdict


def test_idle_is_unstable_at_any_load() -> None:
    assert stability(FIGURE_1, "idle", load=0.05, horizon_s=200).verdict == "unstable"


def test_a_table_that_drops_is_never_called_stable() -> None:
    # Ten slots cannot hold the hot start: with no room to grow the verdict must be refused.
    import llmgym.evaluation.stability as module

    tiny = replace(FIGURE_1, slots=10)
    before = module.MOST_SLOTS, module.MOST_DOUBLINGS
    module.MOST_SLOTS, module.MOST_DOUBLINGS = 10, 0
    try:
        result = stability(tiny, "sarathi", load=0.9, horizon_s=60)
    finally:
        module.MOST_SLOTS, module.MOST_DOUBLINGS = before
    assert result.dropped > 0
    assert result.verdict != "stable"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["sarathi", "orca"])
@pytest.mark.parametrize("load", [0.9, 1.0, 1.1, 1.2, 1.4])
def test_theorem_2_growth(policy: str, load: float) -> None:
    # science: 0, 0, 0.334, 0.669, 1.337 tokens/ms; the last three are the fluid line.
    scenario = at_load(replace(llmgym.scenario("theorem-2"), slots=4096), load)
    expected = fluid_growth(scenario, scenario.arrival_rate_per_s) if load > 1 else 0.0
    found = trend(scenario, baselines.make(policy), 220.0, 16).growth
    assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / np.sqrt(found.size)


def test_a_backlog_is_served_at_the_limit() -> None:
    # 13.871 requests/s of 241 tokens each; what comes on top of it is growth.
    found = trend(at_load(FIGURE_1, 1.2), baselines.make("sarathi"), 60.0, 8, burst=256)
    limit = 13.871 * 241 / 1000
    assert found.dropped == 0
    assert found.served == pytest.approx(np.full(8, limit), rel=5e-3)
    error = found.growth.std(ddof=1) / np.sqrt(8)
    assert abs(found.growth.mean() - 0.2 * limit) < 4 * error < 0.2 * limit


def test_published_growth_figures() -> None:
    scenario = llmgym.scenario("theorem-2")
    limit = llmgym.capacity(scenario).requests_per_s
    found = [fluid_growth(scenario, x * limit) for x in (1.1, 1.2, 1.4)]
    assert found == pytest.approx([0.334, 0.669, 1.337], abs=5e-4)


@pytest.mark.slow
def test_m_d_1_queue() -> None:
    # Budget 1 and one-token requests: an M/D/1 queue, whose mean is Pollaczek and Khinchine's.
    scenario = llmgym.scenario("md1")
    run = llmgym.simulate(
        scenario, "sarathi", duration_s=2400, warmup_s=100, num_envs=32, record=False
    )
    raw = run.raw
    area = (raw["end_request_ticks"] - raw["warm_request_ticks"]) / (
        raw["end_clock"] - raw["warm_clock"]
    )
    mean, low, high = mean_interval(area, confidence=0.999)
    assert low < pollaczek_khinchine(scenario.arrival_rate_per_s, 46.75) < high
    assert high - low < 0.2 * mean


def test_bad_input() -> None:
    with pytest.raises(LLMGymError, match="load"):
        stability(FIGURE_1, "sarathi", load=-1.0)
    with pytest.raises(LLMGymError, match="Did you mean 'sarathi'"):
        stability(FIGURE_1, "sarathy", load=0.5)
    with pytest.raises(LLMGymError, match="replications"):
        estimate_capacity(FIGURE_1, "sarathi", replications=1)
    with pytest.raises(LLMGymError, match="method"):
        estimate_capacity(FIGURE_1, "sarathi", method="guess")
    replay = llmgym.Scenario.single_engine(
        llmgym.CODELLAMA_34B_A100, 512, llmgym.Replay([0.0, 1.0], [10, 10], [5, 5])
    )
    for measure in (stability, estimate_capacity):
        with pytest.raises(LLMGymError, match="replay"):
            measure(replay, "sarathi")


def trend_of(growth: list[float], served: list[float]) -> Trend:
    return Trend(np.array(growth), np.array(served), 0)


@pytest.mark.parametrize(
    ("growth", "served", "verdict"),
    [
        # The drift is 1 less what is served; its interval of three lies 2.48 of a deviation either side.
        ([0.0, 0.0, 0.0], [1.1, 1.2, 1.3], "undecided"),  # -0.2 on average, but up to +0.05
        ([0.0, 0.0, 0.0], [1.19, 1.2, 1.21], "stable"),
        ([0.1, 0.1, 0.1], [0.7, 0.8, 0.9], "unstable"),
        ([0.001, 0.002, 0.003], [0.7, 0.8, 0.9], "undecided"),  # growth, and drift, may be none
        ([0.0019, 0.002, 0.0021], [0.79, 0.8, 0.81], "unstable"),
        ([0.0019, 0.002, 0.0021], [0.7, 0.8, 0.9], "undecided"),
        ([0.1, 0.1, 0.1], [1.19, 1.2, 1.21], "undecided"),
    ],
)
def test_verdicts_rest_on_the_right_end_of_the_interval(
    growth: list[float], served: list[float], verdict: str
) -> None:
    assert _judge(trend_of(growth, served), trend_of([0.0] * 3, served), 1.0)[0] == verdict
