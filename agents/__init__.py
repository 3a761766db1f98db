"""Learned policies: ``load(name)`` gives a trained one, ``names()`` lists those that ship."""

from __future__ import annotations

from llmgym.baselines.policy import Policy
from llmgym.errors import unknown


def names() -> tuple[str, ...]:
    """Names of the trained policies that ship with llmgym."""
    return ()


def load(name: str) -> Policy:
    """The trained policy ``name``. Raises LLMGymError for an unknown one."""
    raise unknown("trained policy", name, names())
