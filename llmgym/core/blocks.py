"""Blocks of environments: as many as a core's cache holds, for as many threads as there are cores."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

COMPILER_OPTIONS = {
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_copy_insertion_use_region_analysis": True,
}
"""Options of XLA that make a step about 20 % faster on a CPU; they change no result."""


def compiled(lowered: Any, options: dict[str, Any] | None = None) -> Any:
    """The program that ``jit(...).lower`` gave, compiled with options of XLA where it knows them.

    ``options``: None for COMPILER_OPTIONS.
    """
    chosen = COMPILER_OPTIONS if options is None else options
    try:
        return lowered.compile(compiler_options=chosen)
    except jax.errors.JaxRuntimeError:  # they come and go with its versions
        return lowered.compile()


def block_sizes(num_envs: int, slots: int, threads: int, block: int | None = None) -> list[int]:
    """Environments of each block: sizes differ by at most one, and the blocks divide among the threads.

    If there are fewer environments than that many blocks, each is a block of its own.

    Args:
        num_envs: environments in all.
        slots: rows of an environment's tables, over all its engines.
        threads: that run blocks.
        block: most environments of a block; None: as many as a core's cache holds.
    """
    # 2**16 rows are 2.4 MB of table. Above 128 environments a scan's fixed costs no longer show.
    most = block or max(min(128, 2**16 // slots), 16)
    blocks = min(-(-num_envs // (most * threads)) * threads, num_envs)
    return [part.size for part in np.array_split(np.arange(num_envs), blocks)]


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Crew:
    """Threads that share out the blocks of a step with the thread that asks for it.

    They wait between the steps: starting threads, or a pool's futures, would take as long as a block.

    Args:
        threads: that work on the blocks, the asking one among them.
    """

    def __init__(self, threads: int) -> None:
        self._posts: SimpleQueue[Any] = SimpleQueue()
        self._helpers = threads - 1
        for _ in range(self._helpers):
            threading.Thread(target=_help, args=(self._posts,), daemon=True).start()

    def run(self, work: Callable[[int], None], count: int) -> None:
        """Call ``work`` with 0 to ``count`` - 1, each once, in no order. Raises what a call raised."""
        numbers, done = itertools.count(), SimpleQueue[Any]()
        for _ in range(min(self._helpers, count - 1)):
            self._posts.put((work, numbers, count, done))
        _work_off(work, numbers, count, done)
        for error in [done.get() for _ in range(count)]:
            if error is not None:
                raise error

    def close(self) -> None:
        """Let the threads end."""
        for _ in range(self._helpers):
            self._posts.put(None)


def _work_off(
    work: Callable[[int], None], numbers: Any, count: int, done: SimpleQueue[Any]
) -> None:
    """Take one number after the other while there are any, and report each."""
    while (
        number := next(numbers)
    ) < count:  # one step of the interpreter: no two threads get the same
        try:
            work(number)
            done.put(None)
        except BaseException as error:
            done.put(error)


def _help(posts: SimpleQueue[Any]) -> None:
    while (post := posts.get()) is not None:
        _work_off(*post)
        del post  # or it would keep the states of environments that are gone
