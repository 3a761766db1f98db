"""Fairness of a run by hand; its gaps on random runs are in tests/baselines/test_vtc.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

import llmgym
from llmgym.evaluation.metrics.fairness import fairness

CLIENTS = tuple(
    llmgym.JobType(llmgym.Poisson(1), (llmgym.Stage(10, 10),), name) for name in ("calm", "flood")
)
SCENARIO = llmgym.Scenario.single_engine(
    llmgym.Affine(5.0, 0.5), 24, CLIENTS, service_weights=(1, 2)
)


def test_service_before_the_warm_up_does_not_count() -> None:
    steps, envs = 5, 2
    charged = np.zeros((steps, 2, envs))
    charged[:, 0, 0] = [100, 7, 3, 0, 6]
    charged[:, 1, 0] = [0, 0, 0, 12, 0]
    charged[:, 1, 1] = [0, 0, 0, 0, 6]
    waits = np.zeros((steps, 2, envs), bool)
    waits[..., 0] = True  # in the second environment nobody does
    raw = {
        "start": np.array([[0, 5, 10, 20, 30]] * envs).T,  # ticks
        "warm_clock": np.array([10, 10]),
        "end_clock": np.array([40, 40]),
        "looked": np.ones((steps, envs), bool),
        "charged": charged,
        "waiting": waits,
        "stayed": waits,
    }
    run: Any = SimpleNamespace(raw=raw, scenario=SCENARIO, num_envs=envs, tick_ms=10.0)
    found = fairness(run)
    assert found["service_per_s"] == {"calm": 9 / 0.6, "flood": 18 / 0.6}
    assert found["gap"] == 12  # the second client is 3 behind, then 9 ahead
    assert found["bound"] == np.inf
