"""The stability polygon of the batch-size limit, judged by simulation 2 % inside and outside its edges.

k_max = 100 and b_max = 1024 on the paper's staircase: corners A, B, C, D. Prompts are long (a multiple of
what one batch can take), since next to 99 decodes only one request may contribute prefill.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.evaluation.stability import stability
from llmgym.theory.region import stability_polygon

ENGINE = llmgym.Engine(llmgym.CODELLAMA_34B_A100, 1024, max_num_seqs=100)
BUDGETS = (128, 256, 512, 1024)
POLICIES = [
    *(baselines.make("sarathi", token_budget=b) for b in BUDGETS),
    *(baselines.make(n) for n in ("orca", "tile_align", "greedy_rate", "flush", "always_full")),
    *(baselines.make(n, prompts="split") for n in ("vllm", "faster_transformer")),
    *(baselines.make(n) for n in ("k_fcfs", "random", "idle")),
]
EDGES = [(edge, share) for edge in ("AB", "BC", "CD") for share in (0.3, 0.7)]


def scenario(edge: str, share: float, scale: float) -> llmgym.Scenario:
    """Poisson arrivals at ``scale`` times the point ``share`` of the way along an edge."""
    corners = stability_polygon(ENGINE).vertices
    start = "ABCD".index(edge[0])
    point = (1 - share) * corners[start] + share * corners[start + 1]
    tokens = 3000 * point / point.sum()
    prefill, decode = (max(round(float(t)), 1) for t in tokens)
    rate = scale * stability_polygon(ENGINE).scale_to_boundary((prefill, decode)) * 1000
    workload = llmgym.Workload(llmgym.Poisson(rate), prefill, decode)
    return llmgym.Scenario((ENGINE,), workload, slots=512)


@cache
def verdict(edge: str, share: float, scale: float, policy: int) -> str:
    return stability(scenario(edge, share, scale), POLICIES[policy], replications=8).verdict


def test_the_published_corners() -> None:
    corners = stability_polygon(ENGINE).vertices
    expected = [(3.4707, 0), (3.1352, 0.3355), (0.6203, 2.1176), (0, 2.1390)]
    assert np.allclose(corners, expected, atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("edge", "share"), EDGES)
def test_outside_no_policy_is_stable(edge: str, share: float) -> None:
    verdicts = {i: verdict(edge, share, 1.02, i) for i in range(len(POLICIES))}
    assert "stable" not in verdicts.values(), verdicts
