"""Many environments at full speed, and the measurement of that speed: steps (decisions) a second.

The environments are split into blocks that stay in a core's cache, and a thread for each core takes
block after block. Every block is a compiled scan of its own that keeps nothing but the state. Results
do not depend on the blocks: an environment's requests depend on the seed and its number alone.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np

from llmgym.core.blocks import block_sizes, compiled, cores
from llmgym.core.checks import check_seed
from llmgym.core.errors import UnservableWarning, check_number
from llmgym.core.user_code import warn
from llmgym.engine import simulator
from llmgym.evaluation import policies, rollout
from llmgym.evaluation.limits import check_work
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load

SCENARIO = "geometric"
"""Poisson arrivals, geometric prompts and outputs of 129 and 112 tokens in the mean, budget 512."""

LOAD = 0.8
"""Share of the LP capacity. About 105 requests are present at 128 slots, where 2 % are dropped, and 123 at
256, where none is."""

WARM_UP = 1000
"""Steps before the clock starts: an engine that starts empty is as full as it gets by then."""


@partial(jax.jit, static_argnames=("policy", "length"), donate_argnums=1)
def _advance(
    physics: Any, carry: rollout.Carry, key: jax.Array, policy: policies.Policy, length: int
) -> rollout.Carry:
    """``length`` steps of a block of environments."""
    return rollout.scan(physics, policy, carry, key, length)[0]


class Fleet:
    """``num_envs`` environments with a policy in the loop, advanced together.

    Args:
        scenario, policy, num_envs, seed: as in ``llmgym.simulate``.
        steps: of every environment in one compiled scan.
        block: most environments of a block; None: as many as fit a core's cache.
        threads: that run blocks; None: one for each core. Without ``block`` and ``threads`` an
            accelerator takes all environments as one block from one thread.

    Attributes:
        carries: of the blocks, their environments in order: states, and what the policy remembers.
        compile_s: seconds it took to trace and compile.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: policies.Policy,
        num_envs: int,
        steps: int,
        seed: int = 0,
        block: int | None = None,
        threads: int | None = None,
    ) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self.threads = threads or (cores() if on_cpu else 1)
        self.physics, self.num_envs, self.steps = simulator.lower(scenario), num_envs, steps
        engines = sum(e.replicas for e in scenario.engines)
        sizes = block_sizes(
            num_envs,
            scenario.slots * engines,
            self.threads,
            block or (None if on_cpu else num_envs),
        )
        self.block = sizes[0]
        keys, ends = rollout.keys(seed, num_envs), np.cumsum(sizes)
        self.keys = [keys[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        self.carries = [rollout.begin(self.physics, policy, key) for key in self.keys]
        began = time.perf_counter()
        self._programs: dict[int, Any] = {}
        for carry, key in zip(self.carries, self.keys, strict=True):
            if key.size not in self._programs:
                lowered = _advance.lower(self.physics, carry, key, policy, steps)
                self._programs[key.size] = compiled(lowered)
        self.compile_s = time.perf_counter() - began

    def run(self, times: int = 1) -> int:
        """Make ``times * steps`` steps in every environment; returns their number over all."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(partial(self._run_block, times=times), range(len(self.carries))))
        return times * self.steps * self.num_envs

    def _run_block(self, number: int, times: int) -> None:
        key, carry = self.keys[number], self.carries[number]
        for _ in range(times):
            carry = self._programs[key.size](self.physics, carry, key)
        self.carries[number] = jax.block_until_ready(carry)

    @property
    def states(self) -> list[Any]:
        """States of the blocks; their environments stand in order."""
        return [carry.state for carry in self.carries]

    def totals(self) -> dict[str, int]:
        """Sums over all environments: steps, clock and request_ticks (ticks), arrived, dropped."""

        def total(pick: Any) -> int:
            return sum(int(np.asarray(pick(state), np.int64).sum()) for state in self.states)

        return {
            "steps": total(lambda s: s.steps),
            "clock": total(lambda s: s.clock.to_numpy()),
            "request_ticks": total(lambda s: s.totals.request_ticks.to_numpy()),
            "arrived": total(lambda s: s.totals.arrived),
            "dropped": total(lambda s: s.totals.dropped),
        }


@dataclass(frozen=True)
class SpeedResult:
    """What ``measure`` found.

    Attributes:
        steps_per_s, best_steps_per_s: median and best of the repeats. The steps of all environments
            count: 1,024 environments that make one step each are 1,024 steps.
        compile_s: seconds to trace and compile the steps.
        peak_memory_mb: of the whole process so far.
        dropped, arrived: requests over the whole run, warm-up included.
        mean_in_system: requests present, time average over the repeats.
        block: environments of a block; threads: that ran blocks; cores: that the process may use.
        cores_used: processor time over wall time: below ``threads`` where other programs ran as well.
        steps_per_core_s: steps per second of processor time, which such programs disturb less.
    """

    steps_per_s: float
    best_steps_per_s: float
    compile_s: float
    peak_memory_mb: float
    dropped: int
    arrived: int
    mean_in_system: float
    num_envs: int
    slots: int
    scenario: str
    policy: str
    load: float
    block: int
    threads: int
    cores: int
    cores_used: float
    steps_per_core_s: float
    devices: list[str]


def measure(
    num_envs: int = 1024,
    slots: int = 256,
    policy: policies.PolicyLike = "sarathi",
    steps: int = 200,
    seed: int = 0,
    load: float = LOAD,
    scenario: Scenario | str = SCENARIO,
    repeats: int = 7,
    warm_up: int = WARM_UP,
    block: int | None = None,
    threads: int | None = None,
) -> SpeedResult:
    """Steps per second of ``num_envs`` environments with ``policy`` in the loop.

    Args:
        num_envs, slots: environments, and rows of their request tables.
        steps: of every environment between two returns to Python.
        scenario: an engine, or a network, whose step lasts until the next event at any engine.
        load: fraction of the LP capacity of the scenario.
        repeats: timed after ``warm_up`` steps, each at least ``steps`` steps and about 0.3 s.
        policy, seed, block, threads: see Fleet.

    Raises LLMGymError. Warns (UnservableWarning) where the policy can never serve some requests.
    """
    seed, (warm_up,) = check_seed(seed), _counts(0, warm_up=warm_up)
    num_envs, steps, repeats = _counts(1, num_envs=num_envs, steps=steps, repeats=repeats)
    block, threads = _counts(1, block=block, threads=threads)
    chosen = policies.resolve(policy)
    scenario = at_load(replace(as_scenario(scenario), slots=slots), load)
    if problem := policies.check(chosen, scenario):
        warn(problem, UnservableWarning)
    check_work(scenario, num_envs)
    fleet = Fleet(scenario, chosen, num_envs, steps, seed, block, threads)
    fleet.run(-(-warm_up // steps))
    before, began, work = fleet.totals(), time.perf_counter(), time.process_time()
    found = rates(fleet.run, repeats)
    work, took = time.process_time() - work, time.perf_counter() - began
    after = fleet.totals()
    gone = {name: after[name] - before[name] for name in after}
    return SpeedResult(
        steps_per_s=float(np.median(found)),
        best_steps_per_s=max(found),
        compile_s=fleet.compile_s,
        peak_memory_mb=peak_memory_mb(),
        dropped=after["dropped"],
        arrived=after["arrived"],
        mean_in_system=gone["request_ticks"] / max(gone["clock"], 1),
        num_envs=num_envs,
        slots=slots,
        scenario=scenario.name,
        policy=policies.name_of(chosen),
        load=load,
        block=fleet.block,
        threads=fleet.threads,
        cores=cores(),
        cores_used=work / took,
        steps_per_core_s=gone["steps"] / work,
        devices=[str(device) for device in jax.devices()],
    )


def _counts(low: int, **counts: Any) -> list[Any]:
    """The numbers as int; None stays."""
    limits: Any = {"low": low, "high": 2**20, "integer": True}
    return [n if n is None else check_number(name, n, **limits) for name, n in counts.items()]


def speed_scenario(slots: int, load: float = LOAD) -> Scenario:
    """The scenario on which all speeds are measured."""
    return at_load(replace(as_scenario(SCENARIO), slots=slots), load)


def rates(run: Callable[[], int], repeats: int, seconds: float = 0.3) -> list[float]:
    """Steps a second of each of several repeats.

    Args:
        run: makes some steps and returns how many. Its first call is not counted: it shows how often
            to call it in a repeat.
        repeats: how many are timed.
        seconds: about how long a repeat lasts at least.
    """
    began = time.perf_counter()
    run()
    times = max(int(np.ceil(seconds / (time.perf_counter() - began))), 1)
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        made = sum(run() for _ in range(times))
        found.append(made / (time.perf_counter() - began))
    return found


def peak_memory_mb() -> float:
    """The most memory that this process has held so far, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
