"""``llmgym evaluate``: measures against the run's own tables, both references, resuming."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import llmgym
from llmgym import LLMGymError, cli
from llmgym.evaluation import evaluate as evaluations
from llmgym.evaluation.evaluate import Evaluation
from llmgym.reporting import evaluation_page, evaluation_tables
from llmgym.reporting import evaluation_report as report

RATES = (8.0, 11.0)


def evaluation(**changes: object) -> Evaluation:
    scenario = llmgym.scenario("latency", slots=512, token_budget=256)
    settings = {"budgets": (128, 256), "seeds": 2, "arrivals": 120} | changes
    return Evaluation(scenario, ("greedy_rate",), RATES, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    chosen = evaluation()
    report.publish(chosen, evaluations.evaluate(chosen, out), out)
    return out


def test_latencies_are_those_of_the_run() -> None:
    scenario = llmgym.scenario("latency", slots=128, token_budget=256).at_rate(8.0)
    run = llmgym.simulate(scenario, "greedy_rate", duration_s=15, warmup_s=15 / 4, num_envs=2)
    found, summary = evaluations.latencies(run), run.summary
    for kind, unit in (("e2e_s", 1000), ("ttft_s", 1000), ("tpot_ms", 1)):
        name = kind.split("_")[0] + "_ms"
        for part in ("mean", "p99"):
            got = found["pooled"][f"{kind}_{part}"] * unit
            assert got == pytest.approx(summary[name][part], rel=1e-9)
    assert np.mean(found["in_system"]) == pytest.approx(summary["mean_in_system"], rel=1e-3)
    table = run.requests[run.requests.finish_ms > 15000 / 4]
    ttft = table.first_token_ms - table.arrival_ms
    tpot = (table.finish_ms - table.first_token_ms) / 111
    for env in range(2):
        mine = table.env == env
        good = (ttft[mine] < 1000) & (tpot[mine] < 100)
        assert found["goodput"][env] == pytest.approx(good.mean())
        e2e = (table.finish_ms - table.arrival_ms)[mine].mean() / 1000
        assert found["e2e_s_mean"][env] == pytest.approx(e2e)


@pytest.mark.slow
def test_goodput_counts_requests_by_the_weights_of_their_classes() -> None:
    scenario = llmgym.scenario("multi-tenant", slots=128).at_rate(7.0)
    run = llmgym.simulate(scenario, "sarathi", duration_s=40, warmup_s=10)
    table = run.requests[run.requests.finish_ms > 10_000]
    ttft, stay = (table[x] - table.arrival_ms for x in ("first_token_ms", "finish_ms"))
    slow = (stay - ttft >= 100 * (table.decode_tokens - 1)) & (table.decode_tokens > 1)
    promised = table.job_type == "interactive"
    good, weight = ~promised | ((ttft < 1000) & ~slow), np.where(promised, 10, 1)
    assert 0 < good[promised].mean() < 1
    expected = (good * weight).sum() / weight.sum()
    found = evaluations.latencies(run)
    assert found["goodput"] == pytest.approx([expected])
    assert found["pooled"]["goodput"] == pytest.approx(expected)


def test_another_baseline_may_be_the_reference() -> None:
    names = [task.name for task in evaluations.tasks(evaluation(reference="vllm_v1"))]
    assert "latency-vllm_v1-128-8-cold" in names and "sarathi" not in "".join(names)
    with pytest.raises(LLMGymError, match="Unknown policy 'vllm1'"):
        evaluation(reference="vllm1")


def test_gains_are_against_both_references(folder: Path) -> None:
    frame = pd.read_csv(folder / "results.csv")
    assert set(frame.start) == {"cold", "hot"} and set(frame.rate) == set(RATES)
    for _, some in frame.groupby(["start", "rate"]):
        latency = some.set_index("policy").e2e_s_mean
        fixed, tuned = latency["sarathi, 256"], latency["sarathi, best budget"]
        assert tuned <= fixed
        row = some[some.policy == "greedy_rate"].iloc[0]
        assert row.gain_fixed == pytest.approx(1 - row.e2e_s_mean / fixed)
        assert row.gain_tuned == pytest.approx(1 - row.e2e_s_mean / tuned)
        assert row.e2e_low < row.e2e_s_mean < row.e2e_high
    summary = pd.read_csv(folder / "summary.csv")
    cold = frame[(frame.start == "cold") & (frame.policy == "greedy_rate")]
    assert summary.iqm[0] == pytest.approx(cold.gain_tuned.mean(), abs=0.05)
    assert (summary.iqm_low <= summary.iqm).all() and (summary.iqm <= summary.iqm_high).all()
    capacity = pd.read_csv(folder / "capacity.csv")
    assert capacity.of_limit[0] == pytest.approx(1, abs=0.01)


def test_policies_meet_the_same_requests(folder: Path) -> None:
    raw = {p.stem: json.loads(p.read_text()) for p in (folder / "raw").glob("latency-*.json")}
    assert len(raw) == 2 * 2 * 3
    # Nothing is dropped, so who is not finished is in the system: arrivals are common.
    assert all(r["dropped"] == [0, 0] for r in raw.values())
    # A budget of 128 just carries 11 requests per second: a backlog lasts longer than the run.
    cold, hot = (raw[f"latency-sarathi-128-11-{start}"]["in_system"] for start in ("cold", "hot"))
    assert min(hot) > max(cold)


def test_what_is_there_is_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluations, "simulate", None)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    chosen = evaluations.from_config(folder)
    assert chosen == evaluation()
    report.publish(chosen, evaluations.evaluate(chosen, folder), folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    with pytest.raises(LLMGymError, match="another configuration"):
        evaluations.evaluate(evaluation(seeds=3), folder)


def test_the_command_repeats_a_folder_beside_it(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.chdir(tmp_path)
    repeat = ["llmgym", "evaluate", "--repeat", str(folder / "config.json"), "--json"]
    monkeypatch.setattr(sys, "argv", repeat)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    (out,) = (tmp_path / "results").iterdir()
    assert out.name == f"evaluation-repeated-{folder.name}"
    for raw in (folder / "raw").iterdir():
        assert (out / "raw" / raw.name).read_bytes() == raw.read_bytes()
    assert len(found["latency"]) == 2 * 2 * 3 and len(found["capacity"]) == 1


def test_bad_evaluations_are_refused(tmp_path: Path) -> None:
    latency = llmgym.scenario("latency")
    for scenario, policies, rates, message in [
        (llmgym.scenario("rybko-stolyar"), ("orca",), RATES, "judges one engine"),
        (latency, (), RATES, "needs a policy"),
        (latency, ("sarathy",), RATES, "Unknown policy 'sarathy'"),
        (latency, ("orca",), (0.0,), "rate must be greater than 0"),
        (latency, (str(tmp_path),), RATES, "There is no agent"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            Evaluation(scenario, policies, rates)
    with pytest.raises(LLMGymError, match="No budget"):
        evaluation().feasible(50.0)


def test_runs_close_to_capacity_are_longer() -> None:
    """A budget of 128 carries 128 tokens in 46.75 ms: at 11 of 11.36 requests/s it relaxes in 343 s."""
    judged = evaluations.Evaluation(
        llmgym.scenario("latency"), ("orca",), (8.0, 11.0, 11.34), (128, 512), arrivals=16_000
    )
    assert evaluations.horizon_s(judged, 8.0) == 2000.0
    relaxation = ((128 / 0.04675 / 241) ** 0.5 - 11**0.5) ** -2
    assert evaluations.horizon_s(judged, 11.0) == pytest.approx(20 * relaxation, rel=1e-3)
    assert evaluations.horizon_s(judged, 11.34) == pytest.approx(8 * 16_000 / 11.34)


def test_the_name_in_a_table_does_not_depend_on_the_folder_of_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "sarathi": "sarathi",
        "runs/ppo": "ppo",
        "runs/ppo/": "ppo",
        "a/b/agent-0.npz": "b/agent-0",
        "agent-0.npz": "agent-0",
        "mine/own.py:first": "own.py:first",
        "sarathi:prompts=split": "sarathi:prompts=split",
    }
    before = {name: report.short(name) for name in names}
    monkeypatch.chdir(tmp_path)
    for name in ("sarathi", "runs/ppo", "mine/own.py:first"):
        (tmp_path / name).mkdir(parents=True)
    assert {name: report.short(name) for name in names} == before == names


def test_a_best_budget_that_drops_requests_is_marked(folder: Path) -> None:
    results = {p.stem: json.loads(p.read_text()) for p in (folder / "raw").glob("*.json")}
    chosen = evaluation()
    plain = evaluation_tables.latency_by_rate(chosen, results, "hot").to_text()
    assert "dropped" not in plain and "*" not in plain
    assert "*" not in evaluation_tables.score_table(chosen, results).to_text()
    for name, found in results.items():
        if name.startswith("latency-sarathi-") and name.endswith("-11-hot"):
            found["dropped"] = [3, 1]
    assert report.lossy_rates(chosen, results, "hot") == [11.0]
    assert report.lossy_rates(chosen, results, "cold") == []
    told = "At 11 requests/s (hot start) sarathi drops requests with every budget"
    for table in (
        evaluation_tables.latency_by_rate(chosen, results, "hot"),
        evaluation_tables.latency_table(chosen, results, "hot"),
        evaluation_tables.score_table(chosen, results),
    ):
        assert told in table.to_text()
    text = evaluation_tables.latency_by_rate(chosen, results, "hot").to_text()
    assert "best budget (128*), 4 dropped" in text
    assert told in evaluation_page.page(chosen, results).replace("\\", "")
