"""Limits on what one call may take: seconds by the clock, processor seconds, memory.

A call that is refused, and a file that is read or refused, has ten seconds and two gigabytes.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS, GIGABYTES = 10.0, 2.0
RUN_CPU_SECONDS, RUN_SECONDS = 30.0, 120.0
"""Of a call that is accepted. It may compile, which takes seconds of the processor, and by the clock as many
times more as other processes share it; what waits for ever without computing is stopped by the clock."""

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class TooLongError(BaseException):
    """Stops a call that hangs: nothing in it catches this."""


@dataclass
class Spent:
    """What a call took, known at its end; 0 gigabytes where the system does not tell."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gigabytes: float = 0.0

    def check(self, seconds: float) -> None:
        """Raise LateError where it took longer."""
        if self.seconds >= seconds:
            raise LateError(self, self.cpu_seconds > seconds / 2)


class LateError(AssertionError):
    """A call took longer by the clock than it may."""

    def __init__(self, spent: Spent, computed: bool) -> None:
        super().__init__(f"late: {spent}")
        self.computed = computed


def again_if_late(attempt: Callable[[], T]) -> T:
    """Do it, and once more if it was late without computing.

    What hangs does so again; a machine that stood still, or gave its processor to others, does not.
    """
    try:
        return attempt()
    except LateError as late:
        if late.computed:
            raise
        return attempt()


@contextmanager
def within(
    seconds: float = SECONDS, gigabytes: float = GIGABYTES, cpu_seconds: float | None = None
) -> Iterator[Spent]:
    """Stop what takes longer, and fail at the end where a limit was passed in any other way.

    Args:
        seconds: by the clock.
        gigabytes: by which the memory of the process may have grown at any moment (Linux only).
        cpu_seconds: of all threads of the process; None: no limit of its own.

    Yields:
        what was spent, filled in at the end.
    """
    spent, resident = Spent(), _memory("VmRSS", anew=True)
    clock, cpu = time.perf_counter(), time.process_time()
    try:
        with _alarm(seconds):
            yield spent
    except TooLongError:
        pass
    finally:
        spent.seconds, spent.cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
        spent.gigabytes = max(_memory("VmHWM") - resident, 0.0)
    spent.check(seconds)
    assert cpu_seconds is None or spent.cpu_seconds < cpu_seconds, spent
    assert spent.gigabytes < gigabytes, spent


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TooLongError after so many seconds, where there are signals."""
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory(line: str, anew: bool = False) -> float:
    """Resident memory now (VmRSS) or its peak (VmHWM), GB; ``anew`` forgets the peaks of earlier calls."""
    with suppress(OSError):
        if anew:
            CLEAR.write_text("5")
    try:
        found = re.search(rf"{line}:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e9 if found else 0.0
