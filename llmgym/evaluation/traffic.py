"""Policies on the requests of a trace, at the times at which they came: goodput, latency, preemptions.

A result folder holds ``config.json``, one file for each policy under ``raw/``, and the table made from
them as ``results.csv`` and ``results.md``. Policies whose files exist are not run again: a run that was
stopped resumes, and policies can be added. A policy of one's own is run again when its file has changed.
The trace itself is not kept, only its name and digest.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from llmgym.baselines import decisions
from llmgym.core.checks import as_list, check_kind, check_path, keep_list, keep_number
from llmgym.core.errors import LLMGymError, TableFullError, shown
from llmgym.core.reading import digest
from llmgym.engine import simulator
from llmgym.engine.view import View
from llmgym.evaluation import policies
from llmgym.evaluation import rollout as rollouts
from llmgym.evaluation.benchmark import VERSIONED, Progress, Task, measure, slug
from llmgym.evaluation.simulate import Run, simulate
from llmgym.scenario import toml_writer
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load
from llmgym.traces.readers import read_trace
from llmgym.traces.rows import MOST_BYTES

TTFT_MS, TPOT_MS = 2000.0, 100.0
"""Default targets: those of MLPerf Inference 5.1 for Llama-3.1-8B, server scenario. There they are 99th
percentiles; here each request meets them or not."""

FIRST_SLOTS = 512
"""Rows of the table at first; where it fills up the run begins again with those of the scenario."""

GIVEN: tuple[dict[str, Any], ...] = (
    {},
    {"lengths_known": True},
    {"service_weights": (1.0, 2.0)},
)
"""What a policy may ask of a scenario: nothing, the output lengths, or counters of service."""


@dataclass(frozen=True)
class Traffic:
    """What is run.

    Args:
        engine: the scenario whose engine serves the trace; its slots are the most that are used.
        trace: the file.
        window_s: only the requests in [start, end) seconds.
        load: fraction of the LP capacity to which time is stretched; None: real time.
        ttft_ms, tpot_ms: targets of every request; policies that go by targets get them too.
        drain_s: simulated seconds after the last arrival.
        seed: of whatever is random in a policy.

    Raises LLMGymError on bad numbers, an unreadable trace, an empty window, a network, and where a
    request can never fit into KV memory.
    """

    engine: Scenario
    trace: Path
    window_s: tuple[float, float] | None = None
    load: float | None = None
    ttft_ms: float = TTFT_MS
    tpot_ms: float = TPOT_MS
    drain_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_kind("engine", self.engine, Scenario)
        object.__setattr__(self, "trace", check_path("trace", self.trace))
        if self.window_s is not None:
            keep_list(self, "window_s", what="two times, start and end")
            if len(self.window_s) != 2:
                raise LLMGymError(f"window_s must be two times, got {shown(self.window_s)}.")
        keep_number(self, "drain_s", low=0)
        keep_number(self, "seed", low=0, high=2**32 - 1, integer=True)
        if self.engine.is_network:
            raise LLMGymError(
                f"Scenario {self.engine.name!r} is a network; traces need one engine."
            )
        problem = policies.memory_problem(self.scenario)
        if problem:
            raise LLMGymError(problem)

    @cached_property
    def scenario(self) -> Scenario:
        """The engine with the requests of the trace, all in one class."""
        replay = read_trace(self.trace)
        replay = replay if self.window_s is None else replay.window(*self.window_s)
        one_class = replace(
            replay,
            tenant=None,
            tenants=(),
            priority=None,
            ttft_ms=self.ttft_ms,
            tpot_ms=self.tpot_ms,
        )
        return at_load(replace(self.engine, workload=one_class, name=self.trace.stem), self.load)

    def config(self) -> dict[str, Any]:
        """Everything that the numbers depend on but the policies, as JSON."""
        settings = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("engine", "trace")
        }
        return {
            **settings,
            "engine": toml_writer.dumps(self.engine),
            "trace": {"file": self.trace.name, "sha256": digest(self.trace, "trace", MOST_BYTES)},
            "versions": {name: metadata.version(name) for name in VERSIONED},
            "python": platform.python_version(),
        }


def run(
    traffic: Traffic,
    names: tuple[str, ...],
    out: Path,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Run the policies that are not in the result folder yet.

    Args:
        traffic: what is run.
        names: of the policies.
        out: the result folder; it is made if it is missing.
        progress: called with the number of policies done, their number in all, and a label.

    Returns:
        One record for each of ``names``, in their order.

    Raises LLMGymError for an unknown policy, or where ``out`` holds another run or cannot be written.
    """
    check_kind("traffic", traffic, Traffic)
    names = as_list("names", names, str, "names of policies")
    for name in names:
        policies.resolve(name)
    digests = policies.digests(names)
    # Runs are added to a folder one by one: the name of each says what was in the policy's file.
    files = {n: f"{slug(n)}-{digests[n][:12]}" if n in digests else slug(n) for n in names}
    todo = [Task(files[name], name, partial(_record, traffic, name)) for name in names]
    results = measure(traffic.config(), todo, out, progress)
    return [results[task.name] for task in todo]


def _record(traffic: Traffic, name: str) -> dict[str, Any]:
    """A policy's numbers, and the seconds that it took, compilation and repetition included."""
    policy, changed = _adapted(policies.resolve(name), traffic)
    given = _given(policy, traffic.scenario)
    scenario = replace(traffic.scenario, **given)
    last_s = scenario.demand.end_s
    assert last_s is not None
    end_s = last_s + traffic.drain_s
    wall, cpu = time.perf_counter(), time.process_time()
    found = _simulated(scenario, policy, max(end_s, 1e-3), traffic.seed)
    summary = found.summary
    (level,) = summary["slo"].values()
    return {
        "policy": name,
        "settings": changed,
        "given": given,
        "slots": found.scenario.slots,
        "most_in_system": int(found.raw["present"].max()),
        "preemptions": int(found.requests.preemptions.sum()),
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        **{k: v for k, v in summary.items() if k not in ("slo", "job_slo", "fairness")},
        **{k: level[k] for k in ("undecided", "ttft_attainment", "tpot_attainment")},
    }


def _simulated(scenario: Scenario, policy: Any, duration_s: float, seed: int) -> Run:
    """The run, in a table as small as will do: that is much faster."""
    small = replace(scenario, slots=min(FIRST_SLOTS, scenario.slots))
    try:
        return simulate(small, policy, duration_s=duration_s, seed=seed, refuse_drops=True)
    except TableFullError:
        return simulate(scenario, policy, duration_s=duration_s, seed=seed)


def _adapted(policy: Any, traffic: Traffic) -> tuple[Any, dict[str, Any]]:
    """The policy with the targets, and with prompts split if it could not serve them whole."""
    if not is_dataclass(policy):
        return policy, {}
    plain = {f.name: f.default for f in fields(policy)}
    wanted = {"ttft_ms": traffic.ttft_ms, "tbt_ms": traffic.tpot_ms}
    if policies.check(policy, traffic.scenario):
        wanted["prompts"] = "split"  # type: ignore[assignment]
    changed = {k: v for k, v in wanted.items() if k in plain and getattr(policy, k) == plain[k]}
    return replace(policy, **changed), changed  # type: ignore[type-var]


def _given(policy: Any, scenario: Scenario) -> dict[str, Any]:
    """The least of GIVEN with which the policy works. Raises LLMGymError if it works with none."""
    for given in GIVEN:
        physics, keys = simulator.lower(replace(scenario, **given)), rollouts.keys(0, 1)
        state = jax.eval_shape(simulator.init, physics, keys)
        view = jax.eval_shape(simulator.view, physics, state)
        try:
            jax.eval_shape(partial(_first_decision, policy), keys, view)
        except LLMGymError:
            if given == GIVEN[-1]:
                raise
        else:
            return given
    raise AssertionError("unreachable")


def _first_decision(policy: Any, keys: Any, view: View) -> Any:
    return decisions.decide(policy, keys, view, decisions.start(policy, view))
