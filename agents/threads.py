"""Long work side by side in threads, which all come to an end soon after the caller is stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from llmgym.core.precision import in_32_bits

X = TypeVar("X")
Y = TypeVar("Y")


def in_threads(work: Callable[[X, Event], Y], parts: Sequence[X], threads: int) -> list[Y]:
    """What ``work`` makes of each part, in their order. Where it fails for one, the others still end.

    Args:
        work: called with a part and an event, which is set once the caller is stopped (Ctrl-C): then it
            should keep what it has and return. Nobody gets what it returns after that.
        parts: what there is to do.
        threads: how many work at a time.
    """
    stop = Event()
    narrow = in_32_bits(work)  # threads do not know what was set in this one
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(narrow, part, stop) for part in parts]
        try:
            wait(waiting)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in waiting]
