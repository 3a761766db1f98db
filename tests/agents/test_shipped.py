"""The policies that ship: they load by name, run where policies run, and reach their figures."""

from __future__ import annotations

import pytest

import llmgym
from llmgym import agents
from llmgym.evaluation.evaluate import latencies
from llmgym.evaluation.simulate import Run


def run(policy: str, rate: float, num_envs: int = 16, budget: int = 512) -> Run:
    scenario = llmgym.scenario("latency", slots=384, token_budget=budget).at_rate(rate)
    return llmgym.simulate(scenario, policy, duration_s=1200, warmup_s=300, num_envs=num_envs)


def test_all_load_by_name_with_their_figures() -> None:
    assert "ppo-latency" in agents.names()
    for name in agents.names():
        policy = agents.load(name)
        assert policy is agents.load(name) and policy.label == name  # type: ignore[attr-defined]
        header = policy.header  # type: ignore[attr-defined]
        assert header["figures"] and header["seed"] >= 0 and header["versions"]["jax"]
        assert all(text.startswith("name = ") for text in header["scenarios"])


def test_runs_by_name_on_another_engine() -> None:
    """Hinge batch times without tiles, another budget, lengths that vary."""
    found = llmgym.simulate("llama-3-70b", "ppo-latency", load=0.6, duration_s=20, num_envs=2)
    assert found.policy == "ppo-latency" and found.summary["completed"] > 0


@pytest.mark.slow
def test_latency_beats_the_best_sarathi_serve() -> None:
    for rate, budget, most in ((8, 128, 1.01), (10, 128, 1.01), (12, 256, 0.84), (13, 384, 0.82)):
        reference = run("sarathi", rate, budget=budget).summary["e2e_ms"]["mean"]
        learned = latencies(run("ppo-latency", rate))["pooled"]
        assert 1000 * learned["e2e_s_mean"] < most * reference
        if rate == 12:
            assert learned["e2e_s_mean"] < 7.64  # upper end of the bracket of the exact optimum
            assert learned["goodput"] >= 0.97 and learned["ttft_s_p99"] <= 1.1


@pytest.mark.slow
def test_capacity_is_that_of_theorem_2() -> None:
    found = llmgym.estimate_capacity("latency", "ppo-latency")
    limit = llmgym.capacity(llmgym.scenario("latency")).requests_per_s
    assert found.method == "saturation"
    assert found.requests_per_s == pytest.approx(limit, rel=1e-3)


@pytest.mark.slow
def test_corner_c_is_carried_where_sarathi_serve_needs_one_tile() -> None:
    verdicts = {
        policy: llmgym.stability("corner-c-random", policy, replications=4).verdict
        for policy in ("ppo-corner-c", "sarathi:token_budget=256", "sarathi:token_budget=512")
    }
    assert list(verdicts.values()) == ["stable", "unstable", "unstable"]


@pytest.mark.slow
def test_where_memory_binds_it_opens_the_second_tile_late() -> None:
    """One tile carries 11.36 requests/s; with two at all times every iteration is slow."""
    scenario = llmgym.scenario("kv").at_rate(11.6)
    runs = {
        policy: llmgym.simulate(scenario, policy, duration_s=800, warmup_s=200, num_envs=8).summary
        for policy in ("ppo-kv", "sarathi")
    }
    assert runs["ppo-kv"]["e2e_ms"]["mean"] < 0.85 * runs["sarathi"]["e2e_ms"]["mean"]
    learned, published = (llmgym.estimate_capacity("kv", policy) for policy in runs)
    assert learned.low > published.high
