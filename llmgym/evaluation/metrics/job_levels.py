"""Service levels of jobs: which had every call served within its targets, and ended in time.

A job of a type with end-to-end target E is late when its last call has not ended by its arrival + E. It
misses its targets when it is late or one of its calls misses a target (``metrics.service_levels``), and
meets them when it ends without a miss; before either it is undecided. A job that was dropped misses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llmgym.evaluation.metrics.shares import counted_share, dropped_of, elapsed_s

if TYPE_CHECKING:
    from llmgym.evaluation.run import Record

JOB = ["env", "stream", "number"]
"""Columns that name a job."""


def job_verdicts(run: Record, met: np.ndarray) -> pd.DataFrame:
    """Every job of a run, from its calls.

    Args:
        met: whether each request (call or delay) of ``run.raw`` met its targets: 1, 0, or NaN.

    Returns:
        a row for each job: env, its stream and number in it, job (of ``job_names``), arrival and
        finish in ticks (NaN: unfinished), in_time and met (1, 0, or NaN: undecided).
    """
    raw, classes = run.raw, run.scenario.classes
    which = raw["request_class"]
    calls = pd.DataFrame(
        {
            "env": raw["request_env"],
            "stream": np.array([one.stream for one in classes])[which],
            "number": raw["request_number"],
            "job": np.array([one.job for one in classes])[which],
            "arrival": raw.get("request_job_arrival", raw["request_arrival"]).astype(float),
            "finish": raw["request_finish"],
            "open": np.isnan(raw["request_finish"]),
            "missed": met == 0,
        }
    )
    jobs = calls.groupby(JOB, sort=True).agg(
        job=("job", "first"),
        arrival=("arrival", "first"),
        finish=("finish", "max"),
        open=("open", "any"),
        missed=("missed", "any"),
    )
    jobs = jobs.reset_index()
    jobs["finish"] = jobs.finish.where(~jobs.open)
    now = pd.Series(raw["end_clock"][jobs.env.to_numpy()].astype(float), jobs.index)
    late = jobs.finish.fillna(now) - jobs.arrival > _target_ticks(run)[jobs.job.to_numpy()]
    ended = jobs.finish.notna()
    jobs["in_time"] = np.where(late, 0.0, np.where(ended, 1.0, np.nan))
    jobs["met"] = np.where(late | jobs.missed, 0.0, np.where(ended, 1.0, np.nan))
    return jobs.drop(columns=["open", "missed"])


def job_levels(run: Record, met: np.ndarray) -> dict[str, Any]:
    """What ``run.summary`` says of the service levels of jobs; ``met`` as in ``job_verdicts``.

    Returns:
        job_slo: for each job type (or tenant) its jobs, those that arrived after the warm-up; undecided,
        how many of them are; of the others attainment, the share that met all targets, and
        e2e_attainment, the share that ended in time; and goodput_per_s, the jobs per second that
        finished after the warm-up with all met.
        goodput_per_s: the sum over them, each times its weight. slo_attainment: the share, by weight,
        of all decided jobs that met all targets.

        Dropped jobs are among them where it is known of which type they were. Where it is not (several
        types in a network), only slo_attainment heeds them, each with the mean weight of an arrival.
    """
    raw, names = run.raw, run.scenario.job_names
    jobs = job_verdicts(run, met)
    warm = raw["warm_clock"] if run.warmup_s > 0 else np.full_like(raw["warm_clock"], -1)
    since = warm[jobs.env.to_numpy()]
    counted, finished = jobs.arrival > since, jobs.finish > since
    weights, found = _weights(run), {}
    dropped, unknown = _dropped(run, len(names))
    good, decided = 0.0, float(np.dot(weights, dropped)) + unknown * _mean_weight(run)
    for j, name in enumerate(names):
        mine = jobs.job == j
        verdicts = jobs.met[mine & counted].to_numpy()
        good += weights[j] * float(np.nansum(verdicts))
        decided += weights[j] * int((~np.isnan(verdicts)).sum())
        found[name] = {
            "jobs": int((mine & counted).sum()) + dropped[j],
            "undecided": int(np.isnan(verdicts).sum()),
            "attainment": counted_share(verdicts, dropped[j]),
            "e2e_attainment": counted_share(jobs.in_time[mine & counted].to_numpy(), dropped[j]),
            "goodput_per_s": float(np.nansum(jobs.met[mine & finished])) / elapsed_s(run),
        }
    return {
        "goodput_per_s": float(np.dot(weights, [one["goodput_per_s"] for one in found.values()])),
        "slo_attainment": good / decided if decided else float("nan"),
        "job_slo": found,
    }


def _target_ticks(run: Record) -> np.ndarray:
    """End-to-end target of each of ``job_names`` in ticks, infinite where there is none."""
    targets = [np.inf if t is None else t for t in run.scenario.demand.job_targets_ms]
    return np.round(np.array(targets, float) / run.tick_ms, 6)


def _weights(run: Record) -> list[float]:
    """What a job of each of ``job_names`` is worth: all its classes have the same weight."""
    return list({one.job: one.weight for one in run.scenario.classes}.values())


def _mean_weight(run: Record) -> float:
    """What a mean arrival is worth."""
    classes, entering = run.scenario.classes, run.scenario.demand.entering_per_s
    if len(classes) == 1:
        return classes[0].weight
    return float(np.average([one.weight for one in classes], weights=entering))


def _dropped(run: Record, names: int) -> tuple[list[int], int]:
    """Dropped jobs of each of ``job_names``, and the number of those whose type is not known."""
    classes = run.scenario.classes
    if names == 1:
        return [dropped_of(run, None)], 0
    if "end_dropped_of_class" not in run.raw:
        return [0] * names, dropped_of(run, None)
    counts = [0] * names
    for k, one in enumerate(classes):
        counts[one.job] += dropped_of(run, k)
    return counts, 0
