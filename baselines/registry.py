"""The baselines by name: the package fills ``POLICIES``, ``make`` gives one with its settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from llmgym.baselines.policy import Policy
from llmgym.core.checks import check_name
from llmgym.core.errors import LLMGymError, shown

POLICIES: dict[str, type[Policy]] = {}
"""Every baseline, the paper's four first."""


def names() -> tuple[str, ...]:
    """Names of all baselines, the paper's four first."""
    return tuple(POLICIES)


def make(name: str, /, **settings: Any) -> Policy:
    """The baseline ``name`` with the given settings (fields of its class, such as token_budget).

    Raises LLMGymError for an unknown name or setting, with the nearest match.
    """
    check_name("policy", name, POLICIES)
    policy = POLICIES[name]
    known = [field.name for field in fields(policy)]  # not what all of its class share
    for setting in settings:
        check_name(f"setting of policy {name!r}:", setting, known)
    try:
        return policy(**settings)
    except LLMGymError:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # a value of another kind altogether
        given = ", ".join(f"{key} = {shown(value)}" for key, value in settings.items())
        raise LLMGymError(f"Policy {name!r} cannot have {given}: {error}.") from error
