"""What arrives: job types with their arrival process and their calls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Arrivals
from llmgym.scenario.lengths import Length
from llmgym.scenario.request_class import check_service_level
from llmgym.scenario.stage import Paired, Stage
from llmgym.scenario.workflow import Workflow


@dataclass(frozen=True)
class JobType:
    """A stream of jobs that arrive alike and ask for the same calls.

    ``ttft_ms`` and ``tpot_ms`` are service-level targets (milliseconds; None: no target): time to first
    token, and mean time per output token after the first. ``weight`` is what a request that meets them
    is worth.
    """

    arrivals: Arrivals
    stages: tuple[Stage, ...]
    name: str = "default"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not isinstance(self.arrivals, Arrivals):
            raise LLMGymError(f"arrivals must be an arrival process, got {self.arrivals!r}.")
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
    """A job type of one LLM call: the workload of a single engine."""
    stage = Stage(prefill=prefill, decode=decode, paired=paired)  # type: ignore[arg-type]
    return JobType(arrivals, (stage,), **job_type)
