"""Job types as a workload: streams of jobs that go on for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from llmgym.core.checks import as_list
from llmgym.core.errors import LLMGymError, shown, unknown
from llmgym.scenario.arrivals import Arrivals, Poisson
from llmgym.scenario.engine import Engine
from llmgym.scenario.gap_samplers import GapSampler
from llmgym.scenario.prefixes import PrefixSource, no_prefix
from llmgym.scenario.request_class import RequestClass
from llmgym.scenario.stage import Stage
from llmgym.scenario.workflow import Workflow
from llmgym.scenario.workload import Demand, JobType


class JobTypes(tuple[JobType, ...], Demand):
    """A tuple of job types. A request class is a stage of one, numbered through all of them."""

    @classmethod
    def of(cls, workload: Any) -> JobTypes:
        """A job type or several of them. Raises LLMGymError for anything else, or names used twice."""
        found = workload
        if not isinstance(workload, cls):
            several = (workload,) if isinstance(workload, JobType) else workload
            try:
                found = cls(as_list("workload", several, JobType, "job types"))
            except LLMGymError:
                found = cls()
        if not found or not all(isinstance(job, JobType) for job in found):
            raise LLMGymError(
                f"workload must be a Replay, a JobType, or several job types, got {shown(workload)}."
            )
        names = list(found.job_names)
        if len(set(names)) < len(names):
            raise LLMGymError(f"Job types need different names, got {names}.")
        return found

    @cached_property
    def classes(self) -> tuple[RequestClass, ...]:
        return tuple(
            _class(self, j, s) for j, job in enumerate(self) for s in range(len(job.stages))
        )

    @property
    def job_names(self) -> tuple[str, ...]:
        return tuple(job.name for job in self)

    @property
    def job_targets_ms(self) -> tuple[float | None, ...]:
        return tuple(job.e2e_ms for job in self)

    @property
    def job_types(self) -> tuple[JobType, ...]:
        return self

    def jobs(self, engine: str) -> tuple[JobType, ...]:
        return self

    @property
    def weights(self) -> np.ndarray:
        return np.array([job.rate_per_s for job in self])

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of all job types: one for each class."""
        return tuple(stage for job in self for stage in job.stages)

    @property
    def first_class(self) -> tuple[int, ...]:
        """Number of the first class of each job type."""
        sizes = [len(job.stages) for job in self]
        return tuple(np.cumsum([0, *sizes[:-1]]).tolist())

    @property
    def rate_per_s(self) -> float:
        return sum(job.rate_per_s for job in self)

    def _mean(self, column: int) -> float:
        total = sum(
            job.rate_per_s * float(job.workflow.visits @ job.workflow.means[:, column])
            for job in self
        )
        return float(total / self.rate_per_s)

    @property
    def mean_prefill(self) -> float:
        return self._mean(0)

    @property
    def mean_decode(self) -> float:
        return self._mean(1)

    @property
    def calls_per_job(self) -> float:
        visits = [job.workflow.visits.sum() for job in self]
        return float(np.average(visits, weights=self.weights))

    def longest_prompt(self, engine: str) -> float:
        longest = [n for job in self for n in job.workflow.longest_prompts]
        served = [not s.is_delay and s.engine == engine for s in self.stages]
        return max((n for n, mine in zip(longest, served, strict=True) if mine), default=0.0)

    def gap_samplers(self, ticks_per_s: float) -> tuple[GapSampler, ...]:
        return tuple(job.arrivals.sampler(ticks_per_s) for job in self)

    @property
    def _laws(self) -> list[tuple[Any, ...]]:
        return [(s.prefill, s.decode, s.paired, s.delay_ms) for s in self.stages]

    def length_samplers(self) -> tuple[Any, ...]:
        laws = self._laws
        return tuple(self.stages[laws.index(law)].sampler() for law in dict.fromkeys(laws))

    @property
    def length_of(self) -> tuple[int, ...]:
        different = list(dict.fromkeys(self._laws))
        return tuple(different.index(law) for law in self._laws)

    def prefix_sources(self, block_size: int) -> tuple[PrefixSource, ...]:
        found = []
        for stage in self.stages:
            shared = stage.shared_prefix
            if shared is None:
                found.append(PrefixSource(no_prefix(), 0))
            else:
                count = shared.variants * (shared.tokens // block_size)
                found.append(PrefixSource(shared.sampler(), count))
        return tuple(found)

    @property
    def workflows(self) -> tuple[Workflow, ...]:
        return tuple(job.workflow for job in self)

    @property
    def follows(self) -> np.ndarray:
        found = super().follows
        for first, job in zip(self.first_class, self, strict=True):
            mine = slice(first, first + len(job.stages))
            found[mine, mine] = job.workflow.follows
        return found

    @property
    def entering_per_s(self) -> np.ndarray:
        found = np.zeros(len(self.stages))
        for first, job in zip(self.first_class, self, strict=True):
            for root in job.workflow.roots:
                # Loops aside, a stage that starts with the job runs as often as it is chosen.
                found[first + root] = job.rate_per_s * job.workflow.reach[root]
        return found

    def most_at_once(self, engines: Sequence[str]) -> int:
        flows = self.workflows
        widths = [flow.width(engine) for flow in flows for engine in engines]
        return max(*widths, *(flow.delay_width() for flow in flows))

    def check(self, engines: Sequence[Engine]) -> None:
        known = [engine.name for engine in engines]
        for job in self:
            for stage in job.stages:
                if not stage.is_delay and stage.engine not in known:
                    raise LLMGymError(
                        f"Job type {job.name!r}, stage {stage.name!r}: "
                        f"{unknown('engine', stage.engine, known)}"
                    )
            if all(stage.is_delay for stage in job.stages):
                raise LLMGymError(f"Job type {job.name!r} has no LLM call: all are delays.")

    def at_rate(self, rate_per_s: float) -> JobTypes:
        factor = rate_per_s / self.rate_per_s
        return JobTypes(job.at_rate(job.rate_per_s * factor) for job in self)

    def unshared(self, block_size: int) -> JobTypes:
        stages = ([stage.unshared(block_size) for stage in job.stages] for job in self)
        return self._with_stages(stages)

    def calls_at(self, engine: str, classes: Sequence[int], share: float) -> JobTypes:
        found = []
        for one in (self.classes[k] for k in classes):
            stage = replace(
                self[one.job].stages[one.stage],
                **dict.fromkeys(("after", "probability", "repeat")),  # type: ignore[arg-type]
                name="call",
                engine=engine,
            )
            found.append(JobType(Poisson(one.rate_per_s * share), (stage,), name=one.name))
        return JobTypes(found)

    def with_lengths(self, prefill: Any, decode: Any) -> JobTypes:
        stages = ([stage.with_lengths(prefill, decode) for stage in job.stages] for job in self)
        return self._with_stages(stages)

    def _with_stages(self, stages: Any) -> JobTypes:
        pairs = zip(self, stages, strict=True)
        return JobTypes(replace(job, stages=tuple(own)) for job, own in pairs)

    def with_targets(self, targets: Mapping[str, float | None]) -> JobTypes:
        changes: dict[str, Any] = dict(targets)
        return JobTypes(replace(job, **changes) for job in self)

    def with_arrivals(self, arrivals: Arrivals) -> JobTypes:
        if len(self) != 1:
            raise LLMGymError("arrivals can be overridden where there is exactly one job type.")
        return JobTypes([replace(self[0], arrivals=arrivals)])


def _class(jobs: JobTypes, j: int, s: int) -> RequestClass:
    """The class of stage ``s`` of job type ``j``."""
    job, first = jobs[j], jobs.first_class[j]
    stage, flow = job.stages[s], job.workflow
    prefill, decode = flow.means[s].tolist()
    promised = {} if stage.is_delay else {"ttft_ms": job.ttft_ms, "tpot_ms": job.tpot_ms}
    return RequestClass(
        name=job.name if len(job.stages) == 1 else f"{job.name}.{stage.name}",
        mean_prefill=prefill,
        mean_decode=decode,
        rate_per_s=job.rate_per_s * float(flow.visits[s]),
        job=j,
        stage=s,
        stream=j,
        priority=stage.priority,
        **promised,
        weight=float(job.weight),
        engine=None if stage.is_delay else stage.engine,
        is_delay=stage.is_delay,
        inherits=stage.inherits,
        hop=int(flow.depth[s]),
        children=tuple(first + v for v in flow.children[s]),
    )
