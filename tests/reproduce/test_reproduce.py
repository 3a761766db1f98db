"""``llmgym reproduce``: items by name, resuming, exit codes, and a report that opens offline."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from commands import run
from html_pages import check_self_contained

from llmgym import reproduce
from llmgym.core.errors import LLMGymError
from llmgym.reporting.palette import STYLES, style
from llmgym.reproduce import items
from llmgym.reproduce import page as report
from llmgym.reproduce import run as running
from llmgym.reproduce.items import Data, Effort, Item, Picture


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``llmgym reproduce``."""
    return run(capsys, "reproduce", "--jobs", "1", *arguments)  # toys live in this process


def draw(data: Data) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(2, 2))
    axis.plot([0, 1], [data["one"], data["two"]])
    return figure


def item(made: list[str], expected: float = 1.0, name: str = "toy") -> Item:
    """Two parts, the second twice the seed, that note each measurement in ``made``."""

    def parts(effort: Effort) -> dict[str, Any]:
        return {"one": lambda: made.append("one") or 1.0, "two": lambda: made.append("two") or 2.0}

    def judge(data: Data) -> list[items.Check]:
        return [
            items.near("<one>", expected, data["one"], 0.1),
            items.equal("two", 2.0, data["two"]),
        ]

    picture = Picture("toy", 'a "toy" & <more>', draw)
    return Item(name, "A toy", "nowhere", parts, judge, (picture,))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two items in place of all: one passes and one fails."""
    made: list[str] = []
    both = {"toy": item(made), "wrong": item(made, expected=3.0, name="wrong")}
    both["wrong"] = Item(**{**vars(both["wrong"]), "pictures": ()})
    monkeypatch.setattr(reproduce, "ITEMS", both)
    return made


def test_items_of_section_2_are_there_by_name() -> None:
    assert {
        "figure-8", "theorem-2", "rate-bound", "work-conservation", "figure-1", "faster-transformer",
        "corner-c", "polygon", "load-balancing", "acyclic-networks", "rybko-stolyar",
    } < set(reproduce.ITEMS)  # fmt: skip
    assert [i.name for i in reproduce.select()] == list(reproduce.ITEMS)
    assert [i.name for i in reproduce.select(["polygon", "figure-8", "polygon"])] == [
        "polygon",
        "figure-8",
    ]
    with pytest.raises(LLMGymError, match="Did you mean 'figure-8'"):
        reproduce.select(["figure8"])
    pictures = [p.name for i in reproduce.ITEMS.values() for p in i.pictures]
    assert len(pictures) == len(set(pictures))
    for one in reproduce.ITEMS.values():
        for effort in (Effort(), Effort(quick=True)):
            names = [running.file_name(one.name, part) for part in one.parts(effort)]
            assert len(names) == len(set(names))
            pickle.dumps(one.parts(effort))  # what another process is given
        assert set(one.parts(Effort(quick=True))) <= set(one.parts(Effort()))


def test_list_and_unknown_items(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "--list")
    assert code == 0
    assert all(name in out for name in reproduce.ITEMS)
    found = json.loads(command(capsys, "figure-8", "--list", "--json")[1])
    assert [f["item"] for f in found] == ["figure-8"]
    code, _, err = command(capsys, "figure-9")
    assert code == 2
    assert "Unknown item 'figure-9'" in err


def test_a_run_resumes_and_judges_from_its_files(tmp_path: Path, toys: list[str]) -> None:
    chosen = reproduce.select(["toy"])
    first = running.run(chosen, Effort(), tmp_path)
    assert toys == ["one", "two"]
    (tmp_path / "raw" / "toy.one.json").unlink()
    again = running.run(chosen, Effort(), tmp_path)
    assert toys == ["one", "two", "one"]
    assert again[0].checks == first[0].checks
    raw = tmp_path / "raw" / "toy.two.json"
    raw.write_text(raw.read_text().replace('"data": 2.0', '"data": 2.5'))
    assert running.run(chosen, Effort(), tmp_path)[0].verdict == "fail"
    with pytest.raises(LLMGymError, match="another"):
        running.run(chosen, Effort(seed=1), tmp_path)
    raw.write_text("{")
    with pytest.raises(LLMGymError, match="damaged"):
        running.read(tmp_path, chosen, Effort())


def test_a_failing_item_sets_the_exit_code(
    tmp_path: Path, toys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path))
    code, table, _ = command(capsys, "toy", *out)
    assert code == 0
    assert "pass" in table and "FAIL" not in table
    code, _, _ = command(capsys, "wrong", *out)
    assert code == 1
    assert json.loads(command(capsys, "wrong", "--json", *out)[1])[0]["verdict"] == "fail"
    # Each call shows its own items, the files everything that the folder holds.
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["item"], r["verdict"]) for r in rows] == [
        ("toy", "pass"), ("toy", "pass"), ("wrong", "fail"), ("wrong", "pass"),
    ]  # fmt: skip
    check_self_contained((tmp_path / "report.html").read_text(), {"toy"})
    for kind in ("png", "svg"):
        assert (tmp_path / f"toy.{kind}").stat().st_size > 0


def test_cheap_items(tmp_path: Path) -> None:
    chosen = reproduce.select(["batch-time", "figure-8", "vllm-batches"])
    results = running.run(chosen, Effort(quick=True), tmp_path)
    assert [r.verdict for r in results] == ["pass", "pass", "skipped"]
    assert not running.failed(results)
    report.publish(results, running.config(Effort(quick=True)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    check_self_contained(page, {"batch-time", "figure-8"})
    for text in ("--data", "jaxlib", "&quot;seed&quot;: 0", "arXiv:2504.07347v3, Figure 8"):
        assert text in page


@pytest.mark.slow
def test_every_item_passes_in_its_quick_form(tmp_path: Path) -> None:
    everything, seed = reproduce.select(), 1  # the published full run has seed 0
    results = running.run(everything, Effort(quick=True, seed=seed), tmp_path)
    wrong = [(r.item.name, c) for r in results for c in r.checks if c.verdict == "fail"]
    assert not wrong
    report.publish(results, running.config(Effort(quick=True, seed=seed)), tmp_path)
    shown = {p.name for r in results for p in r.item.pictures}
    check_self_contained((tmp_path / "report.html").read_text(), shown)


def test_checks_can_fail() -> None:
    assert items.equal("", 1, 2).verdict == "fail"
    assert items.near("", 1.0, 1.006, 0.005).verdict == "fail"
    assert items.near("", 1.0, 1.005, 0.005).verdict == "pass"
    assert items.between("", 1, 2, 2.1).verdict == "fail"
    assert items.at_least("", 1, 0.9).verdict == "fail"
    noise = [0.9, 1.0, 1.1, 1.0]
    assert items.sampled("", 1.01, noise).verdict == "pass"
    assert items.sampled("", 2.0, noise).verdict == "fail"
    estimate = {"requests_per_s": 1.0, "low": 0.99, "high": 1.01}
    assert items.estimated("", 1.02, estimate).verdict == "fail"
    assert items.estimated("", 1.02, estimate, half_unit=0.01).verdict == "pass"
    found = {"verdict": "undecided", "low": 0.0, "high": 1.0}
    assert items.stands("", "stable", found).verdict == "fail"
    passed, skipped = items.equal("", 1, 1), items.skipped("", "no data")
    assert items.verdict_of([passed, skipped]) == "pass"
    assert items.verdict_of([skipped]) == "skipped"
    assert items.verdict_of([passed, items.equal("", 1, 2)]) == "fail"


def test_every_policy_has_a_style_of_its_own() -> None:
    from llmgym import baselines

    assert set(baselines.names()) <= set(STYLES)
    assert len({style(n) for n in baselines.names()}) == len(baselines.names())
    assert style("sarathi:token_budget=128").colour == style("sarathi").colour
    assert style("sarathi:token_budget=128") != style("sarathi")
    assert style("vllm:prompts=split") == style("vllm")
    assert style("runs/mine.npz") == style("elsewhere/mine.npz")
