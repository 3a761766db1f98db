"""The baselines by name: the package fills ``POLICIES``, ``make`` gives one with its settings."""

from __future__ import annotations

from typing import Any

from llmgym.baselines.policy import Policy
from llmgym.core.errors import LLMGymError, unknown

POLICIES: dict[str, type[Policy]] = {}
"""Every baseline, the paper's four first."""


def names() -> tuple[str, ...]:
    """Names of all baselines, the paper's four first."""
    return tuple(POLICIES)


def make(name: str, **settings: Any) -> Policy:
    """The baseline ``name`` with the given settings (fields of its class, such as token_budget).

    Raises LLMGymError for an unknown name or setting, with the nearest match.
    """
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    policy = POLICIES[name]
    for setting in settings:
        if setting not in policy.__dataclass_fields__:
            raise unknown(f"setting of policy {name!r}:", setting, policy.__dataclass_fields__)
    try:
        return policy(**settings)
    except TypeError as error:
        raise LLMGymError(f"Policy {name!r}: {error}.") from error
