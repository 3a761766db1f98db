"""Limits on resident requests: what the planning LP allows and what the best Sarathi-Serve reaches."""

from __future__ import annotations

import pytest

import llmgym
from llmgym import baselines

# Requests per second: the LP, and the best of Sarathi-Serve's budgets (science of the capped engine:
# 129 prompt and 112 output tokens in the mean, 35.47 ms a tile of 128 on top of 11.28 ms).
TABLE = {
    60: (11.36, 11.21),
    80: (12.09, 11.36),
    100: (12.57, 11.36),
    110: (12.76, 11.98),
    120: (12.92, 12.83),
    160: (13.38, 12.92),
    200: (13.67, 13.54),
}
BUDGETS = (128, 256, 384, 512)


def capped(most: int) -> llmgym.Scenario:
    return llmgym.scenario("capped", max_num_seqs=most, token_budget=1024)


@pytest.mark.parametrize("most", TABLE)
def test_the_plan(most: int) -> None:
    assert llmgym.capacity(capped(most)).requests_per_s == pytest.approx(TABLE[most][0], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("most", TABLE)
def test_the_best_budget_of_sarathi(most: int) -> None:
    found = [
        llmgym.estimate_capacity(
            capped(most), baselines.make("sarathi", token_budget=budget), requests=3000
        ).requests_per_s
        for budget in BUDGETS
    ]
    assert max(found) == pytest.approx(TABLE[most][1], rel=0.005)
