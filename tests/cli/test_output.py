"""What commands print: any name as it is, plain text in pipes, a heartbeat in logs, one line when stopped."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from commands import run
from rich.console import Console

import llmgym
from llmgym.cli import common, output, progress
from llmgym.core.errors import LLMGymError

COMMAND = (sys.executable, "-c", "from llmgym.cli import main; main()")

EVIL = "[/red]a$\\foo$b<b>&amp;|*x*`=1+1 ../../x"
"""A name with marks of rich, Matplotlib, HTML, Markdown, spreadsheets and paths."""

SCENARIO = f"""
name = '{EVIL}'
description = '[bold]{EVIL}'
slots = 32
[engine]
name = '{EVIL}'
token_budget = 128
batch_time = {{ kind = "staircase", c_ms = 11.28, a_ms = 35.47, tile = 128 }}
[[job_types]]
name = '{EVIL}'
arrivals = {{ kind = "poisson", rate_per_s = 4.0 }}
prefill = {{ kind = "fixed", tokens = 129 }}
decode = {{ kind = "geometric", mean_tokens = 112 }}
"""


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = tmp_path / "evil.toml"
    path.write_text(SCENARIO)
    return path


@pytest.mark.parametrize("command", [("show",), ("capacity", "-s")])
def test_a_name_is_printed_as_it_is(
    capsys: pytest.CaptureFixture[str], evil: Path, command: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *command, str(evil))
    assert (code, err) == (0, "") and EVIL in out


def test_a_bar_shows_a_name_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(progress, "messages", screen)
    with progress.counter(quiet=False) as tell:
        tell(1, 3, f"{EVIL}\x1b[2J\n")
        time.sleep(0.2)  # the bar draws ten times a second
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[/red]a$\\foo" in text and "\\x1b[2J\\n" in text and "\x1b[2J" not in text


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(SCENARIO.replace(f"name = '{EVIL}'\ndesc", 'name = "a\\u001b[2J\\u202e"\ndesc'))
    code, out, _ = run(capsys, "capacity", "-s", str(path))
    assert code == 0 and "a\\x1b[2J\\u202e" in out and "\x1b" not in out
    code, _, err = run(capsys, "capacity", "-s", "a\n\x1b[2J.toml")
    assert code == 2 and err.count("\n") == 1 and "\x1b" not in err


def test_default_folders_stay_inside_results() -> None:
    folder = common.results_folder("benchmark", "x/../../../../evil")
    assert folder.parts[0] == "results" and len(folder.parts) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "max_num_batched_tokens=8"), "Here that is token_budget"),
        (("--set", "max_concurrency=8"), "Here that is max_num_seqs"),
        (("--set", "chunked_prefill_size=8"), "Here that is token_budget"),
        (("--set", "max_running_requests=8"), "Here that is max_num_seqs"),
        (("--set", "gpu_memory_utilization=0.9"), "Here that is kv_cache"),
        (("--max-num-batched-tokens", "8"), "is here: token_budget"),
        (("-p", "sarathi:max-num-batched-tokens=8"), "Here that is token_budget"),
        (
            ("-p", "orca:name=[/red]"),
            "Unknown setting of policy 'orca': 'name'. Known: token_budget.",
        ),
        (("-p", "orca:saturates=false"), "Unknown setting of policy 'orca': 'saturates'"),
        (("--set", "slots=many"), "slots must be a number"),
        (("--set", "router=3"), "Unknown router '3'"),
        (("--set", "batch_time=3"), "Unknown batch time '3'"),
    ],
)
def test_settings_of_other_servers_and_of_a_wrong_kind(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, "simulate", *arguments)
    assert (code, out) == (2, "") and message in " ".join(err.split())


def test_names_may_look_like_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("5", "none", "a,b"):
        code, out, _ = run(capsys, "capacity", "--set", f"name={name}")
        assert code == 0 and f"capacity of {name}\n" in out


def test_keys_of_other_servers_in_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    for old, key, ours in [
        ("token_budget = 128", "max_num_batched_tokens = 128", "token_budget"),
        ("slots = 32", "max_num_seqs = 32", "max_num_seqs of the engine"),
    ]:
        path.write_text(SCENARIO.replace(old, key))
        code, _, err = run(capsys, "capacity", "-s", str(path))
        assert code == 2 and f"Here that is {ours}" in err


def test_arguments_of_other_servers() -> None:
    made = llmgym.CODELLAMA_34B_A100
    for build in (llmgym.Engine, llmgym.Scenario.single_engine):
        with pytest.raises(LLMGymError, match="Here that is token_budget"):
            build(batch_time=made, max_num_batched_tokens=8)  # type: ignore[call-arg]
    for run_it in (llmgym.simulate, llmgym.stability, llmgym.estimate_capacity):
        with pytest.raises(LLMGymError, match="Here that is max_num_seqs of the engine"):
            run_it("latency", "sarathi", max_num_seqs=8)
    with pytest.raises(TypeError, match="unexpected keyword"):
        llmgym.Engine(made, 8, nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(LLMGymError, match="Here that is token_budget"):
        llmgym.functional("llmgym/Engine-v0", max_num_batched_tokens=8)


@pytest.mark.parametrize("command", ["benchmark", "evaluate"])
def test_repeat_ignores_nothing_and_keeps_its_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    repeat = ("--repeat", str(tmp_path))
    for more, option in [
        (("--load", "0.5"), "--load"), (("--seed", "1"), "--seed"), (("-p", "orca"), "--policy"),
        (("-s", "latency"), "--scenario"), (("--set", "slots=3"), "--set"),
    ]:  # fmt: skip
        code, _, err = run(capsys, command, *repeat, *more)
        assert code == 2 and f"{option} does not go with --repeat" in err
    for named in (tmp_path, tmp_path / "config.json"):
        (tmp_path / "config.json").write_text("{}")
        code, _, err = run(capsys, command, "--repeat", str(named), "--out", str(tmp_path))
        assert code == 2 and "give another --out" in err
        code, _, err = run(capsys, command, "--repeat", str(named))
        assert code == 2 and "is not the configuration" in err


def test_a_heartbeat_says_how_far_work_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "HEARTBEAT_S", 0.05)
    with progress.counter(quiet=False) as tell:
        tell(3, 8, "sarathi at load 0.8: latency")
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert lines and set(lines) == {"llmgym: 0:00 3/8, sarathi at load 0.8: latency"}
    with progress.bar(quiet=True) as beat:
        beat.update(beat.add_task("sarathi", total=1.0), completed=0.25)
        time.sleep(0.1)
    assert "25 %, sarathi" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [KeyboardInterrupt, signal.SIGTERM])
def test_a_stopped_command_leaves_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: object
) -> None:
    def stopped(*_: object) -> None:
        if fault is KeyboardInterrupt:
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(common, "scenario", stopped)
    monkeypatch.setattr(sys.modules["llmgym.cli.main"], "_end_at_once", sys.exit)
    code, out, err = run(capsys, "capacity")
    assert (code, out) == (130, "")
    assert err.startswith("Stopped.") and err.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "The system: No space left on device."),
        (MemoryError(), "not enough memory"),
        (LLMGymError("a\x1b"), "a\\x1b"),
    ],
)
def test_faults_of_the_machine_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    message: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(common, "scenario", fail)
    code, _, err = run(capsys, "capacity")
    assert code == 2 and err.count("\n") == 1 and message in err


def test_a_closed_or_full_output_gives_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as ``head`` does when it has its lines
    piped = subprocess.run(
        [*COMMAND, "list"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (piped.returncode, piped.stderr) == (output.READER_GONE, "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [*COMMAND, "list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "Cannot write the output: No space left on device." in ended.stderr


def test_output_in_a_narrow_encoding_shows_escapes() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [*COMMAND, "capacity", "--set", "name=héé"],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert ended.returncode == 0 and "h\\xe9\\xe9" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_benchmark_that_is_stopped_leaves_one_line_and_resumes(
    tmp_path: Path, evil: Path, number: signal.Signals, jobs: str
) -> None:
    arguments = (
        "benchmark",
        "-s",
        str(evil),
        "--load",
        "0.5",
        "-p",
        "sarathi",
        "--arrivals",
        "100",
    )
    arguments += ("--out", str(tmp_path / "out"), "--jobs", jobs)
    started = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # test workers ignore it
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not list((tmp_path / "out").glob("raw/*.json")) and time.monotonic() < limit:
        time.sleep(0.1)
    if number == signal.SIGINT:  # as a terminal does, to all processes
        os.killpg(started.pid, number)
    else:
        started.send_signal(number)
    out, err = started.communicate(timeout=20)
    told = [line for line in err.splitlines() if not line.startswith("llmgym: ")]  # the heartbeat
    assert (started.returncode, out) == (130, "")
    assert len(told) == 1 and told[0].startswith("Stopped.")
    again = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    assert again.returncode == 0 and EVIL in again.stdout
