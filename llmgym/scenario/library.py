"""The scenarios that ship with llmgym, and any other by its file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

from llmgym.core.errors import LLMGymError, shown, unknown
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.toml_reader import load, loads


def _shipped() -> dict[str, Any]:
    files = (resources.files("llmgym") / "scenario" / "data").iterdir()
    return {file.name[:-5]: file for file in files if file.name.endswith(".toml")}


def names() -> list[str]:
    """Names of the scenarios that ship with llmgym."""
    return sorted(_shipped())


def scenario(name_or_path: str | Path, **overrides: Any) -> Scenario:
    """A shipped scenario by name, or one from a TOML file, with settings changed.

    Args:
        name_or_path: a name in ``names()``, or the path of a ``.toml`` file.
        overrides: settings for ``Scenario.override``, such as token_budget or slots.

    Raises:
        LLMGymError: an unknown name (with the nearest match) or setting; see ``load`` for files.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise LLMGymError(f"A scenario is named by a string or a path, got {shown(name_or_path)}.")
    name, shipped = str(name_or_path), _shipped()
    if name in shipped:
        found = loads(shipped[name].read_text(encoding="utf-8"), source=str(shipped[name]))
    elif name.endswith(".toml"):
        found = load(name)
    else:
        raise unknown("scenario", name, shipped)
    return found.override(**overrides) if overrides else found


def as_scenario(given: Scenario | str) -> Scenario:
    """The scenario itself, or the one that a name or a TOML path stands for."""
    if isinstance(given, Scenario):
        return given
    return scenario(given)
