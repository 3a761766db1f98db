"""What is written: names stay in their folder and share no file; files are whole, CSV without formulas."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import run
from hypothesis import given
from hypothesis import strategies as st

import llmgym
from llmgym import agents
from llmgym.core.errors import LLMGymError
from llmgym.core.files import csv_cell, csv_of, slug, write
from llmgym.evaluation import benchmark, evaluate, policies, traffic
from llmgym.reporting import benchmark_report, evaluation_report, traffic_tables
from llmgym.reporting.table import csv_text
from llmgym.studies.ship import ship

POLICY = "def rule(key, view):\n    raise NotImplementedError\n"
FORMULAS = ["=1+1", "+A1 ", "-x", "@SUM(A1)", "\t=1", " =cmd|' /C calc'!A0", "-2+3"]


@given(st.lists(st.text(max_size=120), min_size=2, max_size=2, unique=True))
def test_no_two_names_share_a_file_and_none_leaves_its_folder(names: list[str]) -> None:
    one, other = map(slug, names)
    assert one.lower() != other.lower()  # some file systems know no capitals
    for name in (one, other):
        assert 0 < len(name) < 120 and Path(name).name == name and not name.startswith(".")


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b.py:f", "a-b.py:f"), ("A", "a"), ("..", "."), ("é", "e\u0301"), ("x" * 99, "x" * 98)],
)
def test_names_that_once_shared_a_file(one: str, other: str) -> None:
    assert slug(one).lower() != slug(other).lower()


def test_plain_names_stay_as_they_are() -> None:
    for name in ("sarathi", "latency-4.4", "vllm_v1_priority-128", "ppo-kv"):
        assert slug(name) == name
    assert slug("x/../../../../evil").startswith("x-..-..-..-..-evil-")


def test_a_file_is_written_whole_and_replaces_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    (tmp_path / "a").symlink_to(tmp_path / "other")
    write(tmp_path / "a", "new")
    assert (tmp_path / "other").read_text() == "kept"
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "a").read_text() == "new"
    write(tmp_path / ("n" * 255), "as long as a name may be")
    write(tmp_path / "half", "half a character: \udc80")
    assert (tmp_path / "half").read_text() == "half a character: \\udc80"
    for name in ("a\0b", "n" * 256, "a/b"):
        with pytest.raises(LLMGymError, match="Cannot write"):
            write(tmp_path / name, "")
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_give_the_rights_that_new_files_give(tmp_path: Path, umask: int) -> None:
    code = (
        f"import os; os.umask({umask}); from pathlib import Path; from llmgym.core.files import write; "
        f"open('plain', 'w').close(); write(Path('ours'), ''); "
        "print(os.stat('plain').st_mode == os.stat('ours').st_mode)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LLMGymError, match="Permission denied"):
        write(tmp_path / "a", "")


def test_texts_of_a_csv_are_no_formulas() -> None:
    records = [{"policy": text, "value": -1.5, "text": "-1.5", "whole": -3} for text in FORMULAS]
    for text in (csv_text(records), csv_of(pd.DataFrame(records))):
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["policy"] for row in rows] == [f"'{formula}" for formula in FORMULAS]
        assert {(row["value"], row["text"], row["whole"]) for row in rows} == {
            ("-1.5", "-1.5", "-3")
        }
    assert [csv_cell(x) for x in (None, -1, "a=b", "")] == [None, -1, "a=b", ""]


def test_raw_may_not_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "raw").symlink_to(tmp_path / "elsewhere")
    task = benchmark.Task("limit", "limit", lambda: {"x": 1})
    with pytest.raises(LLMGymError, match="is a link"):
        benchmark.measure({}, [task], tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_tables_of_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    chosen = benchmark.Benchmark(llmgym.scenario("md1"), ("sarathi",), (0.5,))
    names = [task.name for task in benchmark.tasks(chosen)]
    for found in ({}, {"requests_per_s": "many"}, {"requests_per_s": 10**400, "summary": []}):
        results = dict.fromkeys(names, found)
        with pytest.raises(LLMGymError, match="do not hold what this command writes"):
            benchmark_report.publish(chosen, results, tmp_path)
    with pytest.raises(LLMGymError, match="do not hold what this command writes"):
        traffic_tables.publish([{"policy": "a"}], tmp_path)
    judged = benchmark_report  # the same guard stands in the report of an evaluation
    assert evaluation_report.as_written is judged.as_written
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "requests.csv"
    path.write_text("arrival,prefill,decode\n0,1,1\n1,2,2\n")
    return path


def test_a_policy_that_was_edited_is_run_again(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(traffic, "_record", lambda _, name: made.append(name) or {"n": len(made)})
    mine = tmp_path / "mine.py"
    mine.write_text(POLICY)
    names = ("sarathi", f"{mine}:rule")
    chosen = traffic.Traffic(llmgym.scenario("geometric"), trace)
    first = traffic.run(chosen, names, tmp_path / "out")
    assert traffic.run(chosen, names, tmp_path / "out") == first
    mine.write_text(POLICY + "# edited\n")
    assert traffic.run(chosen, names, tmp_path / "out") == [first[0], {"n": 3}]
    assert made == [*names, names[1]]


LONG = "n" * 5000


@pytest.mark.parametrize(
    "read",
    [
        lambda: agents.load(f"{LONG}.npz"),
        lambda: agents.load("a\0b.npz"),
        lambda: policies.resolve(f"{LONG}.py:rule"),
        lambda: policies.resolve("a\0b.py:rule"),
        lambda: benchmark.from_config(Path(LONG)),
        lambda: benchmark.measure({}, [], Path(LONG)),
        lambda: traffic.read_trace(LONG),
        lambda: evaluate.members(LONG) and policies.resolve(LONG),
    ],
)
def test_paths_that_no_file_can_have_are_refused(read: Any) -> None:
    with pytest.raises(LLMGymError) as refused:
        read()
    assert len(str(refused.value)) <= 500


def test_policy_files_in_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("x = 'é'\n".encode("latin-1") + POLICY.encode())
    with pytest.raises(LLMGymError, match="is not UTF-8 text"):
        policies.resolve(f"{tmp_path}/a.py:rule")
    declared = "# -*- coding: latin-1 -*-\n# é\n".encode("latin-1") + POLICY.encode()
    (tmp_path / "b.py").write_bytes(declared)
    assert callable(policies.resolve(f"{tmp_path}/b.py:rule"))


def test_simulate_does_not_write_over_what_others_wrote(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trace.read_text()
    results = tmp_path / "results"
    results.mkdir()
    (results / "config.json").write_text("{}")
    for out in (trace.parent, trace.parent / ".." / "data", results):
        code, _, err = run(capsys, "simulate", "--trace", str(trace), "--out", str(out))
        assert code == 2 and "choose another --out" in " ".join(err.split())
    assert [p.name for p in trace.parent.iterdir()] == ["requests.csv"]
    assert trace.read_text() == before
    code, _, err = run(capsys, "fit-trace", str(trace), "--out", str(trace))
    assert code == 2 and "is the trace itself" in err and trace.read_text() == before


@pytest.mark.parametrize("name", ["../evil", "a/b", "Evil", "", "."])
def test_agents_are_shipped_into_their_folder_alone(tmp_path: Path, name: str) -> None:
    agent: Any = agents.CHECKPOINTS / "ppo-latency.npz"
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "stability.json").write_text(json.dumps({name: {}}))
    with pytest.raises(LLMGymError, match="is named by"):
        ship(agent, tmp_path / "results", name, tmp_path / "out")


def test_what_cannot_be_written_says_why_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "folder" / "a.txt"
    with pytest.raises(LLMGymError) as raised:
        write(below, "text")
    assert (
        str(raised.value) == f"Cannot write {below}: Not a directory. Choose another --out folder."
    )
    with pytest.raises(LLMGymError, match="embedded null"):
        write(tmp_path / "a\0b" / "c", "text")


def test_a_csv_file_has_the_columns_of_its_table_and_no_others() -> None:
    table = pd.DataFrame({"load": [0.5, 1.0], "policy": ["sarathi", "=1+1"]})
    assert csv_of(table) == "load,policy\n0.5,sarathi\n1.0,'=1+1\n"
