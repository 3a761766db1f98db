"""How far long work is: a bar on a terminal, and in a log a line every ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from llmgym.cli.output import messages
from llmgym.core.text import one_line

HEARTBEAT_S = 10.0
"""Seconds between two lines of a log."""


def bar(quiet: bool, steps: bool = False) -> Progress | Heartbeat:
    """Progress on standard error: a bar, or a line now and then where that is no terminal.

    Args:
        quiet: no bar on a terminal, because JSON is printed there too.
        steps: count in steps, such as 3/8; else in percent.
    """
    if not messages.is_terminal or messages.is_dumb_terminal:
        return Heartbeat()
    counter = [MofNCompleteColumn()] if steps else []
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counter,
        TimeElapsedColumn(),
        console=messages,
        disable=quiet,
        transient=True,
    )


@contextmanager
def counter(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that counts measurements; yields a function of how many are done, of how many, and a label."""
    with bar(quiet, steps=True) as shown:
        task = shown.add_task("starting", total=None)

        def progress(done: int, total: int, label: str) -> None:
            shown.update(task, completed=done, total=total, description=one_line(label))

        yield progress


@contextmanager
def busy(quiet: bool, what: str) -> Iterator[None]:
    """A bar for work that cannot tell how far it is."""
    with bar(quiet) as shown:
        shown.add_task(one_line(what), total=None)
        yield


@dataclass
class Task:
    """What is being done, and how much of it is."""

    description: str
    total: float | None
    completed: float = 0

    def __str__(self) -> str:
        if self.total is None:
            return self.description
        if self.total == 1:
            return f"{100 * self.completed:.0f} %, {self.description}"
        return f"{self.completed:,.0f}/{self.total:,.0f}, {self.description}"


class Heartbeat:
    """Stands in for a bar in a log: every HEARTBEAT_S seconds a line says what was heard of last."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []
        self._latest: Task | None = None
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def add_task(self, description: str, total: float | None = None) -> TaskID:
        """A task; returns its number."""
        self._latest = Task(description, total)
        self._tasks.append(self._latest)
        return TaskID(len(self._tasks) - 1)

    def update(
        self,
        task: TaskID,
        *,
        completed: float | None = None,
        total: float | None = None,
        description: str | None = None,
    ) -> None:
        """Say how far a task is; None leaves a value as it was.

        Args:
            task: its number.
            completed, total: how much is done, and of how much.
            description: what is being done.
        """
        of = self._latest = self._tasks[task]
        of.completed = of.completed if completed is None else completed
        of.total = of.total if total is None else total
        of.description = of.description if description is None else description

    def line(self) -> str:
        """The line that is due now."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        told = "starting" if self._latest is None else str(self._latest)
        return one_line(f"llmgym: {minutes}:{seconds:02} {told}")

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                messages.file.write(self.line() + "\n")
                messages.file.flush()
            except (OSError, ValueError):  # nobody reads the log any more: work on
                return
