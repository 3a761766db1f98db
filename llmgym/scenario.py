"""A scenario: the engine, what arrives, and the size of the simulation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmgym.arrivals import Arrivals
from llmgym.batch_time import BatchTime
from llmgym.clock_limits import check_clock
from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.fairness import MOST_WEIGHT
from llmgym.kv_cache import KVCache
from llmgym.lengths import Fixed, Length
from llmgym.workload import JobType, Replay, Stage

SEQ_LIMITS = ("batch", "resident")
FIRST_TOKENS = ("decode", "prefill")
ROUTERS = (
    "fewest_tokens",
    "fewest_requests",
    "power_of_two",
    "least_kv",
    "round_robin",
    "random",
    "action",
)
"""How calls choose among replicas; ``"action"``: where the agent last said."""


@dataclass(frozen=True)
class Engine:
    """One inference engine (arXiv:2504.07347v3, section 3).

    Args:
        batch_time: t_b, milliseconds against tokens in the batch.
        token_budget: b_max, the most tokens in one batch (6d).
        max_num_seqs: k_max, the most requests; None: no limit (section 6).
        seq_limit: what k_max counts: the requests in each ``"batch"``, or the ``"resident"`` ones, that
            is all that have received a token and are not finished. Sources differ.
        name: what stages call it.
        replicas: how many of it there are behind a router; stages name the group.
        kv_cache: its KV memory; None: as much as anyone asks for.
        first_token: ``"decode"``: every output token takes an iteration of its own, as in the model of
            arXiv:2504.07347; ``"prefill"``: the iteration that ends the prompt yields the first one,
            as in vLLM, so a request of P and O tokens costs P + O - 1.
    """

    batch_time: BatchTime
    token_budget: int
    max_num_seqs: int | None = None
    seq_limit: str = "batch"
    name: str = "engine"
    replicas: int = 1
    kv_cache: KVCache | None = None
    first_token: str = "decode"

    def __post_init__(self) -> None:
        check_number("replicas", self.replicas, low=1, high=256, integer=True)
        if not isinstance(self.batch_time, BatchTime):
            raise LLMGymError(
                f"batch_time must be a batch-time model such as Staircase, got {self.batch_time!r}."
            )
        check_number("token_budget", self.token_budget, low=1, high=2**20, integer=True)
        object.__setattr__(self, "token_budget", int(self.token_budget))
        if self.max_num_seqs is not None:
            check_number("max_num_seqs", self.max_num_seqs, low=1, high=2**20, integer=True)
            object.__setattr__(self, "max_num_seqs", int(self.max_num_seqs))
        if self.seq_limit not in SEQ_LIMITS:
            raise unknown("seq_limit", self.seq_limit, SEQ_LIMITS)
        if self.first_token not in FIRST_TOKENS:
            raise unknown("first_token", self.first_token, FIRST_TOKENS)
        if not (self.kv_cache is None or isinstance(self.kv_cache, KVCache)):
            raise LLMGymError(f"kv_cache must be a KVCache or None, got {self.kv_cache!r}.")

    @property
    def prompt_samples(self) -> bool:
        """Whether the iteration that ends a prompt yields an output token."""
        return self.first_token == "prefill"

    @property
    def needs_memory(self) -> bool:
        """Whether what a request has in KV memory matters at all."""
        attention = self.batch_time.needs_attention
        return self.kv_cache is not None or self.prompt_samples or attention


@dataclass(frozen=True)
class Scenario:
    """An engine, its workload, and the limits of the simulation.

    Args:
        engines: the engines; one for ``llmgym/Engine-v0``.
        workload: a tuple of job types, or one Replay.
        slots: most requests in an engine, or most jobs in a network of engines; arrivals that find them
            taken are dropped and counted.
        router: how calls choose among replicas of an engine: a name in ROUTERS.
        tick_ms: clock resolution. 0.01 ms makes every published constant a whole number of ticks. A
            time that whole ticks would change by more than 1 %, or one of more than 2**30 ticks, is
            refused.
        lengths_known: whether policies see the remaining output tokens (hidden by default).
        name, description, source: where it comes from.
        service_weights: (w_p, w_q), what a prompt token and an output token count as service to a
            request class, where fairness among them matters; None: no counters are kept. (1, 2) in
            arXiv:2401.00588. Whole numbers; single engines only.
    """

    engines: tuple[Engine, ...]
    workload: tuple[JobType, ...] | Replay
    slots: int = 256
    tick_ms: float = 0.01
    lengths_known: bool = False
    router: str = "fewest_tokens"
    name: str = "custom"
    description: str = ""
    source: str = ""
    service_weights: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "engines", tuple(self.engines))
        if isinstance(self.workload, JobType):
            object.__setattr__(self, "workload", (self.workload,))
        if not isinstance(self.workload, Replay):
            object.__setattr__(self, "workload", tuple(self.workload))
            if not self.workload or not all(isinstance(j, JobType) for j in self.workload):
                raise LLMGymError("workload must be a Replay, a JobType, or several job types.")
            names = [j.name for j in self.workload]
            if len(set(names)) < len(names):
                raise LLMGymError(f"Job types need different names, got {names}.")
        check_number("slots", self.slots, low=1, high=2**15, integer=True)
        check_number("tick_ms", self.tick_ms, above=0, high=1000)
        check_number("tick_ms", self.tick_ms, low=1e-9)
        self._check_engines()
        self._check_service_weights()
        check_clock(self)

    def _check_service_weights(self) -> None:
        if self.service_weights is None:
            return
        weights = self.service_weights
        if np.shape(weights) != (2,):
            raise LLMGymError(
                f"service_weights are two numbers, of a prompt and of an output token, got {weights!r}."
            )
        for name, weight in zip(("w_p", "w_q"), weights, strict=True):
            check_number(f"service_weights: {name}", weight, low=0, high=MOST_WEIGHT, integer=True)
        object.__setattr__(self, "service_weights", tuple(int(weight) for weight in weights))
        if not any(self.service_weights):
            raise LLMGymError("service_weights must not both be 0.")
        if self.is_network:
            raise LLMGymError(
                "service_weights keep counters of one engine; a network of engines has none. "
                "Leave them out."
            )

    def _check_engines(self) -> None:
        if not self.engines or not all(isinstance(e, Engine) for e in self.engines):
            raise LLMGymError(f"engines must be one Engine or more, got {self.engines!r}.")
        known = [engine.name for engine in self.engines]
        if len(set(known)) < len(known):
            raise LLMGymError(f"Engines need different names, got {known}.")
        limits = {e.seq_limit for e in self.engines if e.max_num_seqs is not None}
        if len(limits) > 1:
            raise LLMGymError("All engines must count their limit on requests alike (seq_limit).")
        if self.router not in ROUTERS:
            raise unknown("router", self.router, ROUTERS)
        for job_type in self.job_types:
            for stage in job_type.stages:
                if not stage.is_delay and stage.engine not in known:
                    raise LLMGymError(
                        f"Job type {job_type.name!r}, stage {stage.name!r}: "
                        f"{unknown('engine', stage.engine, known)}"
                    )
            if all(stage.is_delay for stage in job_type.stages):
                raise LLMGymError(f"Job type {job_type.name!r} has no LLM call: all are delays.")
        if isinstance(self.workload, Replay) and len(self.engines) != 1:
            raise LLMGymError("A replay is served by one engine or one group of replicas.")

    @property
    def is_network(self) -> bool:
        """Whether it has more than one engine, or jobs of more than one call."""
        return (
            len(self.engines) > 1
            or self.engine.replicas > 1
            or any(len(j.stages) > 1 or j.stages[0].repeat for j in self.job_types)
        )

    @classmethod
    def single_engine(
        cls,
        batch_time: BatchTime,
        token_budget: int,
        workload: JobType | tuple[JobType, ...] | Replay,
        max_num_seqs: int | None = None,
        seq_limit: str = "batch",
        kv_cache: KVCache | None = None,
        first_token: str = "decode",
        **fields: Any,
    ) -> Scenario:
        """One engine and its workload. ``fields`` are those of Scenario (slots, tick_ms, ...)."""
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
        if isinstance(self.workload, Replay):
            tenants = self.workload.tenant is not None
            return self.class_names if tenants else (self.workload.name,)
        return tuple(job_type.name for job_type in self.workload)

    @property
    def job_types(self) -> tuple[JobType, ...]:
        """The job types; empty for a replay."""
        return () if isinstance(self.workload, Replay) else self.workload

    @property
    def classes(self) -> tuple[tuple[int, int], ...]:
        """The request classes that an agent tells apart: (job type, stage), delays included."""
        if isinstance(self.workload, Replay):
            count = len(self.workload.classes)
            if self.workload.tenant is not None:
                return tuple((j, 0) for j in range(count))
            return ((0, 0),) * count
        return tuple((j, s) for j, job in enumerate(self.workload) for s in range(len(job.stages)))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the request classes: the job type, and the stage where it has several."""
        if isinstance(self.workload, Replay):
            return tuple(one.name for one in self.workload.classes)
        jobs = [self.workload[j] for j, _ in self.classes]
        return tuple(
            job.name if len(job.stages) == 1 else f"{job.name}.{job.stages[s].name}"
            for job, (_, s) in zip(jobs, self.classes, strict=True)
        )

    @property
    def class_means(self) -> tuple[tuple[float, float], ...]:
        """(m_p, m_d) of each class: mean prompt and output tokens."""
        if isinstance(self.workload, Replay):
            replay, count = self.workload, len(self.workload.classes)
            which = replay.request_class
            requests = np.maximum(np.bincount(which, minlength=count), 1)  # a part may have none
            columns = (replay.prefill_tokens, replay.decode_tokens)
            sums = [np.bincount(which, weights=column, minlength=count) for column in columns]
            return tuple((float(p), float(d)) for p, d in (sums / requests).T)
        means = [row for job in self.workload for row in job.workflow.means.tolist()]
        return tuple((prefill, decode) for prefill, decode in means)

    @property
    def class_priorities(self) -> tuple[int, ...]:
        """Priority of each class; more is served first by policies that heed it."""
        if isinstance(self.workload, Replay):
            return tuple(one.priority for one in self.workload.classes)
        return tuple(self.workload[j].stages[s].priority for j, s in self.classes)

    @property
    def targets_ms(self) -> tuple[tuple[float | None, float | None], ...]:
        """(TTFT, TPOT) targets in milliseconds, None where there is none.

        Of each class; of a network, whose classes are single calls, of each job type.
        """
        return tuple((level.ttft_ms, level.tpot_ms) for level in self._service_levels)

    @property
    def class_weights(self) -> tuple[float, ...]:
        """What a request that meets its targets is worth, as ``targets_ms``."""
        return tuple(float(level.weight) for level in self._service_levels)

    @property
    def has_targets(self) -> bool:
        """Whether any class has a target."""
        return any(target is not None for pair in self.targets_ms for target in pair)

    @property
    def _service_levels(self) -> tuple[Any, ...]:
        """What has the fields ttft_ms, tpot_ms and weight, class by class."""
        workload = self.workload
        return workload.classes if isinstance(workload, Replay) else workload

    @property
    def arrival_rate_per_s(self) -> float:
        """Requests per second over all classes, lambda."""
        if isinstance(self.workload, Replay):
            return self.workload.rate_per_s
        return sum(job_type.rate_per_s for job_type in self.workload)

    def _mean(self, what: str) -> float:
        if isinstance(self.workload, Replay):
            return float(getattr(self.workload, what))
        column = ("mean_prefill", "mean_decode").index(what)
        total = sum(
            j.rate_per_s * float(j.workflow.visits @ j.workflow.means[:, column])
            for j in self.workload
        )
        return float(total / self.arrival_rate_per_s)

    @property
    def mean_prefill(self) -> float:
        """Mean prompt tokens of a job over all arrivals, m_p."""
        return self._mean("mean_prefill")

    @property
    def mean_decode(self) -> float:
        """Mean output tokens of a job over all arrivals, m_d."""
        return self._mean("mean_decode")

    def longest_prompt(self, engine: Engine) -> float:
        """Largest prompt that can arrive at an engine, in tokens (infinite where there is no bound)."""
        if isinstance(self.workload, Replay):
            return self.workload.longest_prompt
        stages = [
            (stage, longest)
            for job in self.workload
            for stage, longest in zip(job.stages, job.workflow.longest_prompts, strict=True)
        ]
        only = len(self.engines) == 1
        here = [
            n for stage, n in stages if not stage.is_delay and (only or stage.engine == engine.name)
        ]
        return max(here, default=0.0)

    def at_rate(self, rate_per_s: float) -> Scenario:
        """The same scenario with all arrivals sped up or slowed down to ``rate_per_s`` in total."""
        check_number("arrival_rate_per_s", rate_per_s, above=0)
        if isinstance(self.workload, Replay):
            return replace(self, workload=self.workload.at_rate(rate_per_s))
        factor = rate_per_s / self.arrival_rate_per_s
        scaled = tuple(j.at_rate(j.rate_per_s * factor) for j in self.workload)
        return replace(self, workload=scaled)

    def at_load(self, load: float | None) -> Scenario:
        """The same scenario at a fraction ``load`` of the LP capacity; unchanged where it is None."""
        if load is None:
            return self
        check_number("load", load, above=0)
        from llmgym.theory.capacity import capacity

        return self.at_rate(load * capacity(self).requests_per_s)

    def override(self, **changes: Any) -> Scenario:
        """A copy with changed settings.

        Every engine: batch_time (also a name in ``llmgym.presets``, or a TOML file that holds one),
        token_budget, max_num_seqs, seq_limit, replicas. Workload: arrival_rate_per_s, arrivals,
        prefill_tokens and decode_tokens (a length distribution or a whole number; for every call),
        ttft_ms and tpot_ms (targets of every class; None: no target), workload. Any field of Scenario
        itself, such as slots or tick_ms.
        """
        known = {*ENGINE_SETTINGS, *WORKLOAD_SETTINGS, *SCENARIO_SETTINGS}
        for name in changes:
            if name not in known:
                raise unknown("scenario setting", name, known)
        settings = {k: changes[k] for k in ENGINE_SETTINGS if k in changes}
        if isinstance(settings.get("batch_time"), (str, os.PathLike)):
            from llmgym.scenario_files import load_batch_time

            settings["batch_time"] = load_batch_time(settings["batch_time"])
        engines = tuple(replace(engine, **settings) for engine in self.engines)
        direct = {k: changes[k] for k in SCENARIO_SETTINGS if k in changes}
        scenario = replace(self, engines=engines, **direct)
        scenario = scenario._with_lengths(
            changes.get("prefill_tokens"), changes.get("decode_tokens")
        )
        scenario = scenario._with_targets(
            {k: changes[k] for k in ("ttft_ms", "tpot_ms") if k in changes}
        )
        if "arrivals" in changes:
            scenario = scenario._with_arrivals(changes["arrivals"])
        if "arrival_rate_per_s" in changes:
            scenario = scenario.at_rate(changes["arrival_rate_per_s"])
        return scenario

    def _with_lengths(self, prefill: Any, decode: Any) -> Scenario:
        if prefill is None and decode is None:
            return self
        if isinstance(self.workload, Replay):
            raise LLMGymError(
                "A replay carries its own token counts; prefill_tokens and decode_tokens do not apply."
            )

        def stage(old: Stage) -> Stage:
            if old.paired is not None and (prefill is None or decode is None):
                raise LLMGymError(
                    "These lengths are paired: override prefill_tokens and decode_tokens together."
                )
            new_prefill = old.prefill if prefill is None else _length("prefill_tokens", prefill)
            new_decode = old.decode if decode is None else _length("decode_tokens", decode)
            if old.is_delay:
                return old
            return replace(old, prefill=new_prefill, decode=new_decode, paired=None)

        jobs = tuple(replace(j, stages=tuple(map(stage, j.stages))) for j in self.workload)
        return replace(self, workload=jobs)

    def _with_targets(self, targets: dict[str, Any]) -> Scenario:
        workload = self.workload
        if not targets:
            return self
        if not isinstance(workload, Replay):
            return replace(self, workload=tuple(replace(job, **targets) for job in workload))
        if not workload.tenants:
            return replace(self, workload=replace(workload, **targets))
        tenants = tuple(replace(tenant, **targets) for tenant in workload.tenants)
        return replace(self, workload=replace(workload, tenants=tenants))

    def _with_arrivals(self, arrivals: Arrivals) -> Scenario:
        if isinstance(self.workload, Replay) or len(self.workload) != 1:
            raise LLMGymError("arrivals can be overridden where there is exactly one job type.")
        return replace(self, workload=(replace(self.workload[0], arrivals=arrivals),))


ENGINE_SETTINGS = (
    "batch_time",
    "token_budget",
    "max_num_seqs",
    "seq_limit",
    "replicas",
    "kv_cache",
    "first_token",
)
WORKLOAD_SETTINGS = (
    "arrival_rate_per_s",
    "arrivals",
    "prefill_tokens",
    "decode_tokens",
    "ttft_ms",
    "tpot_ms",
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


def _length(name: str, value: Any) -> Length:
    if isinstance(value, Length):
        return value
    check_number(name, value, low=0, integer=True)
    if not isinstance(value, (int, float, np.integer, np.floating)):
        raise LLMGymError(f"{name} must be a length distribution or a whole number, got {value!r}.")
    return Fixed(int(value))


def as_scenario(scenario: Scenario | str) -> Scenario:
    """The scenario itself, or the one that a name or a TOML path stands for."""
    if isinstance(scenario, Scenario):
        return scenario
    from llmgym.scenario_files import scenario as named

    return named(scenario)
