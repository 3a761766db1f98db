"""The command line: what it prints, and that bad input is one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run

SMALL = ("--set", "slots=32", "--set", "token_budget=128")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "list", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"sarathi", "vllm", "orca", "faster_transformer"} <= set(found["policies"])
    assert "paper-figure-1" in found["scenarios"]
    assert all(found["scenarios"].values())


def test_capacity(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "capacity", "--json")
    assert code == 0
    assert json.loads(out)["requests_per_s"] == pytest.approx(13.871, abs=5e-4)


def test_simulate_writes_its_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("simulate", *SMALL, "--load", "0.5", "--duration-s", "20", "--json")
    code, out, _ = run(capsys, *arguments, "--out", str(tmp_path))
    assert code == 0
    summary = json.loads(out)
    assert summary["completed"] > 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    requests = (tmp_path / "requests.csv").read_text().splitlines()
    assert len(requests) == summary["arrived"] - summary["dropped"] + 1
    again = json.loads(run(capsys, *arguments)[1])
    assert again == summary
    other = json.loads(run(capsys, *arguments, "--seed", "1")[1])
    assert other != summary


def test_simulate_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,prefill,decode,tenant\n0,20,3,chat\n0.5,10,2,batch\n")
    levels = ("--set", "ttft_ms=1000", "--set", "service_weights=1,2")
    arguments = ("simulate", "--trace", str(trace), "--policy", "vtc", *levels)
    code, out, _ = run(capsys, *arguments, "--json")
    summary = json.loads(out)
    assert (code, summary["completed"], summary["slo"]["chat"]["attainment"]) == (0, 2, 1)
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert all(text in out for text in ("service levels", "100.0 %", "batch", "largest gap"))
    assert "nan" not in out  # one replication has no interval
    code, _, err = run(capsys, *arguments[:5], "--set", "service_weights=1,-2")
    assert code == 2
    assert "w_q must be at least 0" in err


def test_simulate_a_window_of_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,prefill,decode\n0,20,3\n1,10,2\n2,10,2\n3,5,1\n")
    arguments = ("simulate", "--trace", str(trace), "--json")
    code, out, _ = run(capsys, *arguments, "--window", "1:3")
    assert (code, json.loads(out)["completed"]) == (0, 2)
    for window, message in [
        ("1-3", "--window 1-3: write START:END in seconds"),
        ("5:9", "No request arrives between 5 and 9 s"),
        ("3:1", "end_s must be greater than 3"),
    ]:
        code, out, err = run(capsys, *arguments, "--window", window)
        assert (code, out) == (2, "")
        assert message in err
    code, out, _ = run(capsys, *arguments, "--load", "0.001")
    stretched = json.loads(out)
    limit = 2048 / 0.5788 / 13.25  # requests per second in full batches, of 53 tokens in four
    assert (code, stretched["completed"]) == (0, 4)
    assert stretched["elapsed_s"] == pytest.approx(3 / (0.001 * limit), rel=0.05)
    code, out, err = run(capsys, "simulate", "--window", "0:1")
    assert (code, out) == (2, "")
    assert "name the file with --trace" in err


def test_benchmark_a_window_of_a_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival,prefill,decode\n0,20,3\n1,10,2\n2,10,2\n3,5,1\n")
    for window, message in [("1-3", "write START:END"), ("5:9", "No request arrives between 5")]:
        code, out, err = run(capsys, "benchmark", "--trace", str(trace), "--window", window)
        assert (code, out) == (2, "")
        assert message in err
    code, _, err = run(capsys, "benchmark", "--window", "0:1")
    assert code == 2
    assert "name the file with --trace" in err


def test_fit_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "mine.toml"
    rows = "".join(f"{n * n / 100},{20 + n},{1 + n % 9}\n" for n in range(100))
    trace.write_text(f"arrival,prefill,decode\n{rows}")
    arguments = ("fit-trace", str(trace), "-s", "geometric", "--points", "9")
    code, text, _ = run(capsys, *arguments, "--kind", "poisson", "--out", str(out))
    assert code == 0
    for words in ("trace", "poisson", "disp. 1 s", "Arrivals are Poisson.", "Wrote"):
        assert words in " ".join(text.split())
    code, text, _ = run(capsys, *arguments, "--kind", "poisson", "--window", "0:64", "--json")
    found = json.loads(text)
    assert (code, found["fits"][0]["arrivals"]["kind"]) == (0, "poisson")
    assert found["trace"]["rate_per_s"] == pytest.approx(79 / 62.41)
    code, text, _ = run(capsys, "capacity", "-s", str(out), "--set", "token_budget=128", "--json")
    assert (code, json.loads(text)["scenario"]) == (0, "mine")


def test_fit_trace_refuses_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trace, out = tmp_path / "trace.csv", tmp_path / "mine.toml"
    trace.write_text("arrival,prefill,decode\n0,20,3\n1,10,2\n2,10,2\n")
    for more, message in [
        ((), "at least 50 requests, got 3; replay the trace"),
        (("--kind", "weekly"), "Unknown kind of arrivals 'weekly'"),
        (("--window", "7:9"), "No request arrives between 7 and 9 s"),
        (("-s", "no-such"), "Unknown scenario 'no-such'"),
    ]:
        code, text, err = run(capsys, "fit-trace", str(trace), *more, "--out", str(out))
        assert (code, text) == (2, "")
        assert message in err
    assert not out.exists()


def test_validate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    engine = {"max_num_seqs": 4, "max_num_batched_tokens": 64}
    cache = {"num_gpu_blocks": 21, "block_size": 4}
    (tmp_path / "meta.json").write_text(json.dumps({"engine_kwargs": engine, "kv_cache": cache}))
    rows = [
        {"request_id": n, "input_toks": 10 + n, "output_toks": 3, "queued_ts": n / 50}
        | {"first_token_ts": n / 50 + 0.02, "last_token_ts": n / 50 + 0.06}
        for n in range(6)
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("validate", str(tmp_path), "--batch-time", "rtx4090-llama-3.1-8b")
    code, out, _ = run(capsys, *arguments, "--json")
    found = json.loads(out)
    assert (code, found["requests"], found["preemptions"]) == (0, 6, 0)
    assert found["ttft_ms"]["measured_mean"] == pytest.approx(20)
    assert found["tpot_ms"]["measured_p99"] == pytest.approx(20)
    assert found["tpot_ms"]["simulated_mean"] == pytest.approx(16.6, rel=0.01)
    assert found["ttft_ms"]["correlation"] is None  # all were measured alike
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert all(name in out for name in ("ttft_ms", "tpot_ms", "e2e_ms", "6 requests, vllm_v1"))


def test_validate_refuses_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good = {"request_id": 0, "input_toks": 1, "output_toks": 1, "queued_ts": 0}
    good |= {"first_token_ts": 1, "last_token_ts": 1}
    (tmp_path / "requests.jsonl").write_text(json.dumps(good))
    meta = {"max_num_seqs": 4, "max_num_batched_tokens": 8, "num_gpu_blocks": 9, "block_size": 4}
    (tmp_path / "meta.json").write_text(json.dumps({"engine_kwargs": meta, "kv_cache": meta}))
    preset = "rtx4090-llama-3.1-8b"
    for arguments, message in [
        ((str(tmp_path / "no"), "--batch-time", preset), "No such file"),
        ((str(tmp_path), "--batch-time", "rtx4090-llama"), f"Did you mean '{preset}'"),
        ((str(tmp_path), "--batch-time", "no.toml"), "Cannot read batch time no.toml"),
        ((str(tmp_path),), "--batch-time"),
    ]:
        code, out, err = run(capsys, "validate", *arguments)
        assert (code, out) == (2, "")
        assert message in err


MEASURED = "tokens,ms\n" + "".join(f"{n},{20 + 0.5 * n:g}\n" for n in range(1, 30))


def test_calibrate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, out = tmp_path / "times.csv", tmp_path / "new"
    file.write_text(MEASURED)
    code, text, _ = run(capsys, "calibrate", str(file), "--out", str(out))
    assert code == 0
    assert "affine: c_ms = 20.0, a_ms_per_token = 0.5" in text
    assert sorted(path.name for path in out.iterdir()) == ["batch_time.toml", "calibration.png"]
    code, text, _ = run(
        capsys, "calibrate", str(file), "--form", "hinge", "--out", str(out), "--json"
    )
    found = json.loads(text)
    assert (code, found["chosen"], found["fits"][0]["form"]) == (0, "hinge", "affine")
    assert found["fits"][0]["batch_time"] == {"kind": "affine", "c_ms": 20, "a_ms_per_token": 0.5}
    assert 'kind = "hinge"' in (out / "batch_time.toml").read_text()
    engine = ("--set", f"batch_time={out / 'batch_time.toml'}", "--set", "token_budget=200")
    limit = json.loads(run(capsys, "capacity", *engine, "--json")[1])
    assert limit["tokens_per_ms"] == pytest.approx(200 / 120)


def test_calibrate_writes_nothing_on_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, out = tmp_path / "times.csv", tmp_path / "new"
    file.write_text(MEASURED)
    for arguments, message in [
        ((str(file), "--form", "hing"), "Did you mean 'hinge'"),
        ((str(tmp_path / "no.csv"),), "No such file"),
        ((str(file), "--tile", "0"), "tile must be at least 1"),
    ]:
        code, text, error = run(capsys, "calibrate", *arguments, "--out", str(out))
        assert (code, text) == (2, "")
        assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simulate", "-s", "paper-figur-1"), "Did you mean 'paper-figure-1'"),
        (("simulate", "-p", "sarathy"), "Did you mean 'sarathi'"),
        (("simulate", "--load", "0"), "load"),
        (("simulate", "--load", "nan"), "load"),
        (("simulate", "--load", "-1"), "load"),
        (("simulate", "--duration-s", "-5"), "duration_s"),
        (("simulate", "--num-envs", "0"), "num_envs"),
        (("simulate", "--set", "token_budget"), "name=value"),
        (("simulate", "--set", "token_budge=3"), "token_budget"),
        (("simulate", "--set", "token_budget=-3"), "token_budget"),
        (("simulate", "--set", "prefill_tokens=-3"), "prefill_tokens"),
        (("simulate", "--trace", "no-such-file.csv"), "no-such-file.csv"),
        (("simulate", "-p", "vllm", "--set", "prefill_tokens=600"), "prompts='split'"),
        (("benchmark", "--load", "-1"), "load"),
        (("benchmark", "-p", "sarathy"), "sarathi"),
        (("benchmark", "--repeat", "no-such-folder"), "no-such-folder"),
        (("capacity", "-s", "no-such-scenario"), "no-such-scenario"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert out == ""


def test_unwritable_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("simulate", *SMALL, "--load", "0.5", "--duration-s", "5")
    code, _, err = run(capsys, *arguments, "--out", str(tmp_path / "file"))
    assert code == 2
    assert "Cannot write" in err
