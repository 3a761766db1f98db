"""Kills at the moment at which a file is written: at its middle, before it is in its place, and after.

A killed process does nothing more, so what would tidy up in this one is held back. Each kind of kill
comes once for every file that is written anew, in a chain of runs that each resume the last one.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class KilledError(BaseException):
    """Ends a run as a kill does: nothing catches it."""


KINDS = ("middle", "before", "full", "after")
"""The last lets the file be written, so that the next run gets as far as the next file. "full" is no kill:
the disk is full."""


class Killer:
    """Stands in for the functions of ``os`` with which ``llmgym.core.files.write`` ends."""

    def __init__(self) -> None:
        self.kinds = itertools.cycle(KINDS)
        self.armed = False
        self.dead = False
        self.kills = 0
        self.replace, self.unlink = os.replace, os.unlink

    def instead_of_replace(self, source: str, target: str | Path) -> None:
        if not self.armed or self._same(source, target):
            return self.replace(source, target)
        self.armed, kind = False, next(self.kinds)
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.kills += 1
        if kind == "middle":
            os.truncate(source, os.path.getsize(source) // 2)
        if kind == "after":
            self.replace(source, target)
        self.dead = True
        raise KilledError

    def instead_of_unlink(self, path: str) -> None:
        if not self.dead:
            self.unlink(path)

    @staticmethod
    def _same(source: str, target: str | Path) -> bool:
        return os.path.exists(target) and Path(source).read_bytes() == Path(target).read_bytes()

    def die(self, call: Callable[[], object]) -> bool:
        """Run something that may be killed at its next new file; whether it came to its end."""
        self.armed, self.dead = True, False
        with suppress(KilledError):
            call()
        ended, self.armed, self.dead = self.armed, False, False
        return ended


@contextmanager
def killer() -> Iterator[Killer]:
    """A Killer that is in the place of the functions of ``os``."""
    found = Killer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", found.instead_of_replace)
        patch.setattr(os, "unlink", found.instead_of_unlink)
        yield found


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones as well."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
