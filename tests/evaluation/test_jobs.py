"""Where the time of a job goes, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

import llmgym
from llmgym import Stage
from llmgym.evaluation.metrics.jobs import job_table, stage_table


def test_the_parts_of_a_job_by_hand() -> None:
    stages = (
        Stage(1, 1, engine="a", name="plan"),
        Stage(1, 1, engine="a", name="left", after="plan"),
        Stage(1, 1, engine="b", name="right", after="plan"),
        Stage(delay_ms=1, name="tool", after="left"),
        Stage(1, 1, engine="a", name="join", after=("tool", "right")),
    )
    rows = [  # job, stage, engine, arrival, first batch, end
        (0, 0, "a", 0.0, 10.0, 30.0),
        (0, 1, "a", 30.0, 40.0, 100.0),
        (0, 2, "b", 30.0, 35.0, 60.0),  # done 90 ms before the join can start
        (0, 3, "", 100.0, 100.0, 150.0),
        (0, 4, "a", 150.0, 155.0, 200.0),
        (1, 0, "a", 20.0, 30.0, np.nan),
    ]
    names = ["job", "stage", "engine", "arrival_ms", "service_ms", "finish_ms"]
    calls = pd.DataFrame(rows, columns=names).assign(env=0, job_type="job")
    calls["job_arrival_ms"] = calls.job.map({0: 0.0, 1: 20.0})
    job = llmgym.JobType(llmgym.Poisson(1), stages, name="job")
    hand: Any = SimpleNamespace(requests=calls, scenario=SimpleNamespace(job_types=(job,)))
    (found,) = job_table(hand).to_dict("records")
    parts = {"waiting_ms": 25, "service_ms": 125, "delay_ms": 50, "join_waiting_ms": 90}
    times = {"arrival_ms": 0, "finish_ms": 200, "e2e_ms": 200}
    assert found == {"env": 0, "job_type": "job", "job": 0, "calls": 4, **times, **parts}
    table = stage_table(hand)
    assert table.engine.tolist() == ["a", "a", "b", "", "a"]
    assert table.waiting_ms.tolist() == [10, 10, 5, 0, 5]
    assert table.service_ms.tolist() == [20, 60, 25, 0, 45]
    assert table.delay_ms.tolist() == [0, 0, 0, 50, 0]
    assert table.critical_share.tolist() == [0.15, 0.35, 0, 0.25, 0.25]
