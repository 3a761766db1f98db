"""Service levels: what a class of requests is promised, and the tenants that share a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.core.errors import LLMGymError, check_number, unknown

MOST_TENANTS = 64


def check_service_level(levels: Any) -> None:
    """Refuse ttft_ms, tpot_ms (None: no target) or weight that are no positive numbers."""
    for name in ("ttft_ms", "tpot_ms"):
        if getattr(levels, name) is not None:
            check_number(name, getattr(levels, name), above=0)
    check_number("weight", levels.weight, above=0)


@dataclass(frozen=True)
class Tenant:
    """One of those who share a replay: a request class of its own.

    Args:
        name: as the requests give it.
        ttft_ms, tpot_ms: targets in milliseconds of the time to first token, and of the mean time per
            output token after the first; None: no target.
        weight: what a request that meets its targets is worth.
        priority: of its requests, for policies that heed it; more is served first.
    """

    name: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0
    priority: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise LLMGymError(f"The name of a tenant must be a string, got {self.name!r}.")
        check_service_level(self)
        check_number("priority", self.priority, low=-(2**20), high=2**20, integer=True)


def check_tenants(tenants: Any) -> tuple[Tenant, ...]:
    """Tenants that a list gives, each once.

    Raises:
        LLMGymError: what is no tenant, two of one name, or more than 64 of them.
    """
    tenants = tuple(tenants)
    if not all(isinstance(tenant, Tenant) for tenant in tenants):
        raise LLMGymError(f"tenants must be a list of Tenant, got {tenants!r:.200}.")
    names = [tenant.name for tenant in tenants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LLMGymError(
            f"Tenant {twice[0]!r} is listed twice: its targets overlap. Give each tenant once."
        )
    if len(tenants) > MOST_TENANTS:
        raise LLMGymError(f"A replay has at most {MOST_TENANTS} tenants, got {len(tenants)}.")
    return tenants


def tenant_column(
    values: Sequence[str] | np.ndarray, requests: int, tenants: tuple[Tenant, ...]
) -> np.ndarray:
    """The tenant of each request by name, as an array of objects (requests,).

    Raises:
        LLMGymError: not one name for each request, or one that is not among the ``tenants`` (if any are
            listed).
    """
    names = list(values)
    if len(names) != requests or not all(isinstance(name, str) and name for name in names):
        raise LLMGymError(
            f"tenant must be a list of names, one for each of the {requests} requests."
        )
    found = sorted({str(name) for name in names})
    known = [tenant.name for tenant in tenants]
    for name in found if known else ():
        if name not in known:
            raise unknown("tenant", name, known)
    if len(found) > MOST_TENANTS:
        raise LLMGymError(f"A replay has at most {MOST_TENANTS} tenants, got {len(found)}.")
    return np.array(names, dtype=object)  # that of strings would cut a name at the end


def target_ticks(scenario: Any) -> np.ndarray:
    """The (TTFT, TPOT) targets of a scenario's classes in clock ticks (classes, 2), inf for none."""
    targets = [[np.inf if t is None else t for t in pair] for pair in scenario.targets_ms]
    # Rounded: 0.3 ms are 3 ticks of 0.1 ms, and not a little less.
    return np.round(np.array(targets, float) / scenario.tick_ms, 6)
