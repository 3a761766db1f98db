"""Commands that are killed again and again end with the same bytes as those that are not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import run
from killing import KilledError, content, killer

from llmgym import studies
from llmgym.agents import training
from llmgym.core.errors import LLMGymError
from llmgym.evaluation import benchmark, traffic
from llmgym.evaluation.benchmark import Task
from llmgym.reproduce import run as reproduction
from llmgym.studies import corner, network, optimum, study, transfer
from llmgym.studies.study import Row

Capture = pytest.CaptureFixture[str]
RESULTS = Path(__file__).parents[2] / "docs" / "results"
NO_CLOCK = SimpleNamespace(perf_counter=lambda: 0.0, process_time=lambda: 0.0)
"""In the place of the module time: seconds that were measured differ between runs."""

SCENARIO = """
name = "small"
slots = 32
[engine]
token_budget = 128
batch_time = { kind = "staircase", c_ms = 11.28, a_ms = 35.47, tile = 128 }
[[job_types]]
name = "one"
arrivals = { kind = "poisson", rate_per_s = 4.0 }
prefill = { kind = "fixed", tokens = 64 }
decode = { kind = "geometric", mean_tokens = 12 }
"""

TRACE = "arrival,prefill,decode\n" + "".join(f"{n / 10},{20 + n},{5 + n}\n" for n in range(20))

LONG = {
    "benchmark": (
        "-s", "SCENARIO", "-p", "sarathi", "--load", "0.5", "--replications", "2", "--arrivals", "30",
        "--report",
    ),
    "evaluate": (
        "-s", "SCENARIO", "-p", "greedy_rate", "--load", "0.5", "--budget", "128", "--seeds", "2",
        "--arrivals", "100",
    ),
    "replay": ("TRACE", "-s", "SCENARIO", "-p", "sarathi", "-p", "orca", "--drain-s", "1"),
    "train": (
        "-s", "SCENARIO", "--load", "0.5", "--steps", "640", "--option", "num_envs=4",
        "--option", "steps=16", "--option", "epochs=1", "--option", "minibatches=2",
        "--option", "hidden=4",
    ),
    "tune": ("-s", "SCENARIO", "--load", "0.5", "--generations", "2", "--population", "4"),
}  # fmt: skip
"""Every long command that resumes, at its smallest."""


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, str]:
    """The files that commands read."""
    (tmp_path / "small.toml").write_text(SCENARIO)
    (tmp_path / "small.csv").write_text(TRACE)
    return {"SCENARIO": str(tmp_path / "small.toml"), "TRACE": str(tmp_path / "small.csv")}


def test_measurements_that_are_killed_end_equal(tmp_path: Path) -> None:
    """In the middle of a file, before and after it is in its place, and where the disk is full."""
    rows = [Row("rows.json", name, partial(dict, n=n)) for n, name in enumerate("ab")]
    tasks = [Task(name, name, partial(dict, of=name)) for name in "ab"]
    silent = lambda *_: None  # noqa: E731
    calls = {
        "study": partial(study.measure, rows, progress=silent),
        "benchmark": partial(benchmark.measure, {"seed": 0}, tasks),
    }
    for name, call in calls.items():
        call(out=tmp_path / name / "whole")
        out, full = tmp_path / name / "killed", 0

        def once(call: Callable[..., object] = call, out: Path = out) -> None:
            nonlocal full
            try:
                call(out=out)
            except LLMGymError as error:
                full += "No space left on device" in str(error)
                raise KilledError from error

        with killer() as kills:
            while not kills.die(once):
                assert kills.kills < 99
        found, whole = content(out), content(tmp_path / name / "whole")
        assert (found.keys(), kills.kills, full) == (whole.keys(), 3 * full, full) and full > 1
        for path, text in whole.items():
            assert path == "rows.json" or found[path] == text
        if name == "study":  # rows say how many seconds they took
            assert [row["n"] for row in study.read(out / "rows.json").values()] == [0, 1]


def ends_equal(capsys: Capture, folder: Path, command: str, *arguments: str) -> int:
    """Kill a command at each of its files and resume it: it ends as one that is not killed.

    Args:
        capsys: of the test.
        folder: in which it runs, twice.
        command, arguments: all but --out.

    Returns:
        How many new files were met, each with three kills and a full disk.
    """
    whole, out, full = folder / "whole", folder / "killed", 0

    def once() -> None:
        nonlocal full
        code, _, err = run(capsys, command, *arguments, "--out", str(out))
        if code == 2:
            told = [line for line in err.splitlines() if not line.startswith("llmgym: 0:")]
            assert len(told) == 1 and "No space left on device" in told[0]
            full += 1
        assert code in (0, 2)

    assert run(capsys, command, *arguments, "--out", str(whole))[0] == 0
    with killer() as kills:
        while not kills.die(once):
            assert kills.kills < 99
    assert content(out) == content(whole)
    print(f"{command}: {kills.kills} kills, {full} times a full disk")
    assert kills.kills == 3 * full
    return full


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_a_command_that_is_killed_at_each_of_its_files_ends_equal(
    tmp_path: Path,
    inputs: dict[str, str],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)  # a checkpoint after every chunk
    monkeypatch.setattr(traffic, "time", NO_CLOCK)
    arguments = [inputs.get(word, word) for word in LONG[command]]
    files = ends_equal(capsys, tmp_path, command, *arguments)
    assert files >= (2 if command == "tune" else 3)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each row of a study is made: not measured, but read from the published page's numbers."""
    made: Counter[str] = Counter()

    def noted(row: str, read: Callable[[], Any]) -> Any:
        made[row] += 1
        return read()

    def published(folder: str, file: str, name: str) -> dict[str, Any]:
        row = study.read(RESULTS / folder / file)[name]
        return {k: v for k, v in row.items() if k != "took_s"}

    def row_in(folder: str) -> Callable[..., Row]:
        return lambda file, name, _: Row(
            file, name, partial(noted, f"{file} {name}", partial(published, folder, file, name))
        )

    def task(file: str, label: str, _: Any) -> Task:
        path = RESULTS / network.Network.name / "raw" / f"{file}.json"
        return Task(file, label, partial(noted, file, partial(benchmark.read_result, path)))

    for module, of in (
        (corner, corner.Corner),
        (optimum, optimum.Optimum),
        (transfer, transfer.Transfer),
    ):
        monkeypatch.setattr(module, "Row", row_in(of.name))
    monkeypatch.setattr(network, "Task", task)
    monkeypatch.setattr(study, "time", NO_CLOCK)
    return made


@pytest.mark.parametrize("name", studies.STUDIES)
def test_a_study_that_is_killed_at_each_of_its_files_ends_equal(
    tmp_path: Path, capsys: Capture, made: Counter[str], name: str
) -> None:
    """Rows are kept one by one: what a killed study has written is not measured again."""
    files = ends_equal(capsys, tmp_path, "study", name)
    assert set(made.values()) == {1 + 4}  # the first is of the whole one, the last is kept
    config, pages = tmp_path / "whole" / "config.json", files - len(made)
    assert pages == (3 if config.exists() else 1)  # with a configuration there are two pages


@pytest.mark.slow
def test_a_study_that_measures_is_killed_and_ends_equal(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "time", NO_CLOCK)
    monkeypatch.setattr(corner, "NAMES", (corner.AGENT, "sarathi:token_budget=512"))
    short = partial(corner.stability, horizon_s=0.5)
    monkeypatch.setattr(corner, "stability", short)
    assert ends_equal(capsys, tmp_path, "study", "corner-c") == 3


@pytest.mark.parametrize(
    "items",
    [
        ("batch-time", "vllm-batches"),
        pytest.param(("batch-time", "figure-8", "vllm-batches"), marks=pytest.mark.slow),
    ],
)
def test_a_reproduction_that_is_killed_at_each_of_its_files_ends_equal(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, items: tuple[str, ...]
) -> None:
    monkeypatch.setattr(reproduction, "time", NO_CLOCK)
    monkeypatch.delenv("LLMGYM_SHARED_DATA", raising=False)
    files = ends_equal(capsys, tmp_path, "reproduce", *items, "--jobs", "1")
    assert files == len(content(tmp_path / "whole"))


WRAPPED = """
from llmgym.agents import training
training.SAVE_EVERY_S = 0.2
from llmgym.cli import main
if __name__ == "__main__":
    main()
"""


def children(pid: int) -> set[int]:
    """Processes that this one has started; none where the system does not tell."""
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["benchmark", "train"])
def test_processes_that_are_killed_leave_none_behind_and_end_equal(
    tmp_path: Path, inputs: dict[str, str], command: str
) -> None:
    (tmp_path / "main.py").write_text(WRAPPED)
    arguments = [inputs.get(word, word) for word in LONG[command]]
    if command == "benchmark":
        arguments += ["--jobs", "2"]
    else:  # some seconds
        arguments[arguments.index("640")] = "48000"
    start = [sys.executable, str(tmp_path / "main.py"), command, *arguments, "--out"]
    out, draw, alone = tmp_path / "killed", random.Random(command), set()
    for _ in range(4):
        before = content(out)
        killed = subprocess.Popen(
            [*start, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 60
        while content(out) == before and time.monotonic() < limit and killed.poll() is None:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.5))
        alone |= children(killed.pid)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    for folder in (out, tmp_path / "whole"):
        ended = subprocess.run([*start, str(folder)], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    assert content(out) == content(tmp_path / "whole")
    limit = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in alone) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not [pid for pid in alone if os.path.exists(f"/proc/{pid}")]
