"""Request classes and their service levels, and the tenants that share a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.core.checks import as_list, keep_number
from llmgym.core.errors import LLMGymError, shown, unknown

TARGETS = ("ttft_ms", "tpot_ms", "e2e_ms")
"""The targets of a service level, in milliseconds; None: no target."""

MOST_TENANTS = 64


@dataclass(frozen=True)
class RequestClass:
    """What policies, the core and the statistics know of requests that they treat the same.

    Of job types every stage is a class, delays included. Of a replay every tenant or every priority is
    one, or else all requests together.

    Args:
        name: of the job type, and of the stage where it has several; of the tenant or the replay.
        mean_prefill, mean_decode: m_p and m_d, mean tokens of a prompt (with the context that it
            inherits) and of an output.
        rate_per_s: mean arrivals per second, from outside and from earlier calls.
        job, stage: number of the job type (``job_names``), and of the stage within it.
        stream: number of the process of arrivals (``gap_samplers``) whose jobs it belongs to.
        priority: for policies that heed it; more is served first.
        ttft_ms, tpot_ms: targets of the time to first token, and of the mean time per output token
            after the first, in milliseconds; None: no target. A delay has none. The end-to-end
            target is one of the whole job.
        weight: what a request that meets its targets is worth.
        engine: name of the engine that serves it; None: the only one, or none at all (a delay).
        is_delay: whether it is a delay, which needs no engine.
        inherits: whether the prompt begins with the context of the calls before.
        hop: number of calls on the longest path from the start of the job to it, loops aside.
        children: numbers of the classes that come after it, loops aside.
    """

    name: str
    mean_prefill: float
    mean_decode: float
    rate_per_s: float
    job: int = 0
    stage: int = 0
    stream: int = 0
    priority: int = 0
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0
    engine: str | None = None
    is_delay: bool = False
    inherits: bool = False
    hop: int = 0
    children: tuple[int, ...] = ()

    @property
    def targets_ms(self) -> tuple[float | None, float | None]:
        """(TTFT, TPOT) targets in milliseconds, None where there is none."""
        return self.ttft_ms, self.tpot_ms

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a request, prompt and output."""
        return self.mean_prefill + self.mean_decode


def check_service_level(levels: Any) -> None:
    """Refuse targets (None: no target) or a weight that are not positive; keep them as plain numbers."""
    for name in TARGETS:
        if getattr(levels, name) is not None:
            keep_number(levels, name, above=0)
    keep_number(levels, "weight", above=0)


@dataclass(frozen=True)
class Tenant:
    """One of those who share a replay: a request class of its own.

    Args:
        name: as the requests give it.
        ttft_ms, tpot_ms: targets in milliseconds of the time to first token, and of the mean time per
            output token after the first; None: no target.
        weight: what a request that meets its targets is worth.
        priority: of its requests, for policies that heed it; more is served first.
        e2e_ms: target in milliseconds of the time from arrival to the last token; None: no target.
    """

    name: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0
    priority: int = 0
    e2e_ms: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise LLMGymError(f"The name of a tenant must be a string, got {shown(self.name)}.")
        check_service_level(self)
        keep_number(self, "priority", low=-(2**20), high=2**20, integer=True)


def check_tenants(tenants: Any) -> tuple[Tenant, ...]:
    """Tenants that a list gives, each once.

    Raises:
        LLMGymError: something that is not a Tenant, two of the same name, or more than 64 of them.
    """
    tenants = as_list("tenants", tenants, Tenant, "Tenant")
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

    Args:
        values: a name for each request.
        requests: how many there are.
        tenants: those that may be named; empty: any.

    Raises:
        LLMGymError: not one name for each request, one that is not among the ``tenants``, or more than
            64 different ones.
    """
    flat = isinstance(values, (list, tuple)) or (isinstance(values, np.ndarray) and values.ndim)
    names = list(values) if flat else []
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
    return np.array(names, dtype=object)  # one of strings would drop NULs at the end


def target_ticks(scenario: Any) -> np.ndarray:
    """The (TTFT, TPOT) targets of a scenario's classes in clock ticks (classes, 2), inf for none."""
    pairs = [one.targets_ms for one in scenario.classes]
    targets = [[np.inf if t is None else t for t in pair] for pair in pairs]
    # Rounded: 0.3 ms are 3 ticks of 0.1 ms, and not a little less.
    return np.round(np.array(targets, float) / scenario.tick_ms, 6)
