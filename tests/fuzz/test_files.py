"""Files that were damaged in any way: every reader takes them or refuses them with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import again_if_late, within

import llmgym
from llmgym import agents
from llmgym.agents.checkpoint import read_arrays, write_arrays
from llmgym.calibration.calibrate import read_measurements
from llmgym.calibration.validate import read_vllm_run
from llmgym.core.errors import LLMGymError
from llmgym.evaluation import benchmark, evaluate
from llmgym.scenario import toml_reader, toml_writer
from llmgym.scenario.replay import Replay
from llmgym.traces.readers import read_trace

AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
MOONCAKE = {"timestamp": 27, "input_length": 6, "output_length": 5, "hash_ids": [0, 1]}
RUN = {"queued_ts": 1.0, "input_toks": 4, "output_toks": 2, "first_token_ts": 2.0,
       "last_token_ts": 3.0, "request_id": "a"}  # fmt: skip
META = {
    "engine_kwargs": {"max_num_batched_tokens": 2048, "max_num_seqs": 8},
    "kv_cache": {"num_gpu_blocks": 100, "block_size": 16},
}
MEASURED = b"tokens,ms\n" + b"".join(b"%d,%d\n" % (n, n) for n in range(1, 12))


@cache
def whole(kind: str) -> bytes:
    """A good file of a kind."""
    base = llmgym.scenario("latency")
    if kind == "network":
        return toml_writer.dumps(llmgym.scenario("rybko-stolyar")).encode()
    if kind == "scenario":
        return toml_writer.dumps(base).encode()
    if kind == "replay":
        listed = Replay([0.0, 1.0], [1, 2], [3, 4], tenant=["a", "b"])
        return toml_writer.dumps(replace(base, workload=listed)).encode()
    if kind == "benchmark":
        return json.dumps(benchmark.Benchmark(base, ("sarathi",)).config()).encode()
    if kind == "evaluation":
        return json.dumps(evaluate.Evaluation(base, ("sarathi",), (8.0,)).config()).encode()
    return (agents.CHECKPOINTS / "ppo-latency.npz").read_bytes()


def recorded(path: Path) -> Any:
    """A recorded run whose settings are the file."""
    (path.parent / "requests.jsonl").write_text(json.dumps(RUN))
    return read_vllm_run(path.parent)


KINDS: dict[str, tuple[str, Callable[[], bytes], Callable[[Path], Any]]] = {
    "azure": ("t.csv", lambda: AZURE, read_trace),
    "csv": ("t.csv", lambda: b"arrival,prefill,decode,tenant\n0,1,1,a\n1,2,2,b\n", read_trace),
    "mooncake": ("t.jsonl", lambda: json.dumps(MOONCAKE).encode(), read_trace),
    "scenario": ("s.toml", lambda: whole("scenario"), toml_reader.load),
    "network": ("s.toml", lambda: whole("network"), toml_reader.load),
    "replay": ("s.toml", lambda: whole("replay"), toml_reader.load),
    "measurements": ("m.csv", lambda: MEASURED, read_measurements),
    "recorded run": ("meta.json", lambda: json.dumps(META).encode(), recorded),
    "benchmark": ("config.json", lambda: whole("benchmark"), benchmark.from_config),
    "evaluation": ("config.json", lambda: whole("evaluation"), evaluate.from_config),
    "checkpoint": ("a.npz", lambda: whole("checkpoint"), agents.load),
}
PIECES = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\0", b"\xff", b"9" * 400, b"9" * 5000, b"[" * 2000, b"nan", b"-1", b'"', b"{}",
                     b"0x" + b"f" * 5000, b"1e999", b"null", b"\xe9", b"true", b",", b"\n"]),
)  # fmt: skip


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """Where bytes go, as a share of the file, how many, and what takes their place."""
    one = st.tuples(st.floats(0, 1), st.integers(0, 12), PIECES)
    return draw(st.lists(one, min_size=1, max_size=3))


def damaged(data: bytes, damage: list[tuple[float, int, bytes]]) -> bytes:
    for share, gone, piece in damage:
        at = int(share * len(data))
        data = data[:at] + piece + data[at + gone :]
    return data


def read_or_refused(path: Path, read: Callable[[Path], Any]) -> None:
    """A file, or one short line; in neither case does it take long or fill the memory."""

    def attempt() -> str:
        with within():
            try:
                read(path)
            except LLMGymError as error:
                return str(error)
        return ""

    text = again_if_late(attempt)
    assert len(text) <= 500 and "\n" not in text


def fuzz(kind: str, folder: Path, examples: int) -> None:
    name, good, read = KINDS[kind]
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=examples, deadline=None, suppress_health_check=checks, database=None)
    @given(damages())
    def damage_it(damage: list[tuple[float, int, bytes]]) -> None:
        (folder / name).write_bytes(damaged(good(), damage))
        read_or_refused(folder / name, read)

    damage_it()


@pytest.mark.parametrize("kind", list(KINDS))
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    fuzz(kind, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_many_damaged_files_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    fuzz(kind, tmp_path, 2000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    | st.sampled_from([10**400, -1, 0, 2**63, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def json_fuzz(folder: Path, examples: int) -> None:
    """Values of any kind in place of an entry, of configurations, recorded runs and checkpoints."""
    arrays, header = read_arrays(agents.CHECKPOINTS / "ppo-latency.npz")

    @settings(max_examples=examples, deadline=None, database=None)
    @given(st.data())
    def exchange(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(["benchmark", "evaluation", "recorded run", "checkpoint"]))
        name, good, read = KINDS[kind]
        top = json.loads(json.dumps(header)) if kind == "checkpoint" else json.loads(good())
        table = top
        while True:
            key = data.draw(st.sampled_from(sorted(table)))
            if not (isinstance(table[key], dict) and table[key]) or data.draw(st.booleans()):
                break
            table = table[key]
        table[key] = data.draw(JSON)
        if kind == "checkpoint":
            write_arrays(folder / name, arrays, top)
        else:
            (folder / name).write_text(json.dumps(top))
        read_or_refused(folder / name, read)

    exchange()


def test_entries_of_other_kinds_are_read_or_refused(tmp_path: Path) -> None:
    json_fuzz(tmp_path, 150)


@pytest.mark.slow
def test_many_entries_of_other_kinds_are_read_or_refused(tmp_path: Path) -> None:
    json_fuzz(tmp_path, 5000)
