"""What arrives: job types with their arrival process and calls, and the interface of every workload."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmgym.core.checks import check_text, keep_list
from llmgym.core.errors import LLMGymError, shown
from llmgym.scenario.arrivals import Arrivals
from llmgym.scenario.engine import Engine
from llmgym.scenario.gap_samplers import GapSampler
from llmgym.scenario.lengths import Length
from llmgym.scenario.prefixes import PrefixSource
from llmgym.scenario.request_class import TARGETS, RequestClass, check_service_level
from llmgym.scenario.stage import Paired, Stage
from llmgym.scenario.workflow import Workflow

LENGTH_SETTINGS = ("prefill_tokens", "decode_tokens")
WORKLOAD_SETTINGS = ("arrivals", *LENGTH_SETTINGS, *TARGETS)
"""What ``override`` changes, besides the rate."""


@dataclass(frozen=True)
class JobType:
    """A stream of jobs with one arrival process and the same calls.

    Args:
        arrivals: when they come: an arrival process.
        stages: their calls and delays.
        name: of the job type.
        ttft_ms, tpot_ms: targets of every call in milliseconds: time to first token, and mean time
            per output token after the first; None: no target.
        weight: what a request that meets its targets is worth.
        e2e_ms: target in milliseconds of the time from the arrival of the job to the end of its last
            call; None: no target.
    """

    arrivals: Arrivals
    stages: tuple[Stage, ...]
    name: str = "default"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0
    e2e_ms: float | None = None

    def __post_init__(self) -> None:
        keep_list(self, "stages", Stage, "stages")
        check_text("The name of a job type", self.name)
        if not isinstance(self.arrivals, Arrivals):
            raise LLMGymError(f"arrivals must be an arrival process, got {shown(self.arrivals)}.")
        if not self.stages:
            raise LLMGymError(
                f"Job type {self.name!r} has no stage: give it at least one LLM call."
            )
        named = (
            replace(stage, name=stage.name or f"call-{n + 1}")
            for n, stage in enumerate(self.stages)
        )
        object.__setattr__(self, "stages", tuple(named))
        check_service_level(self)
        Workflow.of(self)  # refuses stages that do not make sense together

    @property
    def workflow(self) -> Workflow:
        """How the stages follow one another."""
        return Workflow.of(self)

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second, lambda."""
        return self.arrivals.rate_per_s

    def at_rate(self, rate_per_s: float) -> JobType:
        """The same job type arriving at another rate."""
        return replace(self, arrivals=self.arrivals.at_rate(rate_per_s))


def Workload(  # noqa: N802 - reads as a constructor where a scenario is written
    arrivals: Arrivals,
    prefill: Length | int | None = None,
    decode: Length | int | None = None,
    paired: Paired | None = None,
    **job_type: Any,
) -> JobType:
    """A job type of one LLM call: the workload of a single engine.

    Args:
        arrivals: when requests come.
        prefill, decode: prompt and output lengths in tokens, drawn independently.
        paired: prompt and output lengths drawn together, in place of these.
        job_type: other fields of JobType: name, ttft_ms, tpot_ms, weight, e2e_ms.

    Raises:
        LLMGymError: neither ``prefill`` and ``decode`` nor ``paired``, or a value out of range.
    """
    stage = Stage(prefill=prefill, decode=decode, paired=paired)  # type: ignore[arg-type]
    return JobType(arrivals, (stage,), **job_type)


class Demand(ABC):
    """What a workload tells the core, the theory and the statistics: all that they know of it.

    Its kinds are ``JobTypes`` and ``Replay``. Jobs arrive in one or more streams, each of which has an
    arrival process and a workflow; every call (or delay) of a job belongs to a request class. A new
    kind defines the same, and nothing outside it has to ask which kind it is.
    """

    # Who arrives.

    @property
    @abstractmethod
    def classes(self) -> tuple[RequestClass, ...]:
        """The request classes that an agent tells apart."""

    @property
    @abstractmethod
    def job_names(self) -> tuple[str, ...]:
        """Names of what ``RequestClass.job`` counts: job types, tenants, or the replay."""

    @property
    @abstractmethod
    def job_targets_ms(self) -> tuple[float | None, ...]:
        """End-to-end targets in milliseconds of what ``job_names`` names; None: no target."""

    @property
    def job_types(self) -> tuple[JobType, ...]:
        """The job types that jobs are drawn from; empty for a list of requests."""
        return ()

    @abstractmethod
    def jobs(self, engine: str) -> tuple[JobType, ...]:
        """What arrives as job types, one for each stream: the same arrivals and laws of lengths.

        ``engine`` is the name of the one that serves calls which do not name theirs.
        """

    @property
    def weights(self) -> np.ndarray:
        """How often each of ``jobs`` arrives, in proportion to one another."""
        return np.ones(1)

    @property
    def has_targets(self) -> bool:
        """Whether a class has a target for its calls."""
        return any(target is not None for one in self.classes for target in one.targets_ms)

    # How much, and for how long.

    @property
    @abstractmethod
    def rate_per_s(self) -> float:
        """Jobs per second over all streams, lambda; infinite where all come at once."""

    @property
    @abstractmethod
    def mean_prefill(self) -> float:
        """Mean prompt tokens of a job over all arrivals, m_p."""

    @property
    @abstractmethod
    def mean_decode(self) -> float:
        """Mean output tokens of a job over all arrivals, m_d."""

    @property
    def calls_per_job(self) -> float:
        """Mean number of calls and delays of a job."""
        return 1.0

    @property
    def end_s(self) -> float | None:
        """Time of the last arrival in seconds; None where arrivals go on for ever."""
        return None

    @abstractmethod
    def longest_prompt(self, engine: str) -> float:
        """Largest prompt that can arrive at an engine, in tokens (infinite without a bound)."""

    def listed_tokens(self) -> np.ndarray | None:
        """Prompt and output tokens together of every request of a list; None where they are drawn."""
        return None

    # What the core draws arrivals from.

    @abstractmethod
    def gap_samplers(self, ticks_per_s: float) -> tuple[GapSampler, ...]:
        """Device forms of the arrival processes, one for each stream: when the next job comes."""

    @abstractmethod
    def length_samplers(self) -> tuple[Any, ...]:
        """Device forms of the laws of lengths, each once."""

    @property
    @abstractmethod
    def length_of(self) -> tuple[int, ...]:
        """Which of ``length_samplers`` each class draws from."""

    @abstractmethod
    def prefix_sources(self, block_size: int) -> tuple[PrefixSource, ...]:
        """What prompts begin with, for each class, or once for all of them.

        Raises LLMGymError where the tokens that requests share are not a multiple of ``block_size``.
        """

    # What the end of a call sets off.

    @property
    @abstractmethod
    def workflows(self) -> tuple[Workflow, ...]:
        """How the calls of a job follow one another, one for each stream."""

    @property
    def single_calls(self) -> bool:
        """Whether every job is one call, run once: the end of a call then sets nothing off."""
        return all(len(w.stages) == 1 and not w.stages[0].repeat for w in self.workflows)

    @property
    def follows(self) -> np.ndarray:
        """R (classes, classes): mean visits to the second class that a visit to the first brings on."""
        return np.zeros((len(self.classes), len(self.classes)))

    @property
    def entering_per_s(self) -> np.ndarray:
        """Rates (classes,) at which calls of each class arrive from outside, per second."""
        return np.array([one.rate_per_s for one in self.classes])

    def most_at_once(self, engines: Sequence[str]) -> int:
        """Most calls of one job that can be at one of the engines, or in delays, at once."""
        return 1

    # The same workload, changed.

    @abstractmethod
    def check(self, engines: Sequence[Engine]) -> None:
        """Raise LLMGymError where the engines cannot serve it."""

    @abstractmethod
    def at_rate(self, rate_per_s: float) -> Demand:
        """The same with all arrivals sped up or slowed down to ``rate_per_s`` in total."""

    @abstractmethod
    def unshared(self, block_size: int) -> Demand:
        """The same with prompts cut by what prefix caching in blocks could save at best."""

    @abstractmethod
    def calls_at(self, engine: str, classes: Sequence[int], share: float) -> Demand:
        """What one engine sees of the calls of some classes, as Poisson streams; a list stays as it is.

        Args:
            engine: name of the engine.
            classes: numbers of the classes that it serves.
            share: the part of their calls that reaches it, as one of several replicas.
        """

    def endless(self, engine: str) -> Demand:
        """Arrivals that never end: its own, or those that stand, at that engine, for a list of requests."""
        return self

    def first(self, count: int) -> Demand:
        """The first ``count`` requests of a list; what goes on for ever has no such part."""
        raise LLMGymError("Only a replay can be cut; these arrivals never end.")

    @abstractmethod
    def with_lengths(self, prefill: Any, decode: Any) -> Demand:
        """The same with other lengths of every call (a length or a whole number; None: its own)."""

    @abstractmethod
    def with_targets(self, targets: Mapping[str, float | None]) -> Demand:
        """The same with other targets (some of TARGETS) of every class."""

    @abstractmethod
    def with_arrivals(self, arrivals: Arrivals) -> Demand:
        """The same with another arrival process, where it has just one."""

    def override(self, changes: Mapping[str, Any]) -> Demand:
        """The same with changed settings, some of WORKLOAD_SETTINGS."""
        found = self
        prefill, decode = (changes.get(name) for name in LENGTH_SETTINGS)
        if prefill is not None or decode is not None:
            found = found.with_lengths(prefill, decode)
        targets = {name: changes[name] for name in TARGETS if name in changes}
        if targets:
            found = found.with_targets(targets)
        if "arrivals" in changes:
            found = found.with_arrivals(changes["arrivals"])
        return found
