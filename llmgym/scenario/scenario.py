"""A scenario: the engines, what arrives, and the size of the simulation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from llmgym.core.checks import as_list, check_flag, check_name, check_text, keep_list, keep_number
from llmgym.core.errors import LLMGymError, answers_other_names, check_number, shown, unknown
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.clock_limits import check_clock
from llmgym.scenario.engine import ROUTERS, Engine
from llmgym.scenario.job_types import JobTypes
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.request_class import RequestClass
from llmgym.scenario.toml_tables import load_batch_time
from llmgym.scenario.workload import WORKLOAD_SETTINGS, Demand, JobType

MOST_WEIGHT = 1024
"""Largest weight of a prompt token or an output token as service to a request class."""


@answers_other_names
@dataclass(frozen=True)
class Scenario:
    """One engine or more, the workload, and the limits of the simulation.

    Args:
        engines: the engines; one for ``llmgym/Engine-v0``.
        workload: a tuple of job types, or one Replay.
        slots: most requests in an engine, or most jobs in a network of engines; arrivals that find them
            taken are dropped and counted.
        router: how calls choose among replicas of an engine: a name in ROUTERS.
        tick_ms: clock resolution. 0.01 ms makes every published constant a whole number of ticks.
        lengths_known: whether policies see the remaining output tokens (hidden by default).
        name, description, source: what it is called, what it shows, where it comes from.
        service_weights: (w_p, w_q), what a prompt token and an output token count as service to a
            request class, where fairness among them matters; None: no counters are kept. (1, 2) in
            arXiv:2401.00588. Whole numbers; every engine of a network counts for itself.
    """

    engines: tuple[Engine, ...]
    workload: tuple[JobType, ...] | Demand
    slots: int = 256
    tick_ms: float = 0.01
    lengths_known: bool = False
    router: str = "fewest_tokens"
    name: str = "custom"
    description: str = ""
    source: str = ""
    service_weights: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        keep_list(self, "engines", Engine, "engines")
        if not isinstance(self.workload, Demand) or isinstance(self.workload, JobTypes):
            object.__setattr__(self, "workload", JobTypes.of(self.workload))
        keep_number(self, "slots", low=1, high=2**15, integer=True)
        keep_number(self, "tick_ms", above=0, high=1000)
        check_number("tick_ms", self.tick_ms, low=1e-9)
        for name in ("name", "description", "source"):
            check_text(name, getattr(self, name))
        object.__setattr__(self, "lengths_known", check_flag("lengths_known", self.lengths_known))
        self._check_engines()
        self._check_service_weights()
        slots = None if self.is_network else self.slots
        check_clock(self.engines, self.jobs, self.tick_ms, slots)

    def _check_service_weights(self) -> None:
        if self.service_weights is None:
            return
        weights = as_list("service_weights", self.service_weights, what="two numbers")
        if len(weights) != 2:
            raise LLMGymError(
                "service_weights are two numbers, of a prompt and of an output token, got "
                f"{shown(weights)}."
            )
        limits: Any = {"low": 0, "high": MOST_WEIGHT, "integer": True}
        checked = tuple(
            check_number(f"service_weights: {name}", weight, **limits)
            for name, weight in zip(("w_p", "w_q"), weights, strict=True)
        )
        object.__setattr__(self, "service_weights", checked)
        if not any(checked):
            raise LLMGymError("service_weights must not both be 0.")

    def _check_engines(self) -> None:
        if not self.engines:
            raise LLMGymError("engines must be one Engine or more, got none.")
        known = [engine.name for engine in self.engines]
        if len(set(known)) < len(known):
            raise LLMGymError(f"Engines need different names, got {known}.")
        if len(set(self.engine_names)) < len(self.engine_names):
            raise LLMGymError(
                f"Engines need different names, replicas numbered too, got {list(self.engine_names)}."
            )
        limits = {e.seq_limit for e in self.engines if e.max_num_seqs is not None}
        if len(limits) > 1:
            raise LLMGymError("Engines with max_num_seqs must use the same seq_limit.")
        if len({e.first_token for e in self.engines}) > 1:
            raise LLMGymError("All engines must use the same first_token.")
        if len({e.kv_cache.block_size for e in self.engines if e.kv_cache is not None}) > 1:
            raise LLMGymError("All KV caches must have the same block_size.")
        check_name("router", self.router, ROUTERS)
        self.demand.check(self.engines)

    @property
    def demand(self) -> Demand:
        """The workload, as the interface that all kinds of workload share."""
        assert isinstance(self.workload, Demand)
        return self.workload

    @property
    def is_network(self) -> bool:
        """Whether it has more than one engine, or jobs of more than one call."""
        several = len(self.engines) > 1 or self.engine.replicas > 1
        return several or not self.demand.single_calls

    @classmethod
    @answers_other_names
    def single_engine(
        cls,
        batch_time: BatchTime,
        token_budget: int,
        workload: JobType | tuple[JobType, ...] | Demand,
        max_num_seqs: int | None = None,
        seq_limit: str = "batch",
        kv_cache: KVCache | None = None,
        first_token: str = "decode",
        **fields: Any,
    ) -> Scenario:
        """One engine and its workload.

        Args:
            batch_time, token_budget, max_num_seqs, seq_limit, kv_cache, first_token: as in ``Engine``.
            workload: a job type, a tuple of them, or a Replay.
            fields: those of Scenario (slots, tick_ms, ...).

        Raises:
            LLMGymError: a value out of range, or values that do not fit together.
        """
        engine = Engine(
            batch_time,
            token_budget,
            max_num_seqs,
            seq_limit,
            kv_cache=kv_cache,
            first_token=first_token,
        )
        return cls((engine,), workload, **fields)  # type: ignore[arg-type]

    @property
    def engine(self) -> Engine:
        """The engine of a single-engine scenario; the first of a network."""
        return self.engines[0]

    @property
    def engine_names(self) -> tuple[str, ...]:
        """Names of the engines, replicas of a group numbered from 1."""
        names: list[str] = []
        for engine in self.engines:
            several = [f"{engine.name}-{n + 1}" for n in range(engine.replicas)]
            names += [engine.name] if engine.replicas == 1 else several
        return tuple(names)

    @property
    def job_names(self) -> tuple[str, ...]:
        """Names of the job types, or of a replay's tenants, or of the replay."""
        return self.demand.job_names

    @property
    def job_types(self) -> tuple[JobType, ...]:
        """The job types; empty for a replay."""
        return self.demand.job_types

    @property
    def jobs(self) -> tuple[JobType, ...]:
        """What arrives as job types: those of the workload, or one that stands for a replay."""
        return self.demand.jobs(self.engine.name)

    @property
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes that an agent tells apart, delays included."""
        return self.demand.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the request classes."""
        return tuple(one.name for one in self.classes)

    @property
    def has_targets(self) -> bool:
        """Whether any class has a target."""
        return self.demand.has_targets

    @property
    def arrival_rate_per_s(self) -> float:
        """Jobs per second over all that arrive, lambda."""
        return self.demand.rate_per_s

    @property
    def mean_prefill(self) -> float:
        """Mean prompt tokens of a job over all arrivals, m_p."""
        return self.demand.mean_prefill

    @property
    def mean_decode(self) -> float:
        """Mean output tokens of a job over all arrivals, m_d."""
        return self.demand.mean_decode

    def longest_prompt(self, engine: Engine) -> float:
        """Largest prompt that can arrive at an engine, in tokens (infinite where there is no bound)."""
        return self.demand.longest_prompt(engine.name)

    def at_rate(self, rate_per_s: float) -> Scenario:
        """The same scenario with all arrivals sped up or slowed down to ``rate_per_s`` in total."""
        rate = check_number("arrival_rate_per_s", rate_per_s, above=0)
        return replace(self, workload=self.demand.at_rate(rate))

    def override(self, **changes: Any) -> Scenario:
        """A copy with changed settings.

        Every engine: batch_time (also a name in ``batch_time_library``, or a TOML file that holds one),
        token_budget, max_num_seqs, seq_limit, replicas, kv_cache, first_token. Workload:
        arrival_rate_per_s, arrivals, prefill_tokens and decode_tokens (a length distribution or a whole
        number; for every call), ttft_ms, tpot_ms and e2e_ms (targets of every class or job; None: no
        target), workload. Any other field of Scenario itself but engines, such as slots or tick_ms.

        Raises:
            LLMGymError: an unknown setting (with the nearest match), or a value that does not fit.
        """
        known = {*ENGINE_SETTINGS, "arrival_rate_per_s", *WORKLOAD_SETTINGS, *SCENARIO_SETTINGS}
        for name in changes:
            if name not in known:
                raise unknown("scenario setting", name, known)
        settings = {k: changes[k] for k in ENGINE_SETTINGS if k in changes}
        if isinstance(settings.get("batch_time"), (str, os.PathLike)):
            settings["batch_time"] = load_batch_time(settings["batch_time"])
        engines = tuple(replace(engine, **settings) for engine in self.engines)
        direct = {k: changes[k] for k in SCENARIO_SETTINGS if k in changes}
        scenario = replace(self, engines=engines, **direct)
        ours = {k: changes[k] for k in WORKLOAD_SETTINGS if k in changes}
        scenario = replace(scenario, workload=scenario.demand.override(ours))
        if "arrival_rate_per_s" in changes:
            scenario = scenario.at_rate(changes["arrival_rate_per_s"])
        return scenario


ENGINE_SETTINGS = (
    "batch_time",
    "token_budget",
    "max_num_seqs",
    "seq_limit",
    "replicas",
    "kv_cache",
    "first_token",
)
SCENARIO_SETTINGS = (
    "workload",
    "slots",
    "tick_ms",
    "lengths_known",
    "router",
    "service_weights",
    "name",
    "description",
    "source",
)
