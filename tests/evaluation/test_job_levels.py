"""Service levels of jobs: every call within its targets, and the job in time."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import llmgym
from llmgym.evaluation.metrics.job_levels import job_verdicts
from llmgym.evaluation.metrics.service_levels import service_levels, verdicts
from llmgym.evaluation.simulate import Run, simulate
from llmgym.reporting.service_tables import job_levels_table
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import Tenant
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Repeat, Stage
from llmgym.scenario.workload import JobType

NAN = float("nan")
AGENT = JobType(
    Poisson(3.0),
    (
        Stage(Geometric(30), Geometric(6), engine="a", name="plan"),
        Stage(delay_ms=Geometric(40), name="tool"),
        Stage(Geometric(20), Geometric(4), engine="b", name="act", repeat=Repeat("tool", 0.4)),
    ),
    "agent",
    ttft_ms=60.0,
    tpot_ms=14.0,
    weight=3.0,
    e2e_ms=450.0,
)
FLAT = JobType(
    Poisson(6.0), (Stage(Geometric(40), Geometric(5), engine="b"),), "flat", ttft_ms=40.0
)
ENGINES = (Engine(Affine(9.0, 0.1), 48, name="a"), Engine(Affine(10.0, 0.1), 40, name="b"))
NETWORK = Scenario(ENGINES, (AGENT, FLAT))


@pytest.fixture(scope="module", name="run")
def _run() -> Run:
    return simulate(NETWORK, "sarathi", duration_s=40.0, warmup_s=5.0, num_envs=2, seed=3)


def judged(run: Run) -> list[dict[str, Any]]:
    """Every job with its verdicts, call by call in plain Python, from the table of requests."""
    jobs: dict[tuple[int, str, int], list[Any]] = {}
    for call in run.requests.itertuples():
        jobs.setdefault((call.env, call.job_type, call.job), []).append(call)
    found = []
    for (env, name, _), calls in jobs.items():
        job_type = next(j for j in run.scenario.job_types if j.name == name)
        now = float(run.raw["end_clock"][env]) * run.tick_ms
        good: list[bool | None] = []
        for call in calls:
            done, begun = (
                call.finish_ms == call.finish_ms,
                call.first_token_ms == call.first_token_ms,
            )
            if call.engine != "":
                first = call.first_token_ms if begun else now
                last = call.finish_ms if done else now
                late = first - call.arrival_ms > (job_type.ttft_ms or np.inf) + 1e-6
                pace = (job_type.tpot_ms or np.inf) * max(call.decode_tokens - 1, 0)
                if call.decode_tokens <= 1:
                    pace = 0.0
                slow = begun and last - first > pace + 1e-6
                good.append(False if late or slow else True if done else None)
            else:
                good.append(True if done else None)
        ended = all(call.finish_ms == call.finish_ms for call in calls)
        finish = max(call.finish_ms for call in calls) if ended else NAN
        arrival = calls[0].job_arrival_ms
        end = finish if ended else now
        in_time = end - arrival <= (job_type.e2e_ms or np.inf) + 1e-6
        met = None if not ended else True
        if not in_time or False in good:
            met = False
        found.append({"name": name, "arrival": arrival, "finish": finish, "met": met})
        found[-1]["in_time"] = (True if ended else None) if in_time else False
    return found


def test_jobs_are_judged_call_by_call(run: Run) -> None:
    expected, summary = judged(run), run.summary
    assert list(summary["slo"]) == ["agent.plan", "agent.act", "flat"]
    assert list(summary["job_slo"]) == ["agent", "flat"]
    elapsed = 2 * 35.0
    weights, good, decided, rate = {"agent": 3.0, "flat": 1.0}, 0.0, 0.0, 0.0
    for name, level in summary["job_slo"].items():
        mine = [job for job in expected if job["name"] == name]
        chosen = [job["met"] for job in mine if job["arrival"] > 5000.0]
        finished = [job["met"] for job in mine if job["finish"] > 5000.0]
        assert level["jobs"] == len(chosen) > 100
        assert level["undecided"] == chosen.count(None)
        known = [met for met in chosen if met is not None]
        assert 0.1 < np.mean(known) < 0.95
        assert level["attainment"] == pytest.approx(np.mean(known))
        times = [job["in_time"] for job in mine if job["arrival"] > 5000.0]
        assert level["e2e_attainment"] == pytest.approx(
            np.mean([t for t in times if t is not None])
        )
        assert level["goodput_per_s"] == pytest.approx(finished.count(True) / elapsed, rel=2e-3)
        good, decided = good + weights[name] * sum(known), decided + weights[name] * len(known)
        rate += weights[name] * level["goodput_per_s"]
    assert summary["slo_attainment"] == pytest.approx(good / decided)
    assert summary["goodput_per_s"] == pytest.approx(rate)
    assert summary["job_slo"]["flat"]["e2e_attainment"] == 1.0
    assert summary["job_slo"]["agent"]["attainment"] < summary["job_slo"]["agent"]["e2e_attainment"]


def test_calls_of_a_network_are_judged_by_the_targets_of_their_job_type(run: Run) -> None:
    calls = run.requests[(run.requests.engine == "a") & (run.requests.arrival_ms > 5000.0)]
    begun = calls[calls.first_token_ms.notna()]
    in_time = begun.first_token_ms - begun.arrival_ms <= 60.0 + 1e-6
    level = run.summary["slo"]["agent.plan"]
    assert level["requests"] == len(calls)
    assert level["ttft_attainment"] == pytest.approx(in_time.mean(), abs=2 / len(calls))


def test_without_targets_a_network_has_no_levels(run: Run) -> None:
    bare = replace(run, scenario=NETWORK.override(ttft_ms=None, tpot_ms=None, e2e_ms=None))
    assert not {"slo", "job_slo", "goodput_per_s"} & set(bare.summary)
    only = replace(run, scenario=NETWORK.override(ttft_ms=None, tpot_ms=None, e2e_ms=450.0))
    for name, level in only.summary["job_slo"].items():
        assert level["attainment"] == level["e2e_attainment"] > 0.5, name


def by_hand(scenario: Scenario, calls: list[tuple[Any, ...]], dropped: int = 0, **more: Any) -> Run:
    """A run whose calls have these classes, numbers, job arrivals, arrivals, first tokens, finishes."""
    columns = np.array(calls, float).T
    names = ("class", "number", "job_arrival", "arrival", "first", "finish")
    raw = {f"request_{name}": column for name, column in zip(names, columns, strict=True)}
    for name in ("class", "number"):
        raw[f"request_{name}"] = raw[f"request_{name}"].astype(int)
    raw |= {"request_env": np.zeros(len(calls), int), "request_decode": np.ones(len(calls), int)}
    raw |= {"end_clock": np.array([100_000]), "warm_clock": np.array([0])}
    raw |= {"end_dropped": np.array([dropped]), "warm_dropped": np.array([0]), **more}
    return Run(scenario, "hand", 0, 1, 0.0, raw)


def test_edge_cases_by_hand() -> None:
    chain = replace(AGENT, stages=tuple(replace(s, repeat=None) for s in AGENT.stages))
    scenario = Scenario(ENGINES, chain).override(ttft_ms=100.0, tpot_ms=None, e2e_ms=500.0)
    calls = [  # ticks: class, number, arrival of the job and of the call, first token, finish
        # Ends on its deadline; the delay takes long, which only the end counts.
        (0, 0, 0, 0, 10_000, 10_000),
        (1, 0, 0, 10_000, NAN, 40_000),
        (2, 0, 0, 40_000, 50_000, 50_000),
        # A tick late.
        (0, 1, 0, 0, 10_000, 10_000),
        (1, 1, 0, 10_000, NAN, 45_000),
        (2, 1, 0, 45_000, 50_001, 50_001),
        # In time, but its second call began late.
        (0, 2, 0, 0, 10_000, 10_000),
        (1, 2, 0, 10_000, NAN, 20_000),
        (2, 2, 0, 20_000, 30_001, 30_001),
        # In its delay, and due now.
        (0, 3, 50_000, 50_000, 60_000, 60_000),
        (1, 3, 50_000, 60_000, NAN, NAN),
        # The same a tick earlier: too late, though nothing of it has ended late.
        (0, 4, 49_999, 50_000, 60_000, 60_000),
        (1, 4, 49_999, 60_000, NAN, NAN),
        # Undecided, but one of its calls has missed.
        (0, 5, 80_000, 80_000, 95_000, 95_000),
        (1, 5, 80_000, 95_000, NAN, NAN),
    ]
    run = by_hand(scenario, calls, dropped=2)
    jobs = job_verdicts(run, verdicts(run)[2])
    np.testing.assert_array_equal(jobs.in_time, [1, 0, 1, NAN, 0, NAN])
    np.testing.assert_array_equal(jobs.met, [1, 0, 0, NAN, 0, 0])
    found = service_levels(run)
    assert found["job_slo"]["agent"] == {
        "jobs": 8,
        "undecided": 1,
        "attainment": 1 / 7,
        "e2e_attainment": 2 / 6,
        "goodput_per_s": 1.0,
    }
    assert found["goodput_per_s"] == 3.0
    assert found["slo_attainment"] == pytest.approx(1 / 7)
    assert "agent.tool" not in found["slo"]
    assert found["slo"]["agent.plan"]["requests"] == 6
    out = StringIO()
    Console(file=out, width=80).print(job_levels_table(found["job_slo"]))
    assert "14.3 %" in out.getvalue()


def test_drops_of_several_types_count_with_the_mean_weight() -> None:
    calls = [
        (0, 0, 0, 0, 10, 10),
        (1, 0, 0, 10, NAN, 20),
        (2, 0, 0, 20, 30, 30),
        (3, 0, 5, 5, 9, 9),
    ]
    run = by_hand(NETWORK.override(tpot_ms=None), calls, dropped=3)
    found = service_levels(run)
    assert [level["attainment"] for level in found["job_slo"].values()] == [1.0, 1.0]
    mean = (3.0 * 3 + 6.0 * 1) / 9  # three agents a second of weight 3, six others of weight 1
    assert found["slo_attainment"] == pytest.approx(4 / (4 + 3 * mean))


@pytest.mark.parametrize("name", ["job types", "tenants"])
def test_one_engine_with_end_to_end_targets(name: str) -> None:
    if name == "job types":
        workload: Any = (
            JobType(Poisson(20.0), (Stage(Geometric(30), Geometric(6)),), "x", e2e_ms=120.0),
            JobType(Poisson(9.0), (Stage(40, 3),), "y", ttft_ms=70.0, weight=2.0),  # type: ignore[arg-type]
        )
    else:
        rng = np.random.default_rng(0)
        columns = (
            np.sort(rng.uniform(0, 10, 300)),
            rng.integers(1, 80, 300),
            rng.integers(1, 9, 300),
        )
        tenants = (Tenant("x", e2e_ms=120.0), Tenant("y", ttft_ms=70.0, weight=2.0))
        workload = Replay(*columns, tenant=rng.choice(["x", "y"], 300), tenants=tenants)
    scenario = Scenario((Engine(Affine(10.0, 0.2), 64),), workload)
    run = llmgym.simulate(scenario, "sarathi", duration_s=10.0, seed=1)
    table, levels = run.requests, run.summary["job_slo"]
    done = table[table.finish_ms.notna()]
    x, y = done[done.job_type == "x"], done[done.job_type == "y"]
    good = [
        int((x.finish_ms - x.arrival_ms <= 120.0 + 1e-6).sum()),
        int((y.first_token_ms - y.arrival_ms <= 70.0 + 1e-6).sum()),
    ]
    elapsed_s = run.summary["elapsed_s"]
    assert 0 < good[0] < len(x)
    assert [level["goodput_per_s"] for level in levels.values()] == pytest.approx(
        [n / elapsed_s for n in good]
    )
    assert run.summary["goodput_per_s"] == pytest.approx((good[0] + 2 * good[1]) / elapsed_s)
    # The targets of calls are judged as ever; x has none of them.
    assert run.summary["slo"]["x"]["attainment"] == 1.0
