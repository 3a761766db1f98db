"""Files made to do harm, at every reader: one clear error, quickly, and before memory is taken."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym import agents
from llmgym.agents import checkpoint, index_search, optimum
from llmgym.calibration.calibrate import calibrate
from llmgym.calibration.validate import read_vllm_run
from llmgym.core.errors import LLMGymError
from llmgym.core.npz import BadArraysError, read_npz
from llmgym.evaluation import benchmark, evaluate, policies
from llmgym.reproduce import kv_memory
from llmgym.scenario import toml_reader
from llmgym.scenario.toml_tables import load_batch_time
from llmgym.studies import study
from llmgym.traces.readers import read_trace
from llmgym.traces.rows import MOST_BYTES

READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "trace": ("t.csv", read_trace),
    "json lines": ("t.jsonl", read_trace),
    "first rows of a trace": ("t.csv", lambda path: read_trace(path, limit=3)),
    "scenario": ("s.toml", toml_reader.load),
    "batch time": ("b.toml", load_batch_time),
    "measurements": ("m.csv", calibrate),
    "recorded run": ("meta.json", lambda path: read_vllm_run(path.parent)),
    "checkpoint": ("a.npz", agents.load),
    "optimum": ("o.npz", optimum.load),
    "search": ("search.json", lambda path: index_search._resume(path, {})),
    "benchmark": ("config.json", benchmark.from_config),
    "evaluation": ("config.json", lambda path: evaluate.from_config(path.parent)),
    "measurement": ("limit.json", benchmark.read_result),
    "study": ("rows.json", study.read),
    "policy": ("mine.py", lambda path: policies.resolve(f"{path}:rule")),
    "recorded batches": ("batches.json.gz", kv_memory._recorded),
}
CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "zeros": bytes(4096),
    "latin-1": "arrival,prefill,décode\n0,1,1\n".encode("latin-1"),
    "list": b"[1, 2]",
    "pairs": b'[["a", 1]]',
    "number": b"3",
    "no number": b'{"a": NaN}',
    "cut": b'{"a": [1,',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "huge integer": b'{"a": ' + b"9" * 400 + b"}",
    "endless integer": b'{"a": ' + b"9" * 9000 + b"}",
    "hexadecimal": b"slots = 0x" + b"f" * 9000,
    "dotted": b"a." * 10**6 + b"a = 1",
    "dotted table": b"[" + b"'a' . " * 10**6 + b"a]\nb = 1",
    "one long word": b"a" * 10**6,
    "deep key": b"slots" + b".a" * 900 + b" = 1",
    "surrogate": b"\xed\xa0\x80",
    "wide": b"a," * 2**21 + b"\n",
}


@pytest.mark.parametrize("content", list(CONTENTS))
@pytest.mark.parametrize("reader", list(READERS))
def test_what_is_no_such_file_is_refused(tmp_path: Path, reader: str, content: str) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(CONTENTS[content])
    if reader == "measurement" and content == "huge integer":
        assert read(tmp_path / name) == {"a": int("9" * 400)}  # refused when tables are made of it
        return
    with pytest.raises(LLMGymError) as refused:
        read(tmp_path / name)
    assert len(str(refused.value)) <= 500


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, reader: str, kind: str) -> None:
    name, read = READERS[reader]
    path = tmp_path / name
    if kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    if reader in ("study", "search") and kind == "loop":
        assert not read(path)  # as where there is no file; it is written then
        return
    with pytest.raises(LLMGymError):
        read(path)


@pytest.mark.parametrize("reader", list(READERS))
def test_a_file_without_end_costs_no_memory(tmp_path: Path, reader: str) -> None:
    name, read = READERS[reader]
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LLMGymError):
        read(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def npy(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"") -> bytes:
    data = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(data, header)
    return data.getvalue() + content


def encrypted() -> bytes:
    data = bytearray(packed({"header.npy": npy((0,))}))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + offset] |= 1
    return bytes(data)


def renamed() -> bytes:
    data = io.BytesIO()
    np.save(data, np.zeros(3))
    return data.getvalue()


DEEP = (b'{"format": 1, "kind": ' + b"[" * 3000 + b"]" * 3000 + b"}").ljust(8000)
HARMFUL = {
    "renamed npy": renamed,
    "npy of 80 TB": lambda: npy((10 * 2**40,), "<f8"),
    "80 TB inside": lambda: packed({"header.npy": npy((10 * 2**40,), "<f8")}),
    "more than there is": lambda: packed({"header.npy": npy((100,), "<f8", b"abc")}),
    "encrypted": encrypted,
    "deep header": lambda: packed({"header.npy": npy((8000,), "|u1", DEEP)}),
    "bzip2": lambda: packed({"header.npy": npy((9,), "|u1", bytes(9))}, zipfile.ZIP_BZIP2),
    "objects": lambda: packed({"header.npy": npy((1,), "|O", b"x")}),
    "empty type": lambda: packed({"header.npy": npy((2**39,), "<U0")}),
    "many": lambda: packed({f"{n}.npy": b"" for n in range(10_001)}, zipfile.ZIP_STORED),
    "deep array header": lambda: packed(
        {"header.npy": b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000}
    ),
    "no header": lambda: packed({"x.npy": npy((1,), "<f4", bytes(4))}),
}


@pytest.mark.parametrize("kind", list(HARMFUL))
@pytest.mark.parametrize("read", [agents.load, optimum.load])
def test_harmful_checkpoints_are_refused(
    tmp_path: Path, kind: str, read: Callable[[Path], Any]
) -> None:
    (tmp_path / "a.npz").write_bytes(HARMFUL[kind]())
    with pytest.raises(LLMGymError, match=r"a\.npz"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("read", [agents.load, optimum.load])
def test_a_bomb_takes_no_memory(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    """A small file that says it unpacks to 4 GiB."""
    zeros = npy((2**26,), "|u1", bytes(2**26))
    (tmp_path / "a.npz").write_bytes(packed({"header.npy": zeros}))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")  # what it says that it unpacks to
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(LLMGymError, match="unpacks to"):
        read(tmp_path / "a.npz")


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_read_as_numpy_wrote_them(tmp_path: Path, version: tuple[int, int]) -> None:
    table = np.arange(6.0).reshape(2, 3)
    arrays = {"rows": table, "columns": np.asfortranarray(table), "one": np.int64(3), "s": "text"}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(array), version)
    found = read_npz(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=isinstance(array, np.ndarray))
        assert not found[name].flags.writeable


@pytest.mark.parametrize("shape", [(-1,), (2**40,), (1.0,), (1,) * 33])
def test_shapes_that_cannot_be_are_refused(tmp_path: Path, shape: Any) -> None:
    (tmp_path / "a.npz").write_bytes(packed({"x.npy": npy(shape, content=bytes(4))}))
    with pytest.raises(BadArraysError, match="type float32 that llmgym does not write"):
        read_npz(tmp_path / "a.npz")


def test_a_file_of_too_many_arrays_is_refused_for_that(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(HARMFUL["many"]())
    with pytest.raises(BadArraysError, match="it lists more than 10,000 arrays"):
        read_npz(tmp_path / "a.npz")


def test_recorded_batches_do_not_unpack_without_end(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "b.json.gz", "wb", compresslevel=1) as file:
        for _ in range(70):
            file.write(b" " * 2**20)
    with pytest.raises(LLMGymError, match="unpacks to more"):
        kv_memory._recorded(tmp_path / "b.json.gz")


def header_of(name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return checkpoint.read_arrays(agents.CHECKPOINTS / f"{name}.npz")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("kind", ["tiles"]),
        ("kind", None),
        ("choice", []),
        ("choice", {"tiles": 10**400}),
        ("choice", {"tiles": [4]}),
        ("masks", [1]),
    ],
)
def test_headers_of_other_kinds_are_refused(tmp_path: Path, change: str, value: Any) -> None:
    arrays, header = header_of("ppo-latency")
    checkpoint.write_arrays(tmp_path / "a.npz", arrays, header | {change: value})
    with pytest.raises(LLMGymError):
        agents.load(tmp_path / "a.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    arrays, header = header_of("ppo-latency")
    arrays["actor/1/bias"] = arrays["actor/1/bias"].copy()
    arrays["actor/1/bias"][3] = value
    checkpoint.write_arrays(tmp_path / "a.npz", arrays, header)
    with pytest.raises(LLMGymError, match="not finite numbers"):
        agents.load(tmp_path / "a.npz")


@pytest.mark.parametrize("name", agents.names())
def test_agents_that_ship_have_finite_weights(name: str) -> None:
    agents.load(name)


def test_a_checkpoint_that_has_changed_is_read_again(tmp_path: Path) -> None:
    arrays, header = header_of("ppo-latency")
    checkpoint.write_arrays(tmp_path / "a.npz", arrays, header)
    first = agents.load(tmp_path / "a.npz")
    assert agents.load(tmp_path / "a.npz") is first
    halved = {name: x / 2 for name, x in arrays.items()}
    checkpoint.write_arrays(tmp_path / "a.npz", halved, header)
    assert agents.load(tmp_path / "a.npz").digest != first.digest  # type: ignore[union-attr]


def test_a_trace_of_long_lists_of_prefixes_takes_no_table(tmp_path: Path) -> None:
    row = {"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}
    long = row | {"hash_ids": list(range(1000, 120_000))}
    lines = [json.dumps(row)] * 2000 + [json.dumps(long)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(LLMGymError, match="prefix_ids has 2,001 rows"):
        read_trace(tmp_path / "t.jsonl")


def test_the_first_rows_of_a_large_trace_are_read(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.write(b"arrival,prefill,decode\n0,1,1\n1,2,2\n")
        file.truncate(MOST_BYTES + 1)
    assert len(read_trace(tmp_path / "t.csv", limit=2)) == 2
    with pytest.raises(LLMGymError, match="268,435,457 bytes, and at most 268,435,456 are read"):
        read_trace(tmp_path / "t.csv")


def test_cells_that_are_lists_are_refused(tmp_path: Path) -> None:
    row = {"timestamp": [[]] * 1000, "input_length": 1, "output_length": 1}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(LLMGymError, match="not a number"):
        read_trace(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policies", "sarathi"),
        ("policies", [1]),
        ("loads", [[0.5]]),
        ("loads", ["0.5"]),
        ("replications", [2]),
        ("replications", True),
        ("seed", 10**400),
        ("scenario", 3),
        ("scenario", "slots = 0x" + "f" * 5000),
    ],
)
def test_configurations_with_other_values_are_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    config = benchmark.Benchmark(llmgym.scenario("md1")).config() | {name: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(LLMGymError):
        benchmark.from_config(tmp_path)


def test_loads_that_would_share_a_file_are_refused() -> None:
    scenario = llmgym.scenario("md1")
    with pytest.raises(LLMGymError, match="same to six digits"):
        benchmark.Benchmark(scenario, ("sarathi",), (0.1234567, 0.1234568))
    assert benchmark.Benchmark(scenario, ("sarathi",), (0.5, 0.5)).loads == (0.5, 0.5)
