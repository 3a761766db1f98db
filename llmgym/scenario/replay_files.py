"""How a scenario file reads the trace that its replay names: ``llmgym.traces`` registers its reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llmgym.core.errors import LLMGymError
from llmgym.scenario.replay import Replay

Reader = Callable[[Path, str | None, int | None], Replay]
"""From a path, the name of a format (None: recognise it) and the most rows (None: all) to a replay."""

_READERS: list[Reader] = []


def register_reader(reader: Reader) -> None:
    """Let scenario files read traces with ``reader``, from now on."""
    _READERS[:] = [reader]


def read_replay(path: Path, format: str | None = None, limit: int | None = None) -> Replay:
    """The requests in a trace file.

    Args:
        path: the file.
        format: name of its format, one that the reader knows; None: recognised.
        limit: read only the first ``limit`` rows; None: all.

    Raises:
        LLMGymError: no reader is registered, or it refuses the file.
    """
    if not _READERS:
        raise LLMGymError(f"Cannot read {path}: no reader of traces is registered; import llmgym.")
    return _READERS[0](path, format, limit)
