"""An explicit list of requests: when each arrives, and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import check_text, keep_number
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.arrivals import Arrivals, ListedArrivals
from llmgym.scenario.arrivals import Poisson as PoissonArrivals
from llmgym.scenario.engine import Engine
from llmgym.scenario.gap_samplers import GapSampler
from llmgym.scenario.job_types import JobTypes
from llmgym.scenario.lengths import Fixed
from llmgym.scenario.listed_requests import (
    ListedLengths,
    check_times,
    priority_column,
    time_column,
)
from llmgym.scenario.prefixes import Listed, PrefixSource, check_ids, known_tokens, no_prefix
from llmgym.scenario.request_class import (
    TARGETS,
    RequestClass,
    Tenant,
    check_service_level,
    check_tenants,
    tenant_column,
)
from llmgym.scenario.stage import Paired, Stage, check_pairs, token_column
from llmgym.scenario.workflow import Workflow
from llmgym.scenario.workload import Demand, JobType


@dataclass(frozen=True, eq=False)
class Replay(Demand):
    """An explicit list of requests: arrival times in seconds (not decreasing) and token counts.

    ``ttft_ms``, ``tpot_ms``, ``e2e_ms`` and ``weight`` are as those of a job type. Requests may form
    several classes:

    - ``priority``, one whole number for each request, is for policies that heed it; more is served
      first. The requests of each priority are a class.
    - ``tenant``, one name for each request. The requests of each tenant are a class; ``tenants`` lists
      their targets, weights and priorities (none listed: all have the replay's own).

    ``prefix_ids`` lists for each request what its prompt begins with, a number for every stretch of
    ``prefix_tokens`` tokens (the last may be shorter): requests whose lists begin the same way share those
    tokens, which engines with prefix caching compute once. A number stands for its stretch and all
    before it.
    """

    arrival_s: Sequence[float] | np.ndarray
    prefill_tokens: Sequence[int] | np.ndarray
    decode_tokens: Sequence[int] | np.ndarray
    name: str = "replay"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    priority: Sequence[int] | np.ndarray | None = None
    weight: float = 1.0
    tenant: Sequence[str] | np.ndarray | None = None
    tenants: tuple[Tenant, ...] = ()
    prefix_ids: Sequence[Sequence[int]] | np.ndarray | None = None
    prefix_tokens: int = 512
    e2e_ms: float | None = None
    kind: ClassVar[str] = "replay"

    def __post_init__(self) -> None:
        check_text("The name of a replay", self.name)
        keep_number(self, "prefix_tokens", low=1, high=2**20, integer=True)
        arrival = time_column(self.arrival_s)
        prefill = token_column("prefill_tokens", self.prefill_tokens)
        decode = token_column("decode_tokens", self.decode_tokens)
        if arrival.size != prefill.size:
            raise LLMGymError(
                f"arrival_s has {arrival.size} entries and prefill_tokens {prefill.size}."
            )
        check_pairs(prefill, decode)
        check_times(arrival)
        for name, column in (
            ("arrival_s", arrival),
            ("prefill_tokens", prefill),
            ("decode_tokens", decode),
        ):
            object.__setattr__(self, name, column)
        if self.priority is not None:
            column = priority_column(self.priority, arrival.size)
            object.__setattr__(self, "priority", column)
        if self.prefix_ids is not None:
            table = check_ids(self.prefix_ids, self.prefix_tokens, arrival.size)
            object.__setattr__(self, "prefix_ids", table)
        check_service_level(self)
        self._check_tenants()

    def _check_tenants(self) -> None:
        object.__setattr__(self, "tenants", check_tenants(self.tenants))
        if self.tenant is None:
            if self.tenants:
                raise LLMGymError(
                    "Tenants are listed, but tenant does not say which one each request is of."
                )
            return
        column = tenant_column(self.tenant, len(self), self.tenants)
        if self.priority is not None:
            raise LLMGymError(
                "priority and tenant both divide the requests into classes, which then overlap: "
                "give the priority of each tenant in tenants."
            )
        targets = (self.ttft_ms, self.tpot_ms, self.e2e_ms)
        own = targets != (None, None, None) or self.weight != Replay.weight
        if self.tenants and own:
            raise LLMGymError(
                "Targets or weights are given twice, by the replay and by its tenants: "
                "give them in tenants alone."
            )
        object.__setattr__(self, "tenant", column)

    @property
    def priorities(self) -> tuple[int, ...]:
        """The different priorities, the most urgent first."""
        return (0,) if self.priority is None else tuple(np.unique(self.priority)[::-1].tolist())

    @property
    def levels(self) -> tuple[Tenant, ...]:
        """What each class is promised: the tenants, or one for each priority, the most urgent first."""
        if self.tenants:
            return self.tenants
        own: Any = {name: getattr(self, name) for name in (*TARGETS, "weight")}
        if self.tenant is not None:
            return tuple(Tenant(name, **own) for name in np.unique(self.tenant).tolist())
        several = self.priorities
        names = [f"{self.name}, priority {p}" for p in several] if len(several) > 1 else [self.name]
        return tuple(
            Tenant(name, **own, priority=p) for name, p in zip(names, several, strict=True)
        )

    @cached_property
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes: one for each of ``levels``."""
        which, levels = self.request_class, self.levels
        requests = np.bincount(which, minlength=len(levels))
        columns = (self.prefill_tokens, self.decode_tokens)
        sums = [np.bincount(which, weights=column, minlength=len(levels)) for column in columns]
        means = np.transpose(sums / np.maximum(requests, 1)).tolist()  # a part may have none
        return tuple(
            RequestClass(
                name=level.name,
                mean_prefill=prefill,
                mean_decode=decode,
                rate_per_s=self.rate_per_s * (count / len(self)) if count else 0.0,
                job=k if self.tenant is not None else 0,
                priority=level.priority,
                ttft_ms=level.ttft_ms,
                tpot_ms=level.tpot_ms,
                weight=float(level.weight),
            )
            for k, (level, count, (prefill, decode)) in enumerate(
                zip(levels, requests.tolist(), means, strict=True)
            )
        )

    @property
    def job_names(self) -> tuple[str, ...]:
        """Names of the tenants, or of the replay."""
        several = self.tenant is not None
        return tuple(level.name for level in self.levels) if several else (self.name,)

    @property
    def job_targets_ms(self) -> tuple[float | None, ...]:
        several = self.tenant is not None
        return tuple(level.e2e_ms for level in self.levels) if several else (self.e2e_ms,)

    @property
    def request_class(self) -> np.ndarray:
        """The class of each request: its number in ``classes``, int32."""
        if self.tenant is not None:
            number = {level.name: k for k, level in enumerate(self.levels)}
            names, which = np.unique(self.tenant, return_inverse=True)
            return np.array([number[name] for name in names.tolist()], np.int32)[which]
        if self.priority is None:
            return np.zeros(len(self), np.int32)
        order = np.searchsorted(-np.array(self.priorities), -np.asarray(self.priority))
        return order.astype(np.int32)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def arrivals(self) -> ListedArrivals:
        """The times of arrival as a process."""
        return ListedArrivals(np.asarray(self.arrival_s))

    @property
    def rate_per_s(self) -> float:
        """Requests per second over the span of the list; infinite where they all come at once."""
        return self.arrivals.rate_per_s

    def at_rate(self, rate_per_s: float) -> Replay:
        """The same requests with time stretched to a mean of ``rate_per_s``."""
        return replace(self, arrival_s=self.arrivals.at_rate(rate_per_s).arrival_s)

    def first(self, count: int) -> Replay:
        """The first ``count`` requests, or all of them if there are fewer."""
        count = check_number("count", count, low=1, integer=True)
        return self._part(slice(count))

    def window(self, start_s: float, end_s: float) -> Replay:
        """The requests that arrive in [start_s, end_s), with times counted from ``start_s``.

        Raises:
            LLMGymError: bounds that are not numbers or are out of order, or a window without arrivals.
        """
        start_s = check_number("start_s", start_s, low=0)
        end_s = check_number("end_s", end_s, above=start_s)
        arrival = np.asarray(self.arrival_s)
        inside = slice(*np.searchsorted(arrival, [start_s, end_s]))
        if not arrival[inside].size:
            raise LLMGymError(
                f"No request arrives between {start_s:g} and {end_s:g} s; the replay runs from "
                f"{arrival[0]:g} to {arrival[-1]:g} s."
            )
        return replace(self._part(inside), arrival_s=arrival[inside] - start_s)

    def _part(self, rows: slice) -> Replay:
        columns = ["arrival_s", "prefill_tokens", "decode_tokens"]
        names = ("priority", "tenant", "prefix_ids")
        columns += [name for name in names if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    @property
    def mean_prefill(self) -> float:
        """Mean prompt length in tokens."""
        return float(np.mean(self.prefill_tokens))

    @property
    def mean_decode(self) -> float:
        """Mean output length in tokens."""
        return float(np.mean(self.decode_tokens))

    @property
    def end_s(self) -> float:
        return float(self.arrival_s[-1])

    def longest_prompt(self, engine: str) -> float:
        return float(np.max(self.prefill_tokens))

    def listed_tokens(self) -> np.ndarray:
        return np.add(self.prefill_tokens, self.decode_tokens)

    @cached_property
    def _stage(self) -> Stage:
        return Stage(paired=Paired(self.prefill_tokens, self.decode_tokens), name="request")

    def jobs(self, engine: str) -> tuple[JobType, ...]:
        return (JobType(self.arrivals, (replace(self._stage, engine=engine),), self.name),)

    @property
    def workflows(self) -> tuple[Workflow, ...]:
        return (ONE_CALL,)

    def gap_samplers(self, ticks_per_s: float) -> tuple[GapSampler, ...]:
        """Device form of the arrival times. Raises LLMGymError on a gap the clock cannot hold."""
        return (self.arrivals.sampler(ticks_per_s),)

    def length_samplers(self) -> tuple[ListedLengths]:
        """Device form of the token counts."""
        listed = jnp.asarray(self.prefill_tokens), jnp.asarray(self.decode_tokens)
        if len(self.levels) == 1:
            return (ListedLengths(*listed),)
        return (ListedLengths(*listed, jnp.asarray(self.request_class)),)

    @property
    def length_of(self) -> tuple[int, ...]:
        return (0,) * len(self.levels)

    def prefix_sources(self, block_size: int) -> tuple[PrefixSource]:
        if self.prefix_ids is None:
            return (PrefixSource(no_prefix(), 0),)
        if self.prefix_tokens % block_size:
            raise LLMGymError(
                f"prefix_tokens = {self.prefix_tokens} is not a multiple of block_size {block_size}: "
                f"choose a block_size that divides {self.prefix_tokens}."
            )
        count = (int(np.max(self.prefix_ids)) + 1) * (self.prefix_tokens // block_size)
        return (PrefixSource(Listed(jnp.asarray(self.prefix_ids), self.prefix_tokens), count),)

    def gap_sampler(self, ticks_per_s: float) -> GapSampler:
        """The only one of ``gap_samplers``."""
        return self.gap_samplers(ticks_per_s)[0]

    def length_sampler(self) -> ListedLengths:
        """The only one of ``length_samplers``."""
        return self.length_samplers()[0]

    def prefix_sampler(self, block_size: int) -> Any:
        """The only one of ``prefix_sources``."""
        return self.prefix_sources(block_size)[0].drawn

    def check(self, engines: Sequence[Engine]) -> None:
        if len(engines) != 1:
            raise LLMGymError("A replay is served by one engine or one group of replicas.")

    def unshared(self, block_size: int) -> Replay:
        if self.prefix_ids is None:
            return self
        prompts, ids = np.asarray(self.prefill_tokens), np.asarray(self.prefix_ids)
        left = prompts - known_tokens(ids, self.prefix_tokens, prompts, block_size)
        return replace(self, prefill_tokens=left, prefix_ids=None)

    def calls_at(self, engine: str, classes: Sequence[int], share: float) -> Replay:
        return self

    def endless(self, engine: str) -> JobTypes:
        """Poisson streams that stand for it: of each class its rate and its lengths, drawn in pairs."""
        which, found = self.request_class, []
        for k, level in enumerate(self.levels):
            columns = (self.prefill_tokens, self.decode_tokens)
            prefill, decode = (np.asarray(column)[which == k] for column in columns)
            if not prefill.size:
                continue
            lengths = Paired(prefill, decode)
            stage = Stage(paired=lengths, engine=engine, priority=level.priority)
            arrivals = PoissonArrivals(self.rate_per_s * (prefill.size / len(self)))
            targets: Any = {name: getattr(level, name) for name in TARGETS}
            found.append(JobType(arrivals, (stage,), level.name, weight=level.weight, **targets))
        return JobTypes(found)

    def with_lengths(self, prefill: Any, decode: Any) -> Replay:
        raise LLMGymError(
            "A replay carries its own token counts; prefill_tokens and decode_tokens do not apply."
        )

    def with_targets(self, targets: Mapping[str, float | None]) -> Replay:
        changes: dict[str, Any] = dict(targets)
        if not self.tenants:
            return replace(self, **changes)
        return replace(self, tenants=tuple(replace(one, **changes) for one in self.tenants))

    def with_arrivals(self, arrivals: Arrivals) -> Replay:
        raise LLMGymError("arrivals can be overridden where there is exactly one job type.")


ONE_CALL = JobType(PoissonArrivals(1.0), (Stage(Fixed(1), Fixed(1)),)).workflow
"""How the calls of a job follow one another where there is only one."""
