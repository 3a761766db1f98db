"""Any name through every command and every format: right or refused; files open and stay in their folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import opened_files
import pytest
from commands import run
from hostile_names import EVERYTHING, NAMES, Inputs, file_name, inputs
from rich.console import Console

from llmgym.cli import output
from llmgym.core.files import slug
from llmgym.core.text import one_line
from llmgym.evaluation import benchmark

Capture = pytest.CaptureFixture[str]
QUICK = ("rich", "lines")
"""Names of the default set."""

USER = [pytest.param(k, marks=[pytest.mark.slow] * (k not in QUICK)) for k in NAMES]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, deep enough for names that lead up to be seen."""
    folder = tmp_path / "1" / "2" / "3" / "4" / "5"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def do(capsys: Capture, *arguments: object, code: int = 0) -> str:
    """Run a command; what it prints has nothing hidden, and a refusal is one line."""
    found, out, err = run(capsys, *map(str, arguments))
    assert found == code, (arguments, err[-2000:])
    opened_files.no_hidden(out + err)
    if code == 2:
        assert err.count("\n") == 1 and not out
    elif "--json" in arguments:
        json.loads(out)
    return out


def in_terminal(monkeypatch: pytest.MonkeyPatch, width: int = 80) -> None:
    """Let commands print as on a terminal without colours."""
    screen = Console(force_terminal=True, width=width, color_system=None, markup=False, emoji=False)
    monkeypatch.setattr(output, "console", screen)


def paths(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("key", USER)
def test_what_compiles_nothing(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path, key: str
) -> None:
    of, out = inputs(NAMES[key], here / "in"), here / "out"
    before = paths(tmp_path)
    for mode in ("pipe", "terminal", "json"):
        more = ("--json",) if mode == "json" else ()
        if mode == "terminal":
            in_terminal(monkeypatch)
        for scenario in (of.single, of.network):
            shown = do(capsys, "show", scenario, *more)
            limit = do(capsys, "capacity", "-s", scenario, *more)
            if mode == "json":
                assert json.loads(shown)["name"] == json.loads(limit)["scenario"] == of.name
            elif mode == "pipe" and "\n" not in of.name:
                assert f"capacity of {one_line(of.name)}\n" in limit
        fit = ("fit-trace", of.trace, "-s", of.single, "--kind", "poisson", "--points", 5)
        do(capsys, *fit, *more)
        do(capsys, "calibrate", of.measured, *more)
        for listing in (("list",), ("study", "--list"), ("reproduce", "--list")):
            do(capsys, *listing, *more)
        shipped = ("--", of.trace, here, of.name.replace("\0", "0"))
        do(capsys, "ship-agent", *more, *shipped, code=2)
    out.mkdir()
    do(capsys, *fit, "--out", out / "fit.toml")
    do(capsys, "capacity", "-s", out / "fit.toml")
    do(capsys, "calibrate", of.measured, "--out", out / "calibrated")
    for kind in ("svg", "png", "pdf"):
        for name, scenario in (("one", of.single), ("two", of.network)):
            do(capsys, "show", scenario, "--out", out / f"{name}.{kind}")
    assert opened_files.check(out) == {".toml", ".png", ".svg", ".pdf"}
    assert {path for path in paths(tmp_path) - before if out not in (path, *path.parents)} == set()


DECODER = ("--device", "cpu", "--layers", 1, "--width", 8, "--heads", 2, "--vocabulary", 9, "--repeats", 1,
           "--warmup", 0, "--decodes", "0,1,2,4", "--context", "3,9", "--chunk", "0,8",
           "--prefix", "0,5")  # fmt: skip


class Named:
    """In the place of a model of Hugging Face, which would have to be downloaded."""

    def __init__(self, *_: object) -> None:
        pass

    def prepare(self, _: object) -> Callable[[], None]:
        return lambda: None


@pytest.mark.parametrize("key", USER)
def test_batches_are_measured_under_any_name(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path, key: str
) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # several wait for one another where the machine is busy
    from llmgym.calibration import torch_models

    monkeypatch.setattr(torch_models, "HuggingFace", Named)
    before, out = paths(tmp_path), here / file_name(NAMES[key])
    text = NAMES[key].replace("\0", "0")  # no argument of a program has one
    file, named = (out / f"{file_name(NAMES[key])}{end}.csv" for end in ("", "2"))
    for option in ("--device", "--dtype", "--decodes", "--prefix"):
        do(capsys, "measure-batch-time", file, *DECODER, f"{option}={text}", code=2)
    assert not list(out.rglob("*.csv"))
    for path, more in ((file, ()), (named, (f"--model={text}",))):
        command = ("measure-batch-time", path, *DECODER, *more)
        do(capsys, *command)
        in_terminal(monkeypatch)
        assert json.loads(do(capsys, *command, "--json"))["added"] == 0  # it knows its rows again
        do(capsys, *command)
        do(capsys, *command, "--dtype", "bfloat16", code=2)
        do(capsys, "calibrate", path, "--out", out / "calibrated")
    do(capsys, "measure-batch-time", named, *DECODER, f"--model={text}2", code=2)
    assert opened_files.check(out) == {".csv", ".toml", ".png"}
    assert {p for p in paths(tmp_path) - before if out not in (p, *p.parents)} == set()


SMALL_RUN = ("--duration-s", 2, "--num-envs", 2)
TRAINING = ("--steps", 64, "--option", "num_envs=2", "--option", "steps=16",
            "--option", "minibatches=1", "--option", "hidden=4")  # fmt: skip


def long_commands(of: Inputs, out: Path) -> list[tuple[object, ...]]:
    """The commands that compile, at their smallest, each writing into a folder of its own."""
    own = ("-p", of.policy)
    one = ("-s", of.single, "--load", 0.5)
    return [
        ("simulate", "-s", of.single, *SMALL_RUN, "-p", of.policy, "--out", out / "a"),
        ("simulate", "-s", of.network, *SMALL_RUN, "-p", of.policy, "--out", out / "b"),
        ("simulate", "-s", of.single, "--trace", of.trace, "--set", "slots=64", "-p", of.policy,
         "--set", "ttft_ms=100", "--out", out / "c"),
        ("replay", of.trace, "-s", of.single, "--set", "slots=64", *own, "--out", out / "d"),
        ("benchmark", *one, *own, "--replications", 2, "--arrivals", 30, "--report",
         "--out", out / "benchmark"),
        ("evaluate", *one, *own, "--budget", 32, "--seeds", 2, "--arrivals", 40,
         "--out", out / "evaluation"),
        ("fit-trace", of.trace, "-s", of.single, "--kind", "poisson", "--points", 5,
         "--out", out / "e.toml"),
        ("optimum", "-s", out / "e.toml", "--load", 0.5, "-p", of.policy, "--num-envs", 2,
         "--duration-s", 5, "--out", out / "f"),
        ("tune", *one, "--generations", 1, "--population", 4, "--out", out / "g"),
        ("train", *one, *TRAINING, "--out", out / "h"),
        ("calibrate", of.measured, "--out", out / "j"),
        ("validate", of.recorded, "--batch-time", out / "j" / "batch_time.toml"),
        ("speed", "--scenario", of.network, "--num-envs", 2, "--slots", 32, "-p", of.policy,
         "--out", out / "k"),
    ]  # fmt: skip


@pytest.mark.slow
def test_every_command_and_every_report(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path
) -> None:
    of, out = inputs(EVERYTHING, here / "in"), here / "out"
    out.mkdir()
    before = paths(tmp_path)
    in_terminal(monkeypatch)
    for command in long_commands(of, out):
        do(capsys, *command)
    kinds = opened_files.check(out)
    assert kinds == {".csv", ".json", ".md", ".html", ".svg", ".png", ".toml", ".npz"}

    # The reports under every other name, from the same measurements: nothing is measured again.
    def none(todo: list[benchmark.Task], *_: object) -> tuple[()]:
        assert todo == [], [task.name for task in todo]
        return ()

    monkeypatch.setattr(benchmark, "_made", none)
    for key, name in NAMES.items():
        other, to = inputs(name, here / "in" / key), here / "out" / key
        for kind, command in (("benchmark", 4), ("evaluation", 5)):
            _renamed(out / kind / "raw", to / kind / "raw", of, other)
            arguments = long_commands(other, to)[command]
            do(capsys, *arguments)
            do(capsys, *arguments, "--json")
        opened_files.check(to)
    new = {path for path in paths(tmp_path) - before if out not in (path, *path.parents)}
    assert {path for path in new if here / "in" not in path.parents} == set()
    assert not list(tmp_path.rglob("evil")), os.listdir(tmp_path)


def _renamed(raw: Path, to: Path, old: Inputs, new: Inputs) -> None:
    """Measurements as if everything had been named otherwise."""
    to.mkdir(parents=True)
    pairs = [(old.policy, new.policy), (old.name, new.name)]
    for path in raw.iterdir():
        text = path.read_text()
        for before, after in pairs:
            text = text.replace(json.dumps(before)[1:-1], json.dumps(after)[1:-1])
        (to / path.name.replace(slug(old.policy), slug(new.policy))).write_text(text)
