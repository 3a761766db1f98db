"""What a study is: measurements that a folder keeps, and the page that is written from them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llmgym.core.errors import LLMGymError
from llmgym.core.files import to_json, write
from llmgym.core.folders import alone_in
from llmgym.core.reading import read_json

Progress = Callable[[int, int, str], None]
"""Called with how many measurements are done, how many there are, and which comes next."""


class Study(Protocol):
    """A published page that one command repeats.

    Attributes:
        name: of the study, and of its folder in docs/results.
        title: what it is about.
        policy: the learned policy that it judges by default; a file of another one may take its place.
    """

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    @property
    def policy(self) -> str: ...

    def measure(self, out: Path, policy: str, progress: Progress) -> None:
        """Measure what the folder does not hold yet.

        Args:
            out: the folder, made where it does not exist.
            policy: name or file of the learned policy.
            progress: told before each measurement, and at the end.
        """

    def pages(self, out: Path, policy: str) -> dict[str, str]:
        """The files that are written from the measurements, README.md among them."""


@dataclass(frozen=True)
class Row:
    """A measurement: a name in a JSON file of the folder, and what makes its numbers."""

    file: str
    name: str
    make: Callable[[], dict[str, Any]]


def measure(rows: Sequence[Row], out: Path, progress: Progress) -> None:
    """Make the rows that their files do not hold yet, one after the other.

    Args:
        rows: in the order in which they are made.
        out: the folder of their files.
        progress: told before each row, and at the end.

    Raises LLMGymError where a file is damaged or cannot be written, or another process writes there.
    """
    with alone_in(out):
        for n, row in enumerate(rows):
            progress(n, len(rows), f"{row.file}: {row.name}")
            path = out / row.file
            kept = read(path)
            if row.name not in kept:
                began = time.perf_counter()
                made = row.make()
                kept[row.name] = made | {"took_s": round(time.perf_counter() - began, 1)}
                write(path, to_json(kept))
    progress(len(rows), len(rows), "done")


def read(path: Path) -> dict[str, Any]:
    """The rows of a file; none where there is no file. Raises LLMGymError where it is damaged."""
    if not os.path.exists(path):
        return {}
    found = read_json(path, "a file of measurements", "Delete it: its rows are measured again.")
    if not all(isinstance(row, dict) for row in found.values()):
        raise LLMGymError(f"{path} is damaged. Delete it: its rows are measured again.")
    return found
