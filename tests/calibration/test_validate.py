"""Requests and runs of vLLM: every fault of their files, and that simulation reproduces them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym.calibration.validate import compare, read_vllm_run
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import Roofline
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.kv_cache import KVCache
from llmgym.traces.readers import read_trace

ROOT = Path(__file__).parents[2]
NAME = "RTX4090_Llama-3.1-8B"
PRESET = "rtx4090-llama-3.1-8b"
META = {
    "engine_kwargs": {"max_num_seqs": 4, "max_num_batched_tokens": 64},
    "kv_cache": {"num_gpu_blocks": 21, "block_size": 4},
}


def row(name: str, queued: float, **changes: Any) -> dict[str, Any]:
    times = {"queued_ts": queued, "first_token_ts": queued + 0.1, "last_token_ts": queued + 0.3}
    whole = {"request_id": name, "input_toks": 10, "output_toks": 3, "arrival_time": queued + 1e9}
    return whole | {"scheduled_ts": queued} | times | changes


ROWS = [row("b", 7.5, input_toks=20), row("a", 7.0), row("c", 9.0, output_toks=1)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in rows)


@pytest.fixture
def folder(tmp_path):
    """Write a recorded run and give its folder."""

    def write(rows: list[Any] | str = ROWS, meta: Any = META) -> Path:
        (tmp_path / "requests.jsonl").write_text(rows if isinstance(rows, str) else lines(rows))
        (tmp_path / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
        return tmp_path

    return write


def test_requests_are_sorted_by_arrival(folder):
    trace = read_trace(folder() / "requests.jsonl")
    assert trace.arrival_s.tolist() == [0, 0.5, 2]
    assert trace.prefill_tokens.tolist() == [10, 20, 10]
    assert trace.decode_tokens.tolist() == [3, 3, 1]
    assert len(read_trace(folder() / "requests.jsonl", limit=2)) == 2


@pytest.mark.parametrize("name", ["requests.jsonl", "requests.txt"])
def test_arrival_time_serves_where_nothing_was_queued(tmp_path, name):
    kept = ("input_toks", "output_toks", "arrival_time")
    (tmp_path / name).write_text(lines([{k: r[k] for k in kept} for r in ROWS]))
    assert read_trace(tmp_path / name).arrival_s.tolist() == [0, 0.5, 2]


def without(name: str, of: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in of.items() if k != name}


FAULTS = [
    ("", "is empty"),
    (lines(ROWS[:2]) + '{"queued_ts": 3, "inp', "line 3: not one whole JSON object"),
    ([ROWS[0], [1]], "line 2: not one whole JSON object"),
    ([ROWS[0], without("input_toks", ROWS[1])], "line 2: input_toks is missing"),
    ([ROWS[0], without("output_toks", ROWS[1])], "line 2: output_toks is missing"),
    ([row("a", 1, output_toks=0)], "line 1: output_toks is 0, below 1"),
    ([ROWS[0], row("a", 1, input_toks=0)], "line 2: input_toks is 0, below 1"),
    ([row("a", 1, output_toks=-2)], "line 1: output_toks is -2, not a number of 0 or more"),
    ([row("a", 1, output_toks=2.5)], "line 1: output_toks is 2.5, not a whole number"),
    ([ROWS[0], row("a", float("nan"))], "line 2: queued_ts is nan, not a number"),
    ([row("a", 1, queued_ts=float("inf"))], "line 1: queued_ts is inf, not a number"),
    ([row("a", 1, queued_ts=None)], "line 1: queued_ts is None, not a number"),
]


@pytest.mark.parametrize(("rows", "fault"), FAULTS)
def test_faults_of_requests(folder, rows, fault):
    path = folder(rows)
    with pytest.raises(LLMGymError, match=f"requests.jsonl.*{fault}"):
        read_trace(path / "requests.jsonl")
    with pytest.raises(LLMGymError, match=f"requests.jsonl.*{fault}"):
        read_vllm_run(path)


def test_a_time_of_arrival_is_needed(folder):
    rows = [without("arrival_time", without("queued_ts", ROWS[0]))]
    with pytest.raises(LLMGymError, match=r"line 1: queued_ts or arrival_time is missing\. Needed"):
        read_trace(folder(rows) / "requests.jsonl", "vllm")


def test_a_run_is_read(folder):
    run = read_vllm_run(folder())
    assert (run.token_budget, run.max_num_seqs, run.kv_cache) == (64, 4, KVCache(20, 4))
    assert run.policy == llmgym.baselines.VLLMV1()
    assert run.measured.request_id.tolist() == ["a", "b", "c"]
    assert run.measured.ttft_ms.to_numpy() == pytest.approx([100, 100, 100])
    assert run.measured.tpot_ms.to_numpy() == pytest.approx([100, 100, np.nan], nan_ok=True)
    assert run.measured.e2e_ms.to_numpy() == pytest.approx([300, 300, 300])
    assert run.peak == 1
    assert read_vllm_run(folder([row("a", 0), row("b", 0.2), row("c", 0.4)])).peak == 2


def test_the_scenario_of_a_run(folder, tmp_path):
    run = read_vllm_run(folder())
    engine = run.scenario(PRESET).engine
    assert engine.batch_time == PRESETS[PRESET]
    assert (engine.seq_limit, engine.first_token) == ("resident", "prefill")
    assert (engine.token_budget, engine.max_num_seqs, engine.kv_cache) == (64, 4, KVCache(20, 4))
    assert run.scenario(PRESETS[PRESET], slots=9).slots == 9
    path = tmp_path / "mine.toml"
    path.write_text('[batch_time]\nkind = "affine"\nc_ms = 1.0\na_ms_per_token = 0.5\n')
    assert run.scenario(path).engine.batch_time == llmgym.Affine(1.0, 0.5)
    with pytest.raises(LLMGymError, match=r"Did you mean 'rtx4090-llama-3\.1-8b'"):
        run.scenario("rtx4090-llama")


def test_options_of_the_scheduler(folder):
    options = {
        "max_num_seqs": 3,
        "enable_chunked_prefill": False,
        "long_prefill_token_threshold": 8,
        "scheduler_reserve_full_isl": False,
        "watermark": 0.25,
    }
    run = read_vllm_run(folder(meta=META | {"resolved_config": {"scheduler_config": options}}))
    assert run.max_num_seqs == 3  # what the engine made of the arguments
    assert run.policy == llmgym.baselines.VLLMV1(
        chunked_prefill=False, long_prefill_cap=8, reserve_full=False, watermark=0.25
    )


def changed(table: str, **values: Any) -> dict[str, Any]:
    return META | {table: META[table] | values}


@pytest.mark.parametrize(
    ("meta", "fault"),
    [
        ("{", "is not one whole JSON object"),
        ("[1]", "is not one whole JSON object"),
        (without("kv_cache", META), "num_gpu_blocks is missing; it belongs in kv_cache or"),
        (without("engine_kwargs", META), "max_num_batched_tokens is missing; it belongs in"),
        (META | {"engine_kwargs": 3}, "max_num_batched_tokens is missing"),
        (changed("kv_cache", num_gpu_blocks="many"), "num_gpu_blocks must be a number"),
        (changed("kv_cache", num_gpu_blocks=1), "num_gpu_blocks must be at least 2"),
        (changed("kv_cache", block_size=0), "block_size must be at least 1"),
        (changed("engine_kwargs", max_num_seqs=2.5), "max_num_seqs must be a whole number"),
        (changed("engine_kwargs", data_parallel_size=2), "data_parallel_size = 2 is not modelled"),
        (changed("engine_kwargs", policy="priority"), "policy = 'priority' is not modelled"),
        (changed("engine_kwargs", watermark=2), "watermark must be at most 1"),
    ],
)
def test_faults_of_settings(folder, meta, fault):
    with pytest.raises(LLMGymError, match=f"meta.json.*{fault}"):
        read_vllm_run(folder(meta=meta))


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([without("queued_ts", ROWS[0])], "line 1: queued_ts is missing"),
        ([without("last_token_ts", ROWS[0])], "line 1: last_token_ts is missing"),
        ([ROWS[0], row("a", 1, last_token_ts=None)], "line 2: last_token_ts is None"),
        ([ROWS[0], row("a", 1, first_token_ts=0.9)], "line 2: first_token_ts.*before queued_ts"),
        ([row("a", 1, last_token_ts=1.05)], "line 1: last_token_ts.*before first_token_ts"),
        ([ROWS[0], ROWS[1], ROWS[0]], "line 3: request_id is 'b' twice"),
    ],
)
def test_faults_of_what_was_measured(folder, rows, fault):
    with pytest.raises(LLMGymError, match=f"requests.jsonl.*{fault}"):
        read_vllm_run(folder(rows))


def test_missing_files(folder, tmp_path):
    with pytest.raises(LLMGymError, match=r"Cannot read .*meta\.json: No such file"):
        read_vllm_run(tmp_path / "nowhere")
    (folder() / "requests.jsonl").unlink()
    with pytest.raises(LLMGymError, match=r"Cannot read .*requests\.jsonl: No such file"):
        read_vllm_run(tmp_path)
    with pytest.raises(LLMGymError, match="folder must name a recorded run, got 3"):
        read_vllm_run(3)


def test_a_run_that_was_simulated_is_reproduced(folder):
    """Preemptions included: its own times come back, and times stretched by 5/4 are seen as such."""
    rng = np.random.default_rng(0)
    known = Roofline(5.0, 0.1, 16, 1.0, 10.0)
    rows = [
        row(f"r{n}", n / 100, input_toks=int(rng.integers(8, 24)), output_toks=int(outputs))
        for n, outputs in enumerate(rng.integers(1, 20, 24))
    ]
    guessed = read_vllm_run(folder(rows))
    run = llmgym.simulate(guessed.scenario(known), guessed.policy)
    served = run.requests.sort_values("job")
    assert served.preemptions.sum() > 0
    times = zip(rows, served.first_token_ms / 1000, served.finish_ms / 1000, strict=True)
    rows = [r | {"first_token_ts": first, "last_token_ts": last} for r, first, last in times]
    exact = compare(read_vllm_run(folder(rows)), run)
    assert exact[["mean_error", "p99_error"]].abs().to_numpy().max() < 1e-9
    assert exact.correlation.to_numpy() == pytest.approx(np.ones(3))

    slow = replace(guessed, measured=read_vllm_run(folder(rows)).measured.copy())
    slow.measured[["ttft_ms", "tpot_ms", "e2e_ms"]] *= 1.25
    table = compare(slow, run)
    assert table.mean_error.to_numpy() == pytest.approx([-0.2] * 3)
    assert table.p99_error.to_numpy() == pytest.approx([-0.2] * 3)
    assert table.correlation.to_numpy() == pytest.approx(np.ones(3))

    other = read_vllm_run(folder(rows[:-1]))
    with pytest.raises(LLMGymError, match="has not served the 23 requests"):
        compare(other, run)
    with pytest.raises(LLMGymError, match="dropped 3 requests: all 24 slots were taken"):
        compare(guessed, replace(run, raw=run.raw | {"end_dropped": np.array([3])}))
    with pytest.raises(LLMGymError, match="num_envs of the simulated run must be at most 1"):
        compare(guessed, replace(run, num_envs=2))


@pytest.mark.slow
def test_one_request_is_compared(folder):
    run = read_vllm_run(folder([row("a", 1, output_toks=1)]))
    table = compare(run, llmgym.simulate(run.scenario(PRESET), run.policy))
    assert table.measured_mean["ttft_ms"] == pytest.approx(100)
    assert table.simulated_mean["ttft_ms"] == pytest.approx(16.6, abs=0.01)
    assert table.loc["tpot_ms"].isna().all()
    assert table.correlation.isna().all()


def test_the_run_on_an_rtx_4090_is_reproduced(shared_data):
    run = read_vllm_run(shared_data / "vllm_real_runs" / NAME)
    assert (run.token_budget, run.max_num_seqs, run.kv_cache) == (2048, 256, KVCache(2587, 16))
    assert run.measured.ttft_ms.mean() == pytest.approx(65456.6, abs=0.05)  # its summary.txt
    assert run.measured.e2e_ms.mean() == pytest.approx(86578.3, abs=0.05)
    table = compare(run, llmgym.simulate(run.scenario(PRESET), run.policy))
    assert list(table.index) == ["ttft_ms", "tpot_ms", "e2e_ms"]
    assert table.mean_error.abs().max() < 0.07
    assert table.p99_error.abs().max() < 0.10
    assert table.correlation["ttft_ms"] >= 0.99


def test_window_keeps_priorities():
    replay = llmgym.Replay([0.0, 1.0, 2.0], [1, 2, 3], [4, 5, 6], priority=[7, 8, 9])
    part = replay.window(1.0, 9.0)
    assert part.arrival_s.tolist() == [0, 1]
    assert part.priority.tolist() == [8, 9]
    assert part.at_rate(2.0).arrival_s.tolist() == [0, 0.5]


def test_the_scenario_is_what_the_tool_writes(shared_data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/make_vllm_scenario.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([str(shared_data / "vllm_real_runs" / NAME), "--out", str(tmp_path)])
    written = (tmp_path / f"{PRESET}.toml").read_bytes()
    assert written == (ROOT / "llmgym" / "scenario" / "data" / f"{PRESET}.toml").read_bytes()


def test_the_scenario_summarises_the_run(shared_data):
    replay = read_vllm_run(shared_data / "vllm_real_runs" / NAME).replay
    shipped = llmgym.scenario(PRESET)
    stage = shipped.job_types[0].stages[0]
    for length, seen in [
        (stage.prefill, replay.prefill_tokens),
        (stage.decode, replay.decode_tokens),
    ]:
        assert length.mean == pytest.approx(seen.mean(), rel=2e-3)
        assert length.draw(20_000).std() == pytest.approx(seen.std(), rel=0.05)
    assert (
        shipped.engine
        == read_vllm_run(shared_data / "vllm_real_runs" / NAME).scenario(PRESET).engine
    )


def test_the_engine_carries_its_scenario():
    run = llmgym.simulate(PRESET, "vllm_v1", duration_s=300, warmup_s=60)
    assert run.summary["dropped"] == 0
    assert run.summary["mean_in_system"] < 40
    assert run.summary["ttft_ms"]["p50"] < 500
