"""Measurements in processes of their own, which end with the process that asked for them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from typing import Any

from llmgym.core.errors import LLMGymError


def in_processes(measures: Sequence[Callable[[], Any]], jobs: int) -> Iterator[tuple[int, Any]]:
    """The number and the result of each measurement, as they end.

    Where one fails, or the caller is stopped, the others are stopped at once.

    Args:
        measures: functions that can be pickled.
        jobs: how many run at a time.

    Raises LLMGymError where a process is killed, as a machine does that runs out of memory.
    """
    before = set(active_children())
    # A forked process would hang: the threads of XLA are not in it.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_heed_signals)
    try:
        with _signals_held():
            waiting = {pool.submit(measure): n for n, measure in enumerate(measures)}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    except BrokenProcessPool:
        raise LLMGymError(
            "A process that measured was killed, perhaps because memory ran out. Use fewer --jobs; the "
            "same command resumes."
        ) from None
    except BaseException:
        for child in set(active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C waits while processes start: one that is still importing would print a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _heed_signals() -> None:
    """In a new process: end at once on Ctrl-C, without a word; the first process says it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
