"""One process writes into a folder of results at a time, and what killed ones leave behind goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import run

from llmgym.core import files, locks
from llmgym.core.errors import LLMGymError
from llmgym.core.files import write
from llmgym.core.folders import alone_in

HOLDER = """
import sys
from llmgym.core.folders import alone_in
with alone_in(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

COMMANDS = {
    "simulate": ("--policy", "sarathi", "--duration-s", "1"),
    "benchmark": ("--policy", "sarathi", "--load", "0.5"),
    "evaluate": ("--policy", "sarathi", "--load", "0.5"),
    "replay": ("TRACE", "--policy", "sarathi"),
    "train": ("--load", "0.5", "--steps", "1"),
    "tune": ("--load", "0.5",),
    "optimum": ("--load", "0.5",),
    "study": ("corner-c",),
    "reproduce": ("--quick",),
    "calibrate": ("MEASURED",),
    "speed": (),
}  # fmt: skip
"""Every command that writes into a folder of results, with what it needs to get as far."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder as another process would."""
    handle = os.open(folder, os.O_RDONLY)
    assert locks.lock(handle)
    try:
        yield
    finally:
        os.close(handle)


def test_the_lock_of_a_killed_process_goes_with_it(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "out")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for name in ("out", "link"):
        with (
            pytest.raises(LLMGymError, match=f"is writing into .*{name}. Wait until it ends"),
            alone_in(tmp_path / name),
        ):
            raise AssertionError("both hold it")
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with alone_in(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_that_another_one_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "trace.csv").write_text("arrival,prefill,decode\n0,9,9\n1,9,9\n")
    rows = "".join(f"{n},{5 + n}\n" for n in range(1, 13))
    (tmp_path / "measured.csv").write_text("tokens,ms\n" + rows)
    inputs = {
        "TRACE": str(tmp_path / "trace.csv"),
        "MEASURED": str(tmp_path / "measured.csv"),
    }
    arguments = [inputs.get(word, word) for word in COMMANDS[command]]
    (tmp_path / "out").mkdir()
    with held(tmp_path / "out"):
        code, out, err = run(capsys, command, *arguments, "--out", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("llmgym: Another process or thread is writing into ")
    assert os.listdir(tmp_path / "out") == []


def test_functions_of_one_thread_share_a_folder_and_threads_do_not(tmp_path: Path) -> None:
    def hold() -> str:
        try:
            with alone_in(tmp_path):
                return "held"
        except LLMGymError:
            return "refused"

    with ThreadPoolExecutor(1) as pool:
        with alone_in(tmp_path), alone_in(str(tmp_path)), alone_in(None):
            assert (hold(), pool.submit(hold).result()) == ("held", "refused")
        assert pool.submit(hold).result() == "held"


def test_files_that_a_killed_process_left_half_written_are_removed(tmp_path: Path) -> None:
    (tmp_path / "out" / "raw").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    left = [tmp_path / "out" / ".part-a", tmp_path / "out" / "raw" / ".part-b"]
    kept = [
        tmp_path / "out" / "part-c",
        tmp_path / "out" / ".part-live",
        tmp_path / "elsewhere" / ".part-d",
    ]
    for path in [*left, *kept]:
        path.write_text("half")
    os.mkfifo(tmp_path / "out" / ".part-pipe")
    (tmp_path / "out" / ".part-link").symlink_to(tmp_path / "elsewhere" / ".part-d")
    with kept[1].open() as file:
        assert locks.lock(file.fileno())  # as ``write`` does
        with alone_in(tmp_path / "out"):
            pass
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
    assert (tmp_path / "out" / ".part-pipe").exists() and (tmp_path / "out" / ".part-link").exists()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "raw").symlink_to(tmp_path / "elsewhere")
    with alone_in(tmp_path / "linked"):
        pass
    assert kept[2].exists()


def test_what_is_being_written_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def look(handle: int) -> None:
        locks.lock(handle)
        with alone_in(tmp_path):
            found.extend(tmp_path.glob(".part-*"))

    monkeypatch.setattr(files, "lock", look)
    write(tmp_path / "a", "text")
    assert len(found) == 1 and os.listdir(tmp_path) == ["a"]


def test_without_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".part-a").write_text("perhaps of another process")
    with held(tmp_path):
        monkeypatch.setattr(locks, "fcntl", None)
        with alone_in(tmp_path):
            write(tmp_path / "a", "text")
    assert sorted(os.listdir(tmp_path)) == [".part-a", "a"]


def test_folders_that_cannot_be_written_to_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "to file").symlink_to(tmp_path / "file")
    for name, reason in {
        "file": "it is no folder",
        "to file": "it is no folder",
        "dangling": "it is a link that leads nowhere",
        "file/sub": "Not a directory",
        "a\0b": "null byte",
        "n" * 300: "File name too long",
    }.items():
        with pytest.raises(LLMGymError, match=f"Cannot write to .*{reason}.*--out"):
            alone_in(tmp_path / name).__enter__()
    assert not (tmp_path / "nowhere").exists() and (tmp_path / "file").read_text() == ""
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root, nothing else is read-only
    with pytest.raises(LLMGymError, match="it may not be written into"):
        alone_in(tmp_path).__enter__()
