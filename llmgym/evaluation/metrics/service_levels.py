"""Service levels of a run: which requests met their targets, and what that is worth.

A request of a class with targets T (time to first token) and P (mean time per output token after the
first) and o output tokens meets T if its first token comes by arrival + T, and P if its last one comes by
its first token + (o - 1) * P. It misses a target when that deadline passes, finished or not; so a request
that starves is missed. Until then it is undecided. In particular:

- a request without output tokens has its answer, in place of a first token, when its prompt is done;
- with one output token or none it has no time between tokens, and meets P with its first token;
- one that was preempted keeps the tokens that it had: both deadlines stand as they were;
- without a first token P is undecided; a class without a target meets it;
- a request that was dropped misses everything.

A call of a network is a request with the targets of its job type; what a network is worth are its jobs
(``metrics.job_levels``), and so are those of a single engine that has end-to-end targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.evaluation.metrics.job_levels import job_levels
from llmgym.evaluation.metrics.shares import counted_share, dropped_of, elapsed_s
from llmgym.scenario.request_class import target_ticks

if TYPE_CHECKING:
    from llmgym.evaluation.run import Record


def verdicts(run: Record) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each request of ``run.raw`` met (1) or missed (0) T, P and both; NaN: undecided."""
    raw = run.raw
    ttft, tpot = target_ticks(run.scenario)[raw["request_class"]].T
    now = raw["end_clock"][raw["request_env"]]
    first, finish = raw["request_first"], raw["request_finish"]
    produced, done = ~np.isnan(first), ~np.isnan(finish)
    late = np.where(produced, first, now) - raw["request_arrival"] > ttft
    between = np.maximum(raw["request_decode"] - 1, 0)
    allowed = np.where(between > 0, tpot * np.maximum(between, 1), 0.0)
    slow = produced & (np.where(done, finish, now) - np.where(produced, first, now) > allowed)
    met_first = np.where(late, 0.0, np.where(produced, 1.0, np.nan))
    met_rest = np.where(slow, 0.0, np.where(done, 1.0, np.nan))
    missed = late | slow
    return met_first, met_rest, np.where(missed, 0.0, np.where(done, 1.0, np.nan))


def service_levels(run: Record) -> dict[str, Any]:
    """What ``run.summary`` says of service levels.

    Returns:
        slo: for each class its requests, those that arrived after the warm-up, dropped ones included;
        undecided, how many of them are; of the others attainment, the share that met both targets,
        ttft_attainment and tpot_attainment (the latter only of those that had a first token);
        and goodput_per_s, the requests per second that finished after the warm-up with both met.
        goodput_per_s: the sum over the classes, each times its weight. slo_attainment: the share, by
        weight, of all decided requests that met both targets. A share of nothing is NaN.

        Of a network, and where there are end-to-end targets, these two are of jobs, and job_slo says
        more: see ``metrics.job_levels``.
    """
    scenario, (met_first, met_rest, met) = run.scenario, verdicts(run)
    raw, by_jobs = run.raw, scenario.is_network or any(scenario.demand.job_targets_ms)
    warm = raw["warm_clock"] if run.warmup_s > 0 else np.full_like(raw["warm_clock"], -1)
    counted = raw["request_arrival"] > warm[raw["request_env"]]
    finished = raw["request_finish"] > warm[raw["request_env"]]
    slo: dict[str, dict[str, float]] = {}
    weighted_met, weighted_decided = 0.0, 0.0
    for k, one in enumerate(scenario.classes):
        if one.is_delay:
            continue
        mine = raw["request_class"] == k
        # What a network drops is a job, before it has any calls.
        chosen, dropped = mine & counted, 0 if scenario.is_network else dropped_of(run, k)
        good, decided = np.nansum(met[chosen]), (~np.isnan(met[chosen])).sum() + dropped
        weighted_met += one.weight * float(good)
        weighted_decided += one.weight * int(decided)
        slo[one.name] = {
            "requests": int(chosen.sum()) + dropped,
            "undecided": int(np.isnan(met[chosen]).sum()),
            "attainment": counted_share(met[chosen], dropped),
            "ttft_attainment": counted_share(met_first[chosen], dropped),
            "tpot_attainment": counted_share(met_rest[chosen], 0),
            "goodput_per_s": float(np.nansum(met[mine & finished])) / elapsed_s(run),
        }
    if by_jobs:
        return job_levels(run, met) | {"slo": slo}
    rates = [level["goodput_per_s"] for level in slo.values()]
    return {
        "goodput_per_s": float(np.dot([one.weight for one in scenario.classes], rates)),
        "slo_attainment": weighted_met / weighted_decided if weighted_decided else float("nan"),
        "slo": slo,
    }
