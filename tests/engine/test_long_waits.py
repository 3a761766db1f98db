"""Waits beyond what 32 bits of ticks hold: 13 hours and more, in simulations of 50 hours."""

from __future__ import annotations

import numpy as np
import pytest

import llmgym

pytestmark = pytest.mark.long_runs

HOUR_S = 3600.0
MINUTE = llmgym.Affine(60_000.0, 0.0)
"""Every batch takes a minute."""


def fifo(arrival_s: np.ndarray) -> np.ndarray:
    """Ends in seconds of requests of one token that are served one a minute, in order of arrival."""
    ends, free = [], 0.0
    for arrival in arrival_s:
        free = max(free, arrival) + 60.0
        ends.append(free)
    return np.array(ends)


@pytest.mark.parametrize(
    ("replicas", "policy"),
    [
        (1, "sarathi"),
        (1, "global_fcfs"),
        (2, "global_fcfs"),
        pytest.param(2, "sarathi", marks=pytest.mark.slow),
    ],
)
def test_waits_of_thirteen_hours_are_exact(replicas: int, policy: str) -> None:
    rng = np.random.default_rng(0)
    arrival = np.sort(np.rint(rng.uniform(0, 33 * HOUR_S, 2900 * replicas) * 1e5) / 1e5)
    replay = llmgym.Replay(arrival, np.ones(len(arrival), int), np.zeros(len(arrival), int))
    engine = llmgym.Engine(MINUTE, 1, replicas=replicas)
    scenario = llmgym.Scenario((engine,), replay, slots=2048, router="round_robin")
    run = llmgym.simulate(scenario, policy, duration_s=50 * HOUR_S)
    requests = run.requests.sort_values("job")
    assert run.summary["dropped"] == 0
    ends = np.empty(len(arrival))
    for replica in range(replicas):
        ends[replica::replicas] = fifo(arrival[replica::replicas])
    waits_h = (ends - arrival) / HOUR_S
    assert waits_h.max() > 13 and ends.max() < 50 * HOUR_S
    np.testing.assert_allclose(requests.finish_ms, 1000 * ends, rtol=0, atol=0.0101)
    np.testing.assert_allclose(requests.first_token_ms, 1000 * ends, rtol=0, atol=0.0101)
    assert run.summary["ttft_ms"]["mean"] == pytest.approx(1000 * (ends - arrival).mean(), rel=1e-9)


def test_a_request_that_starves_stays_the_oldest() -> None:
    """Served longest ago goes first, whether that was six hours ago or twelve."""
    arrival = [0.0, 1.0, 2.0]
    replay = llmgym.Replay(arrival, [1, 1, 1], [900, 900, 900])
    scenario = llmgym.Scenario.single_engine(MINUTE, 1, replay, slots=8)
    run = llmgym.simulate(scenario, "tile_align", duration_s=46 * HOUR_S)
    assert run.requests.finish_ms.notna().all()
    assert run.batches.decode_tokens.sum() == 2700
