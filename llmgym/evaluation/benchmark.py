"""The benchmark: for each policy its capacity, its verdicts and its latencies, resumable and repeatable.

A result folder holds ``config.json`` (everything that the numbers depend on, with versions), one file
for each measurement under ``raw/``, and the tables and pictures made from them. Measurements that
exist are not repeated, so an interrupted run resumes; a run from the ``config.json`` of another folder
repeats its numbers bit for bit.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from llmgym import baselines
from llmgym.core.checks import (
    as_list,
    check_callable,
    check_kind,
    check_path,
    check_settings,
    keep_list,
    keep_number,
)
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.files import slug, to_json, write
from llmgym.core.folders import alone_in
from llmgym.core.reading import MOST_JSON, read_bytes, read_json
from llmgym.evaluation import policies
from llmgym.evaluation.capacity import MOST_REQUESTS, estimate_capacity
from llmgym.evaluation.configuration import Settings, check_different
from llmgym.evaluation.simulate import Run, simulate
from llmgym.evaluation.stability import stability
from llmgym.evaluation.workers import in_processes
from llmgym.scenario import toml_writer
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import MOST_LOAD, capacity

DEFAULT_POLICIES = (*baselines.PAPER, "greedy_rate", "tile_align")
DEFAULT_LOADS = (0.5, 0.7, 0.8, 0.95)
VERSIONED = ("llmgym", "jax", "jaxlib", "numpy", "scipy")


Progress = Callable[[int, int, str], None]
"""Called with the number of measurements done, their number in all, and a label for a person to read."""


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark measures.

    Args:
        scenario: the engine and its workload. For a replay, capacity and verdicts come from Poisson
            arrivals of each of its classes with that class's own pairs of lengths; latencies come from
            the trace itself, its time stretched to each load.
        policies: names, in the order of the rows.
        loads: fractions of the LP capacity.
        replications: environments of each measurement.
        arrivals: requests per replication in the latency runs; the first third is warm-up. A replay is
            run once, with its first ``arrivals`` requests and no warm-up.
        capacity_requests: requests per replication of a capacity by bisection.
        seed: of the arrivals and of the policies' own draws.
    """

    scenario: Scenario
    policies: tuple[str, ...] = DEFAULT_POLICIES
    loads: tuple[float, ...] = DEFAULT_LOADS
    replications: int = 8
    arrivals: int = 3000
    capacity_requests: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_kind("scenario", self.scenario, Scenario)
        keep_list(self, "policies", str, "names of policies")
        keep_list(self, "loads", what="numbers")
        if not self.policies:
            raise LLMGymError("A benchmark needs at least one policy.")
        if not self.loads:
            raise LLMGymError("A benchmark needs at least one load.")
        loads = tuple(check_number("load", x, above=0, high=MOST_LOAD) for x in self.loads)
        object.__setattr__(self, "loads", loads)
        check_different("loads", self.loads)
        keep_number(self, "replications", low=2, high=2**20, integer=True)
        keep_number(self, "arrivals", low=30, high=MOST_REQUESTS, integer=True)
        keep_number(self, "capacity_requests", low=10, high=MOST_REQUESTS, integer=True)
        keep_number(self, "seed", low=0, high=2**32 - 1, integer=True)
        for name in self.policies:
            policies.resolve(name)

    @property
    def endless(self) -> Scenario:
        """The scenario with arrivals that never end: itself, or the stand-in for a replay."""
        demand = self.scenario.demand
        if demand.end_s is None:
            return self.scenario
        # Verdicts enlarge the table where they need to; the trace's own run needs a large one at once.
        slots = min(self.scenario.slots, 1024)
        return replace(
            self.scenario, workload=demand.endless(self.scenario.engine.name), slots=slots
        )

    def config(self) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON."""
        digests = policies.digests(self.policies)
        return {
            **vars(self),
            **({"digests": digests} if digests else {}),
            "scenario": toml_writer.dumps(self.scenario),
            "versions": {name: metadata.version(name) for name in VERSIONED},
            "python": platform.python_version(),
        }


def servable(names: tuple[str, ...], scenario: Scenario) -> tuple[str, ...]:
    """The names, with prompts split for those policies that could never serve the longest prompt.

    Raises LLMGymError where requests can never fit into KV memory.
    """
    scenario = as_scenario(scenario)
    names = as_list("names", names, str, "names of policies")
    problem = policies.memory_problem(scenario)
    if problem:
        raise LLMGymError(problem)
    rows = []
    for name in names:
        policy: Any = policies.resolve(name)
        splits = policies.check(policy, scenario) and hasattr(policy, "prompts")
        rows.append(f"{name}{',' if ':' in name else ':'}prompts=split" if splits else name)
    return tuple(rows)


def from_config(path: Path) -> Benchmark:
    """The benchmark of a result folder or of its ``config.json``.

    Raises LLMGymError where there is none.
    """
    config = Settings(path, "a benchmark")
    whole = ("replications", "arrivals", "capacity_requests", "seed")
    return Benchmark(
        config.scenario(),
        config.several("policies", str),
        config.several("loads", float),
        **{name: config.one(name, int) for name in whole},
    )


@dataclass(frozen=True)
class Task:
    """One measurement: the name of its file, a label for a person to read, and the function that makes it."""

    name: str
    label: str
    measure: Callable[[], dict[str, Any]]


def tasks(benchmark: Benchmark) -> Iterator[Task]:
    """All measurements, capacities first."""
    yield Task("limit", "the limit that no policy exceeds", partial(_limit, benchmark))
    for name in benchmark.policies:
        yield Task(
            f"capacity-{slug(name)}", f"{name}: capacity", partial(_capacity, benchmark, name)
        )
    for load in benchmark.loads:
        for name in benchmark.policies:
            for kind, measure in (("stability", _stability), ("latency", _latency)):
                yield Task(
                    f"{kind}-{slug(name)}-{load:g}",
                    f"{name} at load {load:g}: {kind}",
                    partial(measure, benchmark, name, load),
                )


def _limit(benchmark: Benchmark) -> dict[str, Any]:
    limit = capacity(benchmark.endless)
    return {"requests_per_s": limit.requests_per_s, "tokens_per_ms": limit.tokens_per_ms}


def _capacity(benchmark: Benchmark, name: str) -> dict[str, Any]:
    policy: Any = policies.resolve(name)
    saturates = getattr(policy, "saturates", False)
    estimate = estimate_capacity(
        benchmark.endless,
        policy,
        requests=None if saturates else benchmark.capacity_requests,
        replications=benchmark.replications,
        seed=benchmark.seed,
    )
    return asdict(estimate)


def _stability(benchmark: Benchmark, name: str, load: float) -> dict[str, Any]:
    verdict = stability(
        benchmark.endless,
        policies.resolve(name),
        load=load,
        replications=benchmark.replications,
        seed=benchmark.seed,
    )
    return asdict(verdict)


def _latency(benchmark: Benchmark, name: str, load: float) -> dict[str, Any]:
    run = _latency_run(benchmark, name, load)
    return {"summary": run.summary, "trajectory": _thinned(run)}


def _latency_run(benchmark: Benchmark, name: str, load: float) -> Run:
    """The run behind a row of latencies."""
    rate = load * capacity(benchmark.endless).requests_per_s
    scenario = benchmark.scenario.at_rate(rate)
    if scenario.demand.end_s is not None:
        first = scenario.demand.first(benchmark.arrivals)
        assert first.end_s is not None
        scenario, span_s = replace(scenario, workload=first), first.end_s + 1.0
        return simulate(scenario, policies.resolve(name), duration_s=span_s, seed=benchmark.seed)
    duration_s = benchmark.arrivals / rate
    return simulate(
        scenario,
        policies.resolve(name),
        duration_s=duration_s,
        warmup_s=duration_s / 3,
        num_envs=benchmark.replications,
        seed=benchmark.seed,
    )


def _thinned(run: Run, points: int = 200) -> dict[str, list[float]]:
    """Requests in system over time, first environment, at equally spaced decisions."""
    path = run.trajectory[run.trajectory.env == 0]
    path = path.iloc[:: max(len(path) // points, 1)]
    return {"time_s": (path.time_ms / 1000).tolist(), "in_system": path.in_system.tolist()}


def run(
    benchmark: Benchmark,
    out: Path,
    progress: Progress | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Make all measurements that are not in the result folder yet.

    Args:
        benchmark: what is measured.
        out: the result folder; it is made if it is missing.
        progress: called before each measurement (with several ``jobs``, after it) and at the end.
        jobs: measurements that run in parallel.

    Returns:
        What each measurement found, by the name of its task.

    Raises LLMGymError where ``out`` holds another benchmark or cannot be written.
    """
    return measure(benchmark.config(), list(tasks(benchmark)), out, progress, jobs)


def measure(
    config: dict[str, Any],
    todo: list[Task],
    out: Path,
    progress: Progress | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Make the measurements of ``todo`` that are not in the result folder yet.

    Args:
        config: everything that the numbers depend on; written to ``out`` as ``config.json``.
        todo: the measurements, in the order in which they begin.
        out: the result folder; it is made if it is missing.
        progress: called before each measurement (with several ``jobs``, after it) and at the end.
        jobs: measurements that run in parallel, each in a process of its own if there are several; the
            numbers are the same. A script that asks for several needs the usual
            ``if __name__ == "__main__"``.

    Returns:
        What every task of ``todo`` found, by its name; also those that were in the folder.

    Raises LLMGymError where ``out`` holds results of another ``config``, another process is writing there,
    or nothing can be written.
    """
    out, text = check_path("out", out), to_json(check_settings("config", config))
    jobs = check_number("jobs", jobs, low=1, high=2**10, integer=True)
    tasks = list(as_list("todo", todo, Task, "tasks"))
    check_callable("progress", progress)
    with alone_in(out):
        return _measure(text, tasks, out, progress, jobs)


def _measure(
    text: str, todo: list[Task], out: Path, progress: Progress | None, jobs: int
) -> dict[str, Any]:
    """``measure``, with the folder held and the configuration as text."""
    existing, raw = out / "config.json", out / "raw"
    if os.path.islink(raw):
        raise LLMGymError(f"{raw} is a link that leads out of the result folder; remove it.")
    kept = (
        read_bytes(existing, "file", 4 * MOST_JSON) if os.path.exists(existing) else text.encode()
    )
    if kept != text.encode():
        raise LLMGymError(
            f"{out} holds a benchmark with another configuration or other versions; choose another "
            "--out folder, or delete it."
        )
    write(existing, text)
    files = {task.name: raw / f"{task.name}.json" for task in todo}
    results = {name: read_result(path) for name, path in files.items() if os.path.exists(path)}
    left = [task for task in todo if task.name not in results]
    show = progress or (lambda done, total, label: None)

    def tell(task: Task, ended: int) -> None:
        show(len(todo) - len(left) + ended, len(todo), task.label)

    for task, made in _made(left, jobs, tell):
        write(files[task.name], to_json(made))
        results[task.name] = read_result(files[task.name])
    show(len(todo), len(todo), "done")
    return {name: results[name] for name in files}


def read_result(path: Path) -> dict[str, Any]:
    """What a raw file holds. Raises LLMGymError where it is damaged."""
    return read_json(path, "a measurement", "Delete it and run again.")


def _made(
    todo: list[Task], jobs: int, tell: Callable[[Task, int], None]
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Each task with its result, as they end; ``tell`` gets a task and the number that have ended."""
    if jobs == 1:
        for ended, task in enumerate(todo):
            tell(task, ended)
            yield task, task.measure()
        return
    measured = in_processes([task.measure for task in todo], jobs)
    for ended, (n, made) in enumerate(measured, 1):
        yield todo[n], made
        tell(todo[n], ended)
