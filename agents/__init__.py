"""Learned policies: ``load(name)`` gives a trained one, ``names()`` lists those that ship."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from llmgym.agents.checkpoint import MOST_OF_AN_AGENT, load_agent
from llmgym.baselines.policy import Policy
from llmgym.core.checks import check_name
from llmgym.core.reading import digest
from llmgym.evaluation.policies import register_trained

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def names() -> tuple[str, ...]:
    """Names of the trained policies that ship with llmgym."""
    return tuple(sorted(path.stem for path in CHECKPOINTS.glob("*.npz")))


def load(name: str | Path) -> Policy:
    """The trained policy ``name``, or that of a checkpoint file (a path that ends in .npz).

    Raises LLMGymError for an unknown name, with the nearest match, or a file that holds no policy.
    """
    if isinstance(name, os.PathLike) or is_path(name):
        return _read(*_version(Path(name)), None)
    check_name("trained policy", name, names())
    return _read(*_version(CHECKPOINTS / f"{name}.npz"), str(name))


def is_path(name: str | Path) -> bool:
    """Whether this names the file of a checkpoint."""
    return isinstance(name, Path) or (isinstance(name, str) and name.endswith(".npz"))


def _version(path: Path) -> tuple[Path, str]:
    """The file, and a digest of what it holds now: one that has changed is read again."""
    return Path(os.path.abspath(path)), digest(
        path, "checkpoint", MOST_OF_AN_AGENT
    ) if os.path.exists(path) else ""


@lru_cache(maxsize=64)
def _read(path: Path, version: str, label: str | None) -> Policy:
    return load_agent(path, label)


register_trained(names, load)
