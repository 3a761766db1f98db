"""One process at a time writes into a folder of results.

The lock is on the folder itself, so no file is left behind, and it ends with the process. Where a file
system or the platform knows no locks, work goes on without.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from llmgym.core.errors import LLMGymError
from llmgym.core.files import PART
from llmgym.core.locks import lock

_HELD: ContextVar[frozenset[str]] = ContextVar("_HELD", default=frozenset())
"""Folders that this thread holds: a command holds its folder, and so do the functions that it calls."""


@contextmanager
def alone_in(folder: Path | str | None) -> Iterator[None]:
    """Hold a folder of results, which is made where it is missing, against other processes and threads.

    What a process left half written there when it was killed is removed. None: nothing is written, so nothing
    is held.

    Raises LLMGymError where another one holds it, and where nothing can be written there.
    """
    if folder is None:
        yield
        return
    folder = Path(folder)
    _make(folder)
    real = os.path.realpath(folder)
    if real in _HELD.get():
        yield
        return
    with _locked(folder):
        _remove_parts(Path(real))
        before = _HELD.set(_HELD.get() | {real})
        try:
            yield
        finally:
            _HELD.reset(before)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except (
        OSError
    ):  # Windows opens no folders; and one may write into a folder that one cannot read
        yield
        return
    try:
        if lock(handle) is False:
            raise LLMGymError(
                f"Another process or thread is writing into {folder}. Wait until it ends, or choose "
                "another --out folder."
            )
        yield
    finally:
        os.close(handle)


def _make(folder: Path) -> None:
    """Make the folder. Raises LLMGymError where that cannot be, or nothing can be written into it."""
    reason = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            reason = "it may not be written into"
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error)
        if os.path.islink(folder) and not os.path.exists(folder):
            reason = "it is a link that leads nowhere"
        elif os.path.exists(folder):
            reason = "it is no folder"
    if reason:
        raise LLMGymError(f"Cannot write to {folder}: {reason}. Choose another --out folder.")


def _remove_parts(folder: Path) -> None:
    """Remove what killed processes left half written; a file that is being written is locked."""
    raw = folder / "raw"
    for inside in [folder] if raw.is_symlink() else [folder, raw]:
        for part in inside.glob(f"{PART}*"):
            if part.is_file() and not part.is_symlink():
                with suppress(OSError):
                    _remove(part)


def _remove(part: Path) -> None:
    handle = os.open(part, os.O_RDONLY)
    try:
        if lock(handle):
            os.unlink(part)
    finally:
        os.close(handle)
