"""Studies: published pages are what their raw files give, and a study measures only what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import run

from llmgym import agents, studies
from llmgym.agents.checkpoint import load_agent
from llmgym.core.errors import LLMGymError
from llmgym.studies import corner, study
from llmgym.studies.study import Row

RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", list(studies.STUDIES))
def test_published_pages_are_what_their_raw_files_give(name: str) -> None:
    chosen = studies.STUDIES[name]
    for file, text in chosen.pages(RESULTS / name, chosen.policy).items():
        assert text == (RESULTS / name / file).read_text(), file


def test_only_missing_rows_are_measured(tmp_path: Path) -> None:
    made: list[str] = []

    def row(name: str) -> Row:
        return Row("rows.json", name, lambda: made.append(name) or {"value": len(made)})

    told: list[tuple[int, int, str]] = []
    study.measure([row("a"), row("b")], tmp_path, lambda *call: told.append(call))
    study.measure([row("b"), row("c")], tmp_path, lambda *_: None)
    assert made == ["a", "b", "c"]
    found = study.read(tmp_path / "rows.json")
    assert [found[name]["value"] for name in "abc"] == [1, 2, 3]
    assert all(found[name]["took_s"] >= 0 for name in "abc")
    assert told == [(0, 2, "rows.json: a"), (1, 2, "rows.json: b"), (2, 2, "done")]
    (tmp_path / "rows.json").write_text("{")
    with pytest.raises(LLMGymError, match="is damaged"):
        study.read(tmp_path / "rows.json")


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "study", "--list")
    assert code == 0 and all(name in out for name in studies.STUDIES)
    shutil.copytree(RESULTS / "corner-c", tmp_path / "corner-c")
    (tmp_path / "corner-c" / "README.md").unlink()
    where = ("--page", "--out", str(tmp_path / "corner-c"))
    code, out, _ = run(capsys, "study", "corner-c", *where, "--json")
    assert (code, json.loads(out)["study"]) == (0, "corner-c")
    written = (tmp_path / "corner-c" / "README.md").read_text()
    assert written == (RESULTS / "corner-c" / "README.md").read_text()


def test_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, message in [
        ((), "Name a study: optimum"),
        (("corner",), "Did you mean 'corner-c'"),
        (("corner-c", "--page", "--out", str(tmp_path / "no")), "holds no results"),
        (("corner-c", "--page", "--out", str(tmp_path)), "Run the study without --page"),
        (("rybko-stolyar-learned", "--page", "--out", str(tmp_path)), "without --page"),
        (("optimum", "--page", "--out", str(tmp_path)), "without --page"),
    ]:
        code, out, err = run(capsys, "study", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "folder"),
    [(corner.AGENT, "corner-c"), ("ppo-rybko-stolyar", "rybko-stolyar-learned")],
)
def test_shipped_figures_are_those_of_the_study(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, folder: str
) -> None:
    shipped = agents.CHECKPOINTS / f"{name}.npz"
    arguments = (str(shipped), str(RESULTS / folder), name, "--out", str(tmp_path))
    code, out, _ = run(capsys, "ship-agent", *arguments, "--json")
    assert code == 0
    policy = load_agent(tmp_path / f"{name}.npz")
    assert json.loads(out)["digest"] == policy.digest == load_agent(shipped).digest
    assert policy.header == load_agent(shipped).header


def test_an_agent_without_results_is_not_shipped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    agent = agents.CHECKPOINTS / "ppo-latency.npz"
    for folder, message in [
        (RESULTS / "corner-c", "holds no results of"),
        (tmp_path / "no", "No such file"),
    ]:
        out = ("--out", str(tmp_path))
        code, text, err = run(capsys, "ship-agent", str(agent), str(folder), "ppo-new", *out)
        assert (code, text) == (2, "")
        assert message in err
    assert not list(tmp_path.glob("*.npz"))
