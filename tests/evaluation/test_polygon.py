"""The stability polygon of the batch-size limit: its published corners, and points beside its edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.theory.region import stability_polygon

ENGINE = llmgym.Engine(llmgym.CODELLAMA_34B_A100, 1024, max_num_seqs=100)
POLYGON = stability_polygon(ENGINE)
EDGES = ("AB", "BC", "CD")
POINTS = [(edge, share) for edge in EDGES for share in (0.3, 0.7)]


def rates_at(edge: str, share: float) -> np.ndarray:
    """A point of an edge, ``share`` of the way to its second corner: tokens/ms (prefill, decode)."""
    n = EDGES.index(edge)
    first, second = POLYGON.vertices[n : n + 2]
    return np.asarray((1 - share) * first + share * second)


def scenario(rates: np.ndarray, request_tokens: float) -> llmgym.Scenario:
    """Requests of ``request_tokens`` tokens on average, geometric, that arrive with these rates."""
    prefill, decode = rates / rates.sum() * request_tokens
    workload = llmgym.Workload(
        llmgym.Poisson(1000 * rates.sum() / request_tokens),
        llmgym.Geometric(prefill),
        llmgym.Geometric(decode),
    )
    return llmgym.Scenario((ENGINE,), (workload,))


def test_the_published_corners() -> None:
    expected = [(3.4707, 0), (3.1352, 0.3355), (0.6203, 2.1176), (0, 2.1390)]
    assert np.allclose(POLYGON.vertices, expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("edge", "share"), POINTS)
def test_outside_no_policy_is_stable(edge: str, share: float) -> None:
    # What any policy serves obeys every edge at every instant; 2 % outside more than that arrives.
    point, n = rates_at(edge, share), EDGES.index(edge)
    step = POLYGON.vertices[n + 1] - POLYGON.vertices[n]
    normal = np.array([step[1], -step[0]])
    assert normal @ (1.02 * point) == pytest.approx(1.02 * normal @ POLYGON.vertices[n])
    outside = replace(scenario(1.02 * point, 1280), lengths_known=True, service_weights=(1, 2))
    for name in baselines.names():
        split = {"prompts": "split"} if name in ("vllm", "faster_transformer") else {}
        policy = baselines.make(name, **split)
        run = llmgym.simulate(outside, policy, duration_s=60, num_envs=4, record=False)
        served = np.stack([run.raw[f"{phase}_tokens"].sum(0) for phase in ("prefill", "decode")])
        elapsed_ms = run.raw["end_clock"] * run.tick_ms
        assert (normal @ served <= normal @ point * elapsed_ms * (1 + 1e-6)).all(), name


BEST = {
    ("AB", 0.3): ("sarathi", {}, 1280),
    ("AB", 0.7): ("sarathi", {}, 1280),
    ("BC", 0.3): ("sarathi", {"token_budget": 384}, 12800),
    ("BC", 0.7): ("max_pressure", {}, 12800),
    ("CD", 0.3): ("sarathi", {"token_budget": 128}, 1280),
    ("CD", 0.7): ("sarathi", {"token_budget": 128}, 1280),
}
"""A policy that carries a point: name, settings, tokens of a request.

Corner B needs one prompt that brings 925 tokens, and the last batch of a prompt seldom does: the
edge BC is reached in the limit of long prompts.
"""


@pytest.mark.slow
@pytest.mark.parametrize(("edge", "share"), POINTS)
def test_inside_the_best_policy_is_stable(edge: str, share: float) -> None:
    name, settings, tokens = BEST[edge, share]
    point = scenario(rates_at(edge, share), tokens)
    assert llmgym.capacity(point).load_factor == pytest.approx(1.0)
    policy = baselines.make(name, **settings)
    found = llmgym.estimate_capacity(point, policy, "saturation", requests=600)
    assert found.requests_per_s > 0.98 * point.arrival_rate_per_s
    assert found.low <= point.arrival_rate_per_s
