"""The ``config.json`` of a result folder: everything that its numbers depend on, checked as it is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmgym.core.checks import check_path
from llmgym.core.errors import LLMGymError, shown
from llmgym.core.reading import read_json
from llmgym.scenario import toml_reader
from llmgym.scenario.scenario import Scenario


def read_config(path: Path) -> dict[str, Any]:
    """What a result folder's ``config.json`` holds; ``path`` is the folder or the file itself.

    Raises LLMGymError where it cannot be read or is not JSON.
    """
    path = check_path("path", path)
    path = path / "config.json" if os.path.isdir(path) else path
    return read_json(path, "the configuration of a run")


def check_different(what: str, numbers: tuple[float, ...]) -> None:
    """Refuse numbers that differ beyond the six digits by which files are named."""
    named: dict[str, float] = {}
    for number in numbers:
        other = named.setdefault(f"{number:g}", number)
        if other != number:
            raise LLMGymError(
                f"The {what} {other!r} and {number!r} are the same to six digits; leave one of them out."
            )


class Settings:
    """The ``config.json`` of a result folder, each entry checked as it is asked for."""

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what, self.config = path, what, read_config(path)

    def one(self, name: str, kind: type) -> Any:
        """An entry that is of a type; a float may be whole."""
        return self._checked(name, self.config.get(name), kind)

    def several(self, name: str, kind: type) -> tuple[Any, ...]:
        """The entries of a list."""
        return tuple(self._checked(name, x, kind) for x in self.one(name, list))

    def scenario(self) -> Scenario:
        """The scenario."""
        return toml_reader.loads(self.one("scenario", str), source=str(self.path))

    def _checked(self, name: str, value: Any, kind: type) -> Any:
        known = (int, float) if kind is float else kind
        if not isinstance(value, known) or isinstance(value, bool):
            raise LLMGymError(
                f"{self.path} is not the configuration of {self.what}: {name} is {shown(value)}."
            )
        return value
