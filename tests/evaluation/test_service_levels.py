"""Service levels: who met the targets, against the plain simulator and by hand."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference import Request, Simulator
from reference_policies import sarathi
from rich.console import Console
from workloads import reference_engine

import llmgym
from llmgym import Affine, Replay, Tenant
from llmgym.envs.interface.network import engine_scenario
from llmgym.evaluation.benchmark import Benchmark
from llmgym.evaluation.metrics.service_levels import service_levels, verdicts
from llmgym.evaluation.simulate import Run
from llmgym.reporting import service_tables
from llmgym.reporting.benchmark_report import rows
from llmgym.reporting.benchmark_tables import tables
from llmgym.scenario.request_class import target_ticks
from llmgym.scenario.scenario import Scenario

DURATION_S, WARMUP_S = 16.0, 4.0
TENANTS = (
    Tenant("chat", 900.0, 25.8, weight=4.0),
    Tenant("code", None, 22.5),
    Tenant("bulk", 1500.0, None, weight=0.25, priority=-1),
)


def engine(workload: Any) -> Scenario:
    return Scenario.single_engine(Affine(9.0, 0.35), 48, workload, slots=36, service_weights=(1, 2))


def shared(requests: int = 900) -> Replay:
    """Three tenants who ask for about 1.3 times what the engine can serve: its table is full at times."""
    rng = np.random.default_rng(5)
    which = rng.integers(0, 3, requests)
    low, high, least, most = np.array([(0, 40, 0, 9), (10, 60, 1, 3), (50, 90, 0, 30)]).T
    prefill = rng.integers(low[which], high[which] + 1)
    decode = rng.integers(least[which], most[which] + 1)
    return Replay(
        np.cumsum(rng.exponential(1 / 48, requests)),
        np.where(prefill + decode == 0, 1, prefill),
        decode,
        tenant=[TENANTS[k].name for k in which],
        tenants=TENANTS,
    )


@pytest.fixture(scope="module")
def run() -> Run:
    return llmgym.simulate(engine(shared()), "sarathi", duration_s=DURATION_S, warmup_s=WARMUP_S)


def judge(request: Request, tenant: Tenant, now: int) -> dict[str, Any]:
    """Whether a request met each target by the tick ``now``; None: undecided. Ticks of 0.01 ms."""
    if request.dropped:
        return {"ttft": False, "tpot": None, "both": False}
    targets = (tenant.ttft_ms, tenant.tpot_ms)
    ttft, tpot = (None if t is None else round(100 * t) for t in targets)
    first, last = request.first_token, request.finish
    found: dict[str, Any] = {"ttft": None, "tpot": None, "both": None}
    if first is not None:
        found["ttft"] = ttft is None or first <= request.arrival + ttft
        due = None if tpot is None else first + tpot * (request.decode - 1)
        if last is not None:
            found["tpot"] = due is None or request.decode <= 1 or last <= due
        elif due is not None and request.decode > 1 and now > due:
            found["tpot"] = False
    elif ttft is not None and now > request.arrival + ttft:
        found["ttft"] = False
    if False in found.values():
        found["both"] = False
    elif last is not None:
        found["both"] = True
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Any]]:
    """The same run by the plain simulator, and its requests judged one by one."""
    replay = shared()
    scenario, names = engine(replay), [tenant.name for tenant in TENANTS]
    ticks = np.rint(np.asarray(replay.arrival_s) * 1e5).astype(int)
    columns = (replay.request_class, np.arange(len(replay)), ticks)
    lengths = (replay.prefill_tokens, replay.decode_tokens)
    mine = [Request(*row) for row in np.array([*columns, *lengths]).T.tolist()]
    simulator = Simulator(reference_engine(scenario), sarathi(), list(mine))
    simulator.run(until=round(WARMUP_S * 1e5))
    warm = simulator.now
    simulator.run(until=round(DURATION_S * 1e5))
    counts: dict[str, dict[str, Any]] = {
        name: {"verdicts": [], "good": 0, "dropped": 0} for name in names
    }
    for request in mine[: simulator.arrived]:
        tenant = TENANTS[request.job_class]
        verdict, found = judge(request, tenant, simulator.now), counts[tenant.name]
        if request.arrival > warm:
            found["verdicts"].append(verdict)
            found["dropped"] += request.dropped
        if request.finish is not None and request.finish > warm:
            found["good"] += verdict["both"]
    elapsed_s: Any = (simulator.now - warm) / 1e5
    return counts | {"elapsed_s": elapsed_s}


def share(verdicts: list[bool | None]) -> float:
    decided = [v for v in verdicts if v is not None]
    return sum(decided) / len(decided)


def test_service_levels_are_those_of_the_plain_simulator(
    run: Run, expected: dict[str, dict[str, Any]]
) -> None:
    slo, worth, decided = run.summary["slo"], 0.0, 0.0
    weights = {tenant.name: tenant.weight for tenant in TENANTS}
    assert list(slo) == list(weights)
    for name, level in slo.items():
        found, good = expected[name]["verdicts"], expected[name]["good"]
        both = [v["both"] for v in found]
        assert level["requests"] == len(found) > 150
        assert level["undecided"] == both.count(None)
        assert {True, False} <= set(both)
        assert level["attainment"] == pytest.approx(share(both), rel=1e-12)
        assert level["ttft_attainment"] == pytest.approx(share([v["ttft"] for v in found]))
        assert level["tpot_attainment"] == pytest.approx(share([v["tpot"] for v in found]))
        assert level["goodput_per_s"] == pytest.approx(good / expected["elapsed_s"])
        worth += weights[name] * both.count(True)
        decided += weights[name] * (both.count(True) + both.count(False))
    assert sum(expected[name]["dropped"] for name in weights) > 20
    assert sum(level["undecided"] for level in slo.values()) > 20
    assert run.summary["slo_attainment"] == pytest.approx(worth / decided)
    rate = sum(weights[name] * slo[name]["goodput_per_s"] for name in weights)
    assert run.summary["goodput_per_s"] == pytest.approx(rate)


def test_drops_are_counted_by_class(run: Run) -> None:
    by_class = run.raw["end_dropped_of_class"]
    np.testing.assert_array_equal(by_class.sum(axis=0), run.raw["end_dropped"])
    arrived = run.raw["end_arrived"][0]
    came = np.bincount(shared().request_class[:arrived], minlength=3)
    got_in = [(run.requests.job_type == tenant.name).sum() for tenant in TENANTS]
    np.testing.assert_array_equal(by_class[:, 0], came - got_in)
    assert by_class.min() > 20


def test_service_of_the_clients(run: Run) -> None:
    fairness, done = run.summary["fairness"], run.requests.finish_ms.notna()
    assert fairness["bound"] == np.inf
    whole = run.raw["charged"].sum(axis=(0, 2))
    for k, name in enumerate(run.scenario.class_names):
        mine = run.requests[done & (run.requests.job_type == name)]
        finished = (mine.prefill_tokens + 2 * mine.decode_tokens).sum()
        present = run.requests[~done & (run.requests.job_type == name)]
        left = (present.prefill_tokens + 2 * present.decode_tokens).sum()
        assert finished <= whole[k] <= finished + left
        assert fairness["service_per_s"][name] > 0
    assert fairness["gap"] > 0


def by_hand(rows: list[tuple[float, float, float, int]], end: int, **targets: Any) -> Run:
    """A run of one class whose requests have these arrivals, first tokens, finishes and outputs."""
    scenario = engine(Replay([0.0], [1], [1])).override(service_weights=None, **targets)
    arrival, first, finish, output = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(len(rows), int)
    raw = {
        "request_env": none,
        "request_class": none,
        "request_arrival": arrival.astype(int),
        "request_first": first.astype(float),
        "request_finish": finish.astype(float),
        "request_decode": output.astype(int),
        "end_clock": np.array([end]),
        "warm_clock": np.array([0]),
        "end_dropped": np.array([1]),
        "warm_dropped": np.array([0]),
    }
    return Run(scenario, "hand", 0, 1, 0.0, raw)


NAN = float("nan")


def test_edge_cases_by_hand() -> None:
    rows = [  # ticks: arrival, first token, finish; output tokens; verdicts on TTFT, TPOT, both
        ((0, 1000, 1000, 0), (1, 1, 1)),  # no output: the prompt ends on the deadline
        ((0, 1001, 1001, 0), (0, 1, 0)),  # a tick late
        ((0, 1000, 1000, 1), (1, 1, 1)),  # one token: no time between tokens
        ((0, 1000, 1200, 3), (1, 1, 1)),  # the last of three on its deadline
        ((0, 1000, 1201, 3), (1, 0, 0)),
        ((500, 1000, NAN, 11), (1, NAN, NAN)),  # its last token is due at 2000, now
        ((500, 999, NAN, 11), (1, 0, 0)),
        ((1000, NAN, NAN, 2), (NAN, NAN, NAN)),  # its first token is due now
        ((999, NAN, NAN, 2), (0, NAN, 0)),  # starves
        ((0, 1001, NAN, 11), (0, NAN, 0)),  # late with the first, the last may still be in time
        ((999, 2000, NAN, 5), (0, NAN, 0)),
    ]
    run = by_hand([row for row, _ in rows], 2000, ttft_ms=10.0, tpot_ms=1.0)
    np.testing.assert_array_equal(np.array(verdicts(run)).T, [wanted for _, wanted in rows])
    level = service_levels(run)["slo"]["replay"]
    assert (level["requests"], level["undecided"]) == (12, 2)  # one was dropped
    assert level["attainment"] == 3 / 10
    assert level["ttft_attainment"] == 6 / 11
    assert level["tpot_attainment"] == 4 / 6
    assert level["goodput_per_s"] == pytest.approx(3 / 0.02)


def test_drops_in_a_short_warm_up_do_not_count() -> None:
    run = by_hand([(10, 20, 30, 2)], 2000, ttft_ms=10.0)  # one was dropped
    counts = {"warm_clock": np.array([5]), "warm_dropped": np.array([1])}
    later = replace(run, warmup_s=5e-5, raw=run.raw | counts)
    levels = [service_levels(x)["slo"]["replay"] for x in (run, later)]
    assert [level["requests"] for level in levels] == [2, 1]
    assert [level["attainment"] for level in levels] == [0.5, 1.0]


def test_one_target_alone() -> None:
    rows = [(0, 1001, 1900, 3), (0, NAN, NAN, 3), (1500, 1600, NAN, 2)]
    first = by_hand(rows, 2000, ttft_ms=10.0)
    np.testing.assert_array_equal(verdicts(first)[2], [0, 0, NAN])
    rest = by_hand(rows, 2000, tpot_ms=3.0)
    np.testing.assert_array_equal(verdicts(rest)[2], [0, NAN, 0])
    np.testing.assert_array_equal(verdicts(rest)[0], [1, NAN, 1])


def test_whole_ticks_stay_whole() -> None:
    # In floating point 0.3 / 0.1 is a little less than 3.
    ticks = target_ticks(engine(shared()).override(tick_ms=0.1, ttft_ms=0.3, tpot_ms=None))
    np.testing.assert_array_equal(ticks, [[3.0, np.inf]] * 3)


@pytest.mark.slow
def test_those_who_starve_are_missed() -> None:
    roomy = engine(shared()).override(slots=100)
    idle = llmgym.simulate(roomy, "idle", duration_s=1.2)
    slo = idle.summary["slo"]
    assert slo["chat"]["attainment"] == 0.0
    assert idle.summary["goodput_per_s"] == 0.0
    assert slo["code"]["undecided"] == slo["code"]["requests"] > 0  # no target for its first token
    assert np.isnan(slo["code"]["attainment"])


def test_nothing_is_said_where_nothing_was_promised(run: Run) -> None:
    no_targets = replace(run, scenario=run.scenario.override(ttft_ms=None, tpot_ms=None))
    assert not {"slo", "goodput_per_s", "slo_attainment"} & set(no_targets.summary)
    assert {"slo", "goodput_per_s", "slo_attainment", "fairness"} <= set(run.summary)
    unrecorded = {k: v[:0] if k.startswith("request_") else v for k, v in run.raw.items()}
    assert "slo" not in replace(run, raw=unrecorded).summary


def shown(*things: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(*things)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_tables(run: Run) -> None:
    level = run.summary["slo"]["chat"]
    text = shown(service_tables.slo_table(run.summary))
    assert f"{100 * level['attainment']:.1f} %" in text
    assert f"goodput {run.summary['goodput_per_s']:.3f}/s" in text
    text = shown(service_tables.fairness_table(run.summary["fairness"]))
    assert f"{run.summary['fairness']['gap']:,}" in text
    assert service_tables.percent(None) == service_tables.percent(NAN) == "-"


def results_of(summary: dict[str, Any]) -> dict[str, Any]:
    estimate = {"requests_per_s": 9.0, "low": 8.9, "high": 9.1, "method": "saturation"}
    verdict = {"verdict": "stable", "growth_tokens_per_ms": 0.0, "low": 0.0, "high": 0.0}
    return {
        "limit": {"requests_per_s": 10.0, "tokens_per_ms": 1.0},
        "capacity-sarathi": estimate,
        "stability-sarathi-0.5": verdict,
        "latency-sarathi-0.5": {"summary": summary},
    }


def test_benchmark_reports_goodput_where_there_are_targets(run: Run) -> None:
    benchmark = Benchmark(engine(shared()), ("sarathi",), loads=(0.5,))
    text = shown(*tables(benchmark, results_of(run.summary)))
    assert "Goodput per second" in text
    assert f"{run.summary['goodput_per_s']:.2f}" in text
    (record,) = rows(benchmark, results_of(run.summary))
    assert record["goodput_per_s"] == run.summary["goodput_per_s"]
    assert record["slo_attainment_code"] == run.summary["slo"]["code"]["attainment"]
    plain = {k: v for k, v in run.summary.items() if "slo" not in k and "goodput" not in k}
    assert "Goodput" not in shown(*tables(benchmark, results_of(plain)))
    (record,) = rows(benchmark, results_of(plain))
    assert not [key for key in record if "slo" in key or "goodput" in key]


def replicated(replicas: int) -> Scenario:
    job = llmgym.Workload(llmgym.Poisson(30.0), 20, 5, ttft_ms=60.0, tpot_ms=30.0, e2e_ms=200.0)
    one = Scenario.single_engine(Affine(9.0, 0.35), 48, job, slots=16)
    return replace(one, engines=(replace(one.engine, replicas=replicas),))


def test_each_of_several_replicas_keeps_the_targets() -> None:
    one, two = replicated(1), replicated(2)
    assert two.is_network and two.has_targets
    np.testing.assert_array_equal(target_ticks(two), target_ticks(one))
    assert two.demand.job_targets_ms == one.demand.job_targets_ms == (200.0,)
    for number in (0, 1):
        face = engine_scenario(two, number)
        np.testing.assert_array_equal(target_ticks(face), target_ticks(one))
        assert face.arrival_rate_per_s == one.arrival_rate_per_s / 2


@pytest.mark.slow
def test_service_levels_of_two_replicas_are_told_as_those_of_one() -> None:
    columns = []
    for scenario in (replicated(1), replicated(2)):
        run = llmgym.simulate(scenario, "sarathi", duration_s=2.0)
        found = {k: set(v) for k, v in run.summary.items() if k in ("slo", "job_slo")}
        found |= {name: set(level) for name, level in run.summary["slo"].items()}
        assert run.summary["goodput_per_s"] > 0
        (record,) = rows(Benchmark(scenario, ("sarathi",), loads=(0.5,)), results_of(run.summary))
        columns.append((set(run.summary), found, set(record)))
        assert "goodput_per_s" in record
    assert columns[0] == columns[1]
