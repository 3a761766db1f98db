"""The benchmark resumes, repeats bit for bit, and writes nothing by halves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from html_pages import check_self_contained

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.evaluation import benchmark as benchmarks
from llmgym.evaluation import policies
from llmgym.reporting import benchmark_page
from llmgym.reporting import benchmark_report as report

SMALL: dict[str, Any] = {
    "loads": (0.5,),
    "replications": 2,
    "arrivals": 60,
    "capacity_requests": 40,
}


def small(**changes: Any) -> benchmarks.Benchmark:
    scenario = llmgym.scenario("geometric", slots=64, token_budget=128)
    settings = {"policies": ("sarathi", "idle"), **SMALL, **changes}
    return benchmarks.Benchmark(scenario, **settings)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark")
    results = benchmarks.run(small(), out)
    report.publish(small(), results, out)
    return out


def raw(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "raw").iterdir())}


def test_a_result_folder_holds_everything(first: Path) -> None:
    config = json.loads((first / "config.json").read_text())
    assert {"scenario", "versions", "seed", "policies", "loads", "python"} <= set(config)
    names = set(raw(first))
    assert names == {
        "limit.json",
        *(f"capacity-{p}.json" for p in ("sarathi", "idle")),
        *(f"{k}-{p}-0.5.json" for k in ("stability", "latency") for p in ("sarathi", "idle")),
    }
    records = report.rows(small(), benchmarks.run(small(), first))
    assert [r["policy"] for r in records] == ["sarathi", "idle"]
    assert [r["verdict"] for r in records] == ["stable", "unstable"]
    for name in ("results.csv", "benchmark.png", "benchmark.svg"):
        assert (first / name).stat().st_size > 0


def test_repeat_is_bit_equal(first: Path, tmp_path: Path) -> None:
    again = benchmarks.from_config(first)
    benchmarks.run(again, tmp_path)
    assert raw(tmp_path) == raw(first)


@pytest.mark.slow
def test_side_by_side_the_numbers_are_the_same(first: Path, tmp_path: Path) -> None:
    told: list[int] = []
    benchmarks.run(small(), tmp_path, lambda done, *_: told.append(done), jobs=2)
    assert raw(tmp_path) == raw(first)
    assert told == [*range(1, len(raw(first)) + 1), len(raw(first))]
    with pytest.raises(LLMGymError, match="jobs must be at least 1"):
        benchmarks.run(small(), tmp_path, jobs=0)


def test_resume_makes_only_what_is_missing(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = raw(first)
    (first / "raw" / "stability-idle-0.5.json").unlink()
    made = []
    monkeypatch.setattr(
        benchmarks, "_latency", lambda *a: pytest.fail("latency was measured again")
    )
    measure = benchmarks._stability
    monkeypatch.setattr(benchmarks, "_stability", lambda *a: made.append(a) or measure(*a))
    benchmarks.run(small(), first)
    assert len(made) == 1
    assert raw(first) == before


def test_another_configuration_is_refused(first: Path) -> None:
    with pytest.raises(LLMGymError, match="another"):
        benchmarks.run(small(seed=1), first)


def test_a_damaged_file_is_named(first: Path, tmp_path: Path) -> None:
    benchmark = small()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "limit.json").write_text("{")
    with pytest.raises(LLMGymError, match="is damaged"):
        benchmarks.run(benchmark, tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LLMGymError, match="not the configuration"):
        benchmarks.from_config(tmp_path)


OWN = """
from llmgym.engine.fill import fill

def decodes_only_then_prompts(key, view):
    return fill(view, fill(view, view.empty(), view.decode), view.prefill)
"""


def test_a_policy_of_ones_own_and_a_report(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    name = f"{file}:decodes_only_then_prompts"
    benchmark = small(policies=(name,), loads=(0.5,))
    results = benchmarks.run(benchmark, tmp_path / "out")
    page = benchmark_page.page(benchmark, results)
    check_self_contained(page, {"benchmark", "throughput-latency"})
    assert "<td>decodes_only_then_prompts</td>" in page
    file.write_text(OWN + "# edited\n")
    with pytest.raises(LLMGymError, match="another"):
        benchmarks.run(benchmark, tmp_path / "out")
    with pytest.raises(LLMGymError, match="Cannot read"):
        policies.resolve(f"{tmp_path}/other.py:rule")
    with pytest.raises(LLMGymError, match="Did you mean 'decodes_only_then_prompts'"):
        policies.resolve(f"{file}:decodes_only")


def test_unwritable_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMGymError, match="Cannot write"):
        benchmarks.run(small(), tmp_path / "file" / "below")


@pytest.mark.slow
def test_a_trace_is_the_workload(tmp_path: Path) -> None:
    replay = llmgym.Replay([0.0, 0.1, 0.5, 0.6, 1.0], [300, 20, 30, 40, 50], [5, 6, 7, 8, 9])
    scenario = llmgym.scenario("geometric", slots=64, token_budget=128, workload=replay)
    names = benchmarks.servable(("vllm", "sarathi"), scenario)
    assert names == ("vllm:prompts=split", "sarathi")
    results = benchmarks.run(benchmarks.Benchmark(scenario, names, **SMALL), tmp_path)
    assert results["latency-sarathi-0.5"]["summary"]["arrived"] == 5


def test_bad_benchmarks() -> None:
    with pytest.raises(LLMGymError, match="at least one policy"):
        benchmarks.Benchmark(llmgym.scenario("geometric"), ())
    with pytest.raises(LLMGymError, match="load"):
        small(loads=(0.0,))
    with pytest.raises(LLMGymError, match="token_budget"):
        policies.resolve("sarathi:token_budgett=3")
    with pytest.raises(LLMGymError, match="setting=value"):
        policies.resolve("sarathi:128")
