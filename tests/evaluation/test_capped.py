"""Limits on resident requests: what the planning LP allows and what the best Sarathi-Serve reaches."""

from __future__ import annotations

import pytest

import llmgym
from llmgym import baselines
from llmgym.reproduce.resident_cap import BUDGETS, TABLE, capped


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
