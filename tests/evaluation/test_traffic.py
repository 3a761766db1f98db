"""Policies on a trace at its own times: what is recorded, resumed, and refused."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmgym
from llmgym import cli
from llmgym.core.errors import LLMGymError
from llmgym.evaluation import benchmark, traffic
from llmgym.reporting import traffic_tables
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.toml_writer import save

POLICIES = ("vllm", "srpt", "idle")


def engine(**settings: Any) -> llmgym.Scenario:
    """Ten ms an iteration and a token, memory for 40 blocks of 16, at most 64 requests."""
    return llmgym.scenario(
        "geometric",
        batch_time=llmgym.Affine(10.0, 0.1),
        token_budget=64,
        kv_cache=KVCache(40, 16),
        slots=64,
        **settings,
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty requests in 0.58 s; prompts of up to 105 tokens, above the token budget."""
    path = tmp_path_factory.mktemp("trace") / "mine.csv"
    rows = "".join(f"{n / 50},{10 + n % 20 * 5},{1 + n % 7}\n" for n in range(30))
    path.write_text(f"arrival,prefill,decode\n{rows}")
    return path


def small(trace: Path, **changes: Any) -> traffic.Traffic:
    settings = {"ttft_ms": 25.0, "tpot_ms": 50.0, "drain_s": 5.0} | changes
    return traffic.Traffic(settings.pop("engine", engine()), trace, **settings)


@pytest.fixture(scope="module")
def first(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    out = tmp_path_factory.mktemp("traffic")
    records = traffic.run(small(trace), POLICIES, out)
    traffic_tables.publish(records, out)
    return out, records


def test_every_policy_gets_what_it_asks_for(trace: Path, first: tuple[Path, list[Any]]) -> None:
    by_name = {record["policy"]: record for record in first[1]}
    assert [by_name[name]["given"] for name in POLICIES] == [{}, {"lengths_known": True}, {}]
    assert by_name["vllm"]["settings"] == {"prompts": "split"}
    assert traffic._given(llmgym.baselines.make("vtc"), small(trace).scenario) == {
        "service_weights": (1.0, 2.0)
    }
    changed = traffic._adapted(llmgym.baselines.make("edf"), small(trace))[1]
    assert changed == {"ttft_ms": 25.0, "tbt_ms": 50.0}
    own = llmgym.baselines.make("slai", tbt_ms=7.0)
    assert traffic._adapted(own, small(trace)) == (own, {})


def test_the_numbers_are_those_of_simulate(trace: Path, first: tuple[Path, list[Any]]) -> None:
    record = first[1][0]
    read = llmgym.traces.readers.read_trace(trace)
    workload = replace(read, ttft_ms=25.0, tpot_ms=50.0)
    scenario = replace(engine(), workload=workload)
    policy = llmgym.baselines.make("vllm", prompts="split")
    run = llmgym.simulate(scenario, policy, duration_s=5.58)
    for name in ("goodput_per_s", "slo_attainment", "unfinished", "dropped", "arrived"):
        assert record[name] == run.summary[name]
    assert 0 < record["slo_attainment"] < 1
    assert record["ttft_ms"]["p99"] == run.summary["ttft_ms"]["p99"]
    soon = run.requests.eval("first_token_ms - arrival_ms") <= 25
    assert record["ttft_attainment"] == soon.mean()
    assert record["preemptions"] == run.requests.preemptions.sum()
    assert record["wall_s"] > 0 and record["cpu_s"] > 0
    assert record["unfinished"] == 0
    nothing = first[1][-1]
    assert (nothing["unfinished"], nothing["slo_attainment"], nothing["goodput_per_s"]) == (
        30,
        0,
        0,
    )


def test_a_full_table_is_enlarged(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "FIRST_SLOTS", 8)
    record = traffic._record(small(trace), "idle")
    assert (record["slots"], record["dropped"], record["most_in_system"]) == (64, 0, 30)


def test_a_run_is_resumed_and_extended(
    trace: Path, first: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(traffic, "_record", lambda _, name: made.append(name) or first[1][0])
    assert traffic.run(small(trace), POLICIES, first[0]) == first[1]
    traffic.run(small(trace), (*POLICIES, "orca"), first[0])
    assert made == ["orca"]
    with pytest.raises(LLMGymError, match="another configuration"):
        traffic.run(small(trace, drain_s=6.0), POLICIES, first[0])
    config = json.loads((first[0] / "config.json").read_text())
    assert config["trace"]["file"] == "mine.csv" and len(config["trace"]["sha256"]) == 64


def test_tables(first: tuple[Path, list[Any]]) -> None:
    out, records = first
    with (out / "results.csv").open() as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(POLICIES)
    assert rows["srpt"]["notes"] == "knows output lengths"
    assert rows["vllm"]["notes"] == "prompts split"
    assert float(rows["vllm"]["ttft_ms_mean"]) == records[0]["ttft_ms"]["mean"]
    lines = (out / "results.md").read_text().splitlines()
    assert lines[0].startswith("| policy | goodput/s |")
    assert lines[-1].startswith("| idle | 0.00 | 0.0 % | - | - |")
    twin = records[0] | {"policy": "twin", "wall_s": 99.0}
    again = traffic_tables.table([*records, twin]).rows
    assert [row[0] for row in again if "twin" in row[0]] == [
        "vllm (prompts split), twin (prompts split)"
    ]
    assert len(again) == len(lines) - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_s": (90.0, 99.0)}, "No request arrives between 90 and 99 s"),
        ({"drain_s": -1.0}, "drain_s must be at least 0"),
        ({"ttft_ms": 0.0}, "ttft_ms must be greater than 0"),
        (
            {"engine": engine().override(kv_cache=KVCache(6, 16))},
            "Request 17, of 99 tokens, and 2 more never fit",
        ),
        ({"engine": llmgym.scenario("load-balanced")}, "is a network"),
    ],
)
def test_bad_runs_are_named_before_they_begin(
    trace: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LLMGymError, match=message):
        small(trace, **changes)


def test_unknown_policies(trace: Path, tmp_path: Path) -> None:
    with pytest.raises(LLMGymError, match="Did you mean 'sarathi'"):
        traffic.run(small(trace), ("sarathi", "saraty"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_benchmark_names_what_never_fits(trace: Path) -> None:
    scenario = engine(workload=llmgym.traces.readers.read_trace(trace)).override(
        kv_cache=KVCache(6, 16)
    )
    with pytest.raises(LLMGymError, match="and 2 more never fit into KV memory, which holds 96"):
        benchmark.servable(("sarathi",), scenario)


def test_the_command(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(engine(), tmp_path / "engine.toml")
    options = ["-s", str(tmp_path / "engine.toml"), "--set", "slots=64", "-p", "idle"]
    window = ["--window", "0.1:0.44", "--drain-s", "0", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["llmgym", "replay", str(trace), *options, *window])
    cli.app(standalone_mode=False)
    text = " ".join(capsys.readouterr().out.split())
    assert "mine.csv on geometric: 50.00 requests/s" in text
    assert re.search(r"idle 0.00 - - - - 0 17 0 \d", text)
    assert (tmp_path / "out" / "raw" / "idle.json").exists()
