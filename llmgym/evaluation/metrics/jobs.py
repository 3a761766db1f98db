"""What the calls of a network say about its jobs: end-to-end latency, and where the time went."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from llmgym.evaluation.run import Record

JOB = ["env", "job_type", "job"]
"""Columns that name a job."""


def critical_calls(calls: pd.DataFrame) -> np.ndarray:
    """Which calls (and delays) lie on the critical path of their finished job, bool (calls,).

    A call starts the moment that what it waited for ends, so the path leads back from the last call
    to end, each time to one that ended when the call arrived.
    """
    found = np.zeros(len(calls), bool)
    table = calls.assign(at=np.arange(len(calls)))[calls.finish_ms.notna()]
    # Of calls that end at one instant the latest to arrive is the nearest cause.
    table = table.sort_values("arrival_ms", kind="stable")
    causes = table.drop_duplicates([*JOB, "finish_ms"], keep="last")
    causes = causes[[*JOB, "finish_ms", "arrival_ms", "at"]]
    last = table.sort_values("finish_ms", kind="stable").drop_duplicates(JOB, keep="last")
    path = last[[*JOB, "arrival_ms", "at"]]
    while len(path):
        found[path["at"].to_numpy()] = True
        wanted = path[[*JOB, "arrival_ms"]].rename(columns={"arrival_ms": "finish_ms"})
        path = wanted.merge(causes, on=[*JOB, "finish_ms"], how="inner")
        path = path[~found[path["at"].to_numpy()]]
    return found


def job_table(run: Record) -> pd.DataFrame:
    """Every job that finished.

    Columns: env job_type job arrival_ms finish_ms e2e_ms calls; and the parts of e2e_ms along the
    critical path: waiting_ms (for the first batch; of a single engine, until the first token),
    service_ms and delay_ms. join_waiting_ms adds up over all calls how long they were done before the
    join they lead to could start.
    """
    calls = run.requests
    if "job_arrival_ms" not in calls:  # one engine: a job is one call
        calls = calls.assign(job_arrival_ms=calls.arrival_ms, service_ms=calls.first_token_ms)
    unfinished = calls[calls.finish_ms.isna()][JOB].drop_duplicates().assign(open=True)
    calls = calls.assign(critical=critical_calls(calls)).merge(unfinished, on=JOB, how="left")
    calls = calls[calls.open.isna()].drop(columns="open")
    parts = _parts(calls)
    groups = calls.assign(**parts).groupby(JOB, sort=True)
    jobs = groups.agg(
        arrival_ms=("job_arrival_ms", "first"),
        finish_ms=("finish_ms", "max"),
        calls=("is_call", "sum"),
        waiting_ms=("waiting", "sum"),
        service_ms=("service", "sum"),
        delay_ms=("delay", "sum"),
    ).reset_index()
    jobs.insert(5, "e2e_ms", jobs.finish_ms - jobs.arrival_ms)
    joins = _join_waiting(run.scenario, calls)
    return jobs.merge(joins, on=JOB, how="left").fillna({"join_waiting_ms": 0.0})


def stage_table(run: Record) -> pd.DataFrame:
    """Every stage over its finished calls.

    Columns: job_type stage engine calls, the means waiting_ms (for the first batch; of a single engine,
    until the first token), service_ms (from there to the end) and delay_ms, and critical_share, its part
    of the time on critical paths.
    """
    calls = run.requests
    if "service_ms" not in calls:
        calls = calls.assign(job_arrival_ms=calls.arrival_ms, service_ms=calls.first_token_ms)
    calls = calls[calls.finish_ms.notna()]
    critical = critical_calls(calls)
    calls = calls.assign(critical=True)
    parts = _parts(calls)
    time = np.where(critical, calls.finish_ms - calls.arrival_ms, 0.0)
    frame = calls.assign(**parts, on_path=time)
    groups = frame.groupby(["job_type", "stage"], sort=True)
    stages = groups.agg(
        calls=("job", "size"),
        waiting_ms=("waiting", "mean"),
        service_ms=("service", "mean"),
        delay_ms=("delay", "mean"),
        critical_share=("on_path", "sum"),
    )
    # Not in ``agg``, which takes a keyword ``engine`` for its own.
    stages.insert(0, "engine", groups.engine.agg(lambda names: ", ".join(sorted(set(names)))))
    of_type = stages.groupby(level="job_type").critical_share.transform("sum")
    return stages.assign(critical_share=stages.critical_share / of_type).reset_index()


def _parts(calls: pd.DataFrame) -> dict[str, np.ndarray]:
    """Waiting, service and delay of the calls on critical paths, milliseconds."""
    is_call = (calls.engine != "").to_numpy()
    on_path = calls.critical.to_numpy()
    whole = (calls.finish_ms - calls.arrival_ms).to_numpy()
    waiting = np.where(is_call, (calls.service_ms - calls.arrival_ms).to_numpy(), 0.0)
    return {
        "is_call": is_call,
        "waiting": np.where(on_path & is_call, waiting, 0.0),
        "service": np.where(on_path & is_call, whole - waiting, 0.0),
        "delay": np.where(on_path & ~is_call, whole, 0.0),
    }


def _join_waiting(scenario: Any, calls: pd.DataFrame) -> pd.DataFrame:
    """join_waiting_ms of every job that has a join."""
    found = []
    for job_type in scenario.job_types:
        mine = calls[calls.job_type == job_type.name]
        for v, parents in enumerate(job_type.workflow.parents):
            if len(parents) < 2:
                continue
            joins = mine[mine.stage == v][[*JOB, "arrival_ms"]].rename(
                columns={"arrival_ms": "start_ms"}
            )
            for u in parents:
                before = mine[mine.stage == u][[*JOB, "finish_ms"]]
                pairs = joins.merge(before, on=JOB)
                pairs = pairs[pairs.finish_ms <= pairs.start_ms]
                latest = pairs.groupby([*JOB, "start_ms"]).finish_ms.max().reset_index()
                latest["join_waiting_ms"] = latest.start_ms - latest.finish_ms
                found.append(latest[[*JOB, "join_waiting_ms"]])
    if not found:
        return pd.DataFrame(columns=[*JOB, "join_waiting_ms"]).astype(
            {"env": int, "job": int, "job_type": object, "join_waiting_ms": float}
        )
    return pd.concat(found).groupby(JOB).join_waiting_ms.sum().reset_index()
