"""How many steps per second: the engine in JAX, its Gymnasium forms, and a plain event loop beside them.

A step is one decision epoch of one environment with the policy in the loop. Environments run in blocks
that fit the cache of a core, blocks in threads, one for each core; results do not depend on that.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from llmgym import dynamics, policies
from llmgym.errors import check_number
from llmgym.evaluation import rival
from llmgym.evaluation.rollout import keys as environment_keys
from llmgym.evaluation.rollout import policy_key
from llmgym.scenario import Scenario
from llmgym.scenario_files import scenario as named
from llmgym.state import State

BLOCK = 128
"""Environments of a block."""

LOAD = 0.8
"""Load of the measurements: about 100 requests present, few enough dropped at 128 slots."""

REPEATS = 7


@dataclass(frozen=True)
class Speed:
    """One measurement. ``steps_per_s`` is the median over repeats, ``best`` the fastest of them."""

    num_envs: int
    slots: int
    policy: str
    load: float
    steps_per_s: float
    best: float
    compile_s: float
    peak_memory_mb: float
    dropped: int
    arrived: int
    mean_in_system: float
    threads: int
    device: str


def scenario_of(slots: int, load: float) -> Scenario:
    """Poisson arrivals and geometric lengths, means (129, 112), on the paper's engine."""
    return named("geometric", slots=slots).at_load(load)


def measure(
    num_envs: int = 1024,
    slots: int = 256,
    policy: policies.PolicyLike = "sarathi",
    load: float = LOAD,
    steps: int = 100,
    seed: int = 0,
) -> Speed:
    """Steps per second of ``num_envs`` environments under ``policy``, after a warm-up of 1,000 steps."""
    for name, value in (("num_envs", num_envs), ("slots", slots), ("steps", steps)):
        check_number(name, value, low=1, integer=True)
    physics = dynamics.lower(scenario_of(slots, load))
    chosen = policies.resolve(policy)
    keys = environment_keys(seed, num_envs)
    blocks = [keys[i : i + BLOCK] for i in range(0, num_envs, BLOCK)]
    states: list[State] = [jax.jit(dynamics.init)(physics, key) for key in blocks]
    run = jax.jit(partial(_steps, policy=chosen, length=steps), donate_argnums=1)
    start = time.perf_counter()
    programs = {
        key.size: run.lower(physics, state, key).compile()
        for key, state in zip(blocks, states, strict=True)
    }
    compile_s = time.perf_counter() - start

    def advance(i: int) -> None:
        states[i] = jax.block_until_ready(programs[blocks[i].size](physics, states[i], blocks[i]))

    threads = min(os.cpu_count() or 1, len(blocks))
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(-(-1000 // steps)):
            list(pool.map(advance, range(len(blocks))))
        for _ in range(REPEATS):
            start = time.perf_counter()
            list(pool.map(advance, range(len(blocks))))
            rates.append(num_envs * steps / (time.perf_counter() - start))
    area = sum(s.totals.request_ticks.to_numpy().sum() for s in states)
    return Speed(
        num_envs=num_envs,
        slots=slots,
        policy=policies.name_of(policy),
        load=load,
        steps_per_s=float(np.median(rates)),
        best=max(rates),
        compile_s=compile_s,
        peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        dropped=int(sum(np.asarray(s.totals.dropped).sum() for s in states)),
        arrived=int(sum(np.asarray(s.totals.arrived).sum() for s in states)),
        mean_in_system=float(area / sum(s.clock.to_numpy().sum() for s in states)),
        threads=threads,
        device=jax.devices()[0].device_kind,
    )


def _steps(
    physics: dynamics.Physics, state: State, key: jax.Array, policy: Any, length: int
) -> State:
    def body(state: State, _: None) -> tuple[State, None]:
        view = dynamics.view(physics, state)
        batch = policies.compose(policy, policy_key(key, state.steps), view)
        return dynamics.step(physics, state, batch)[0], None

    return jax.lax.scan(body, state, None, length=length)[0]


def as_json(result: Speed) -> dict[str, Any]:
    """The measurement as a plain dictionary."""
    return asdict(result)


Row = dict[str, Any]


def table(progress: Callable[[int, int, str], None] | None = None) -> list[Row]:
    """Batch sizes, tables, policies, the Gymnasium forms and the event loop, each as a row."""
    cases: list[tuple[str, Callable[[], Row]]] = []
    for num_envs, slots, policy in [
        *((n, 256, "sarathi") for n in (1, 64, 1024)),
        *((1024, slots, "sarathi") for slots in (128, 1024)),
        *((1024, 256, p) for p in ("orca", "vllm", "faster_transformer", "greedy_rate")),
    ]:
        label = f"JAX scan, {num_envs} x {slots}, {policy}"
        cases.append((label, partial(_jax_row, num_envs, slots, policy)))
    cases.append(("gym.make, random actions", _gym_row))
    cases += [(f"gym.make_vec, {n}", partial(_vector_row, n)) for n in (64, 1024)]
    cases.append(("SB3 adapter, 1024", _sb3_row))
    cases.append(("event loop in Python", partial(_rival_row, 256, False)))
    cases += [
        (f"event loop compiled by numba, {slots}", partial(_rival_row, slots, True))
        for slots in (128, 256)
    ]
    rows = []
    for done, (label, case) in enumerate(cases):
        if progress is not None:
            progress(done, len(cases), label)
        rows.append(case())
    if progress is not None:
        progress(len(cases), len(cases), "done")
    return rows


def _row(what: str, num_envs: int, slots: int, policy: str, rate: float | None, note: str) -> Row:
    return {
        "what": what,
        "num_envs": num_envs,
        "slots": slots,
        "policy": policy,
        "steps_per_s": rate,
        "note": note,
    }


def _jax_row(num_envs: int, slots: int, policy: str) -> Row:
    found = measure(num_envs, slots, policy)
    note = f"compiled in {found.compile_s:.1f} s, {found.mean_in_system:.0f} in system"
    if found.dropped:
        note += f", {100 * found.dropped / found.arrived:.2f} % dropped"
    what = f"JAX, {found.threads} thread{'s' if found.threads > 1 else ''}"
    return _row(what, num_envs, slots, policy, found.steps_per_s, note)


def _median_rate(work: Callable[[], int]) -> float:
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        rates.append(work() / (time.perf_counter() - start))
    return float(np.median(rates))


def _gym_row() -> Row:
    from llmgym.envs.gym_env import EngineEnv

    env = EngineEnv(scenario=scenario_of(256, LOAD))
    env.reset(seed=0)
    actions = [env.action_space.sample() for _ in range(200)]

    def work() -> int:
        for action in actions:
            env.step(action)
        return len(actions)

    work()
    return _row("gym.make", 1, 256, "random tiles", _median_rate(work), "from Python")


def _vector_env(num_envs: int) -> Any:
    from llmgym.envs.vector_env import EngineVectorEnv

    envs = EngineVectorEnv(num_envs, scenario=scenario_of(256, LOAD))
    envs.action_space.seed(0)
    return envs


def _vector_row(num_envs: int) -> Row:
    envs = _vector_env(num_envs)
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(20)]

    def work() -> int:
        for action in actions:
            envs.step(action)
        return num_envs * len(actions)

    work()
    return _row("gym.make_vec", num_envs, 256, "random tiles", _median_rate(work), "from Python")


def _sb3_row(num_envs: int = 1024) -> Row:
    try:
        from llmgym.integrations.sb3 import SB3VecEnv
    except ImportError:
        return _row(
            "SB3 adapter", num_envs, 256, "random tiles", None, "needs the extra llmgym[sb3]"
        )
    envs = SB3VecEnv(_vector_env(num_envs))
    envs.reset()
    random = np.random.default_rng(0)
    actions = [random.integers(envs.action_space.n, size=num_envs) for _ in range(20)]

    def work() -> int:
        for action in actions:
            envs.step(action)
        return num_envs * len(actions)

    work()
    return _row("SB3 adapter", num_envs, 256, "random tiles", _median_rate(work), "from Python")


def _rival_row(slots: int, compile_it: bool) -> Row:
    loop = rival.compiled() if compile_it else rival.event_loop
    what = "event loop, numba" if compile_it else "event loop, Python"
    if loop is None:
        return _row(what, 1, slots, "sarathi", None, "needs the extra llmgym[dev]")
    scenario = scenario_of(slots, LOAD)
    steps = 200_000 if compile_it else 3_000
    requests, ticks = rival.draw_requests(scenario, 3 * steps), rival.batch_ticks(scenario)
    loop(*requests, ticks, slots, 100)
    found: list[float] = []

    def work() -> int:
        _, _, clock, _, _, area = loop(*requests, ticks, slots, steps)
        found.append(area / clock)
        return steps

    rate = _median_rate(work)
    note = f"one core, requests drawn beforehand, {found[0]:.0f} in system"
    return _row(what, 1, slots, "sarathi", rate, note)


def rich_table(rows: list[Row]) -> Table:
    """The rows for a terminal."""
    found = Table(title="Steps per second (median of repeats)", box=SIMPLE_HEAD)
    for i, heading in enumerate(("", "envs", "slots", "policy", "steps/s", "note")):
        found.add_column(heading, justify="right" if i in (1, 2, 4) else "left")
    for row in rows:
        rate = "-" if row["steps_per_s"] is None else f"{row['steps_per_s']:,.0f}"
        found.add_row(
            row["what"], str(row["num_envs"]), str(row["slots"]), row["policy"], rate, row["note"]
        )
    return found
