"""Measurements in processes of their own, which end with the process that asked for them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from llmgym.core.errors import LLMGymError


def in_processes(measures: Sequence[Callable[[], Any]], jobs: int) -> Iterator[tuple[int, Any]]:
    """The number and the result of each measurement, as they end.

    Where one fails, the results of those that have ended come first; then, and where the caller is stopped,
    the others are stopped at once.

    Args:
        measures: functions that can be pickled.
        jobs: how many run at a time.

    Raises LLMGymError where a process is killed, as a machine does that runs out of memory.
    """
    before = set(active_children())
    # A forked process would hang: the threads of XLA are not in it.
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin)
    try:
        with _signals_held():
            waiting = {pool.submit(measure): n for n, measure in enumerate(measures)}
        yield from _ended(waiting)
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


def _ended(waiting: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    """Numbers and results in the order in which they end; an error only after every result there is."""
    for future in as_completed(list(waiting)):
        if future.exception() is not None:
            break
        yield waiting.pop(future), future.result()
    for future, number in waiting.items():
        if future.done() and future.exception() is None:
            yield number, future.result()
    for future in waiting:
        if future.done():
            future.result()  # raises


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C waits while processes start: one that is still importing would print a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _begin() -> None:
    """In a new process: end on Ctrl-C without a word, and with the first process if that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the end of the first process; without this one that was killed would leave others behind."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
