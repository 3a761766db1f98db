"""tools/check_ranges.py: what it says of a short run, and that a bound too near is found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("ranges", ROOT / "tools" / "check_ranges.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "ranges", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ENCODINGS", ("tiles",))  # each costs a second of compiling
    return module


def played(tool: Any, out: Path) -> dict[str, Any]:
    short = ["--num-envs", "4", "--steps", "30", "--episodes", "1", "--slots", "16"]
    tool.main(["md1", "--out", str(out), *short])
    found: dict[str, Any] = json.loads((out / "ranges.json").read_text())["scenarios"]["md1"]
    return found


def test_ranges_are_told_and_a_bound_too_near_is_found(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = played(tool, tmp_path / "as it is")
    assert found["steps_of_an_encoding"] == 120
    assert found["cut_steps"] == {"tiles": 0}
    kinds = found["kinds"]
    assert {"rate_k", "waiting_c", "request_n_prefill", "slot_slack"} <= kinds.keys()
    assert all(kind["above_bound_steps"] == 0 for kind in kinds.values())
    assert kinds["slot_slack"]["used"] > 0.3  # some begin with a backlog of half of the slots
    assert any("| `slot_slack` |" in line for line in tool.table(tmp_path / "as it is"))
    capsys.readouterr()
    played(tool, tmp_path / "as it is")
    assert capsys.readouterr().out == ""  # it is there already

    made = tool.made

    def near(*arguments: Any) -> Any:
        core, task, top = made(*arguments)
        return core, task, top / 100

    monkeypatch.setattr(tool, "made", near)
    kinds = played(tool, tmp_path / "near")["kinds"]
    assert kinds["prefill_tokens"]["above_bound_steps"] > 60
    assert kinds["prefill_tokens"]["used"] == 1


def test_entries_of_one_kind(tool: Any) -> None:
    for name, kind in (
        ("prefill_tokens", "prefill_tokens"),
        ("large.prefill_task.plan", "prefill_c"),
        ("rate_12", "rate_k"),
        ("workers-1.rate_2", "rate_k"),
        ("request_1_generated", "request_n_generated"),
        ("decode_sawtooth", "decode_sawtooth"),
        ("decoding", "decoding"),
        ("decoding_chat", "decoding_c"),
        ("large.busy_for", "busy_for"),
        ("jobs", "jobs"),
    ):
        assert tool.kind_of(name) == kind
