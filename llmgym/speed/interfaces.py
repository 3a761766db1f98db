"""``llmgym speed``: how fast the engine runs through every interface, and beside it its rivals.

``measure`` makes one measurement with a policy in the loop, ``table`` many of all kinds. The rivals are
the event loops of llmgym.speed.event_loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np

from llmgym import baselines
from llmgym.core.blocks import cores
from llmgym.core.errors import check_number
from llmgym.evaluation import policies
from llmgym.evaluation.fleet import SCENARIO, SpeedResult, measure, rates, speed_scenario
from llmgym.speed import event_loop as rival

Row = dict[str, Any]
Job = Callable[[], Row]
Progress = Callable[[int, int, str], None]
"""Called with the number of measurements done, their number in all, and a label of the next one."""

ENGINE = "llmgym/Engine-v0"


def as_json(result: SpeedResult) -> dict[str, Any]:
    """The result as plain numbers, strings and lists."""
    return asdict(result)


def table(quick: bool = False, progress: Progress | None = None, seed: int = 0) -> list[Row]:
    """Many measurements, in about two minutes on two cores.

    Args:
        quick: a few small ones, for a look.
        progress: called before each measurement, and at the end.
        seed: of the arrivals, of random policies and of random actions.

    Returns:
        A row for each: what, num_envs, slots, policy, steps_per_s (median of repeats; None where something
        is not installed), compile_s (to the first step; None where nothing is compiled) and a note.
    """
    check_number("seed", seed, low=0, high=2**32 - 1, integer=True)
    jobs, rows = _jobs(quick, seed), []
    for done, (label, job) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), label)
        rows.append(job())
    if progress is not None:
        progress(len(jobs), len(jobs), "done")
    return rows


def _jobs(quick: bool, seed: int = 0) -> list[tuple[str, Job]]:
    batches, slots, repeats = ((16,), 32, 1) if quick else ((64, 1024), 256, 5)
    settings = {"seed": seed} | ({"steps": 10, "warm_up": 10} if quick else {})
    most = batches[-1]

    def rollout(num_envs: int, slots: int, name: str) -> tuple[str, Job]:
        # Split prompts where the policy has the choice: a geometric prompt may exceed any budget.
        fields = baselines.POLICIES[name].__dataclass_fields__
        policy = baselines.make(name, **({"prompts": "split"} if "prompts" in fields else {}))
        label = f"{name}, {num_envs} environments, {slots} slots"
        return label, partial(_rollout, num_envs, slots, policy, repeats=repeats, **settings)

    def network(name: str, policy: str) -> tuple[str, Job]:
        return f"{name}, {policy}", partial(
            _rollout, most, slots, policy, scenario=name, repeats=repeats, **settings
        )

    networks = () if quick else (("fork-join", "sarathi"), ("load-balanced", "sarathi"))
    others = () if quick else tuple(n for n in (*baselines.PAPER, "greedy_rate") if n != "sarathi")
    return [
        *(rollout(n, slots, "sarathi") for n in (1, *batches)),
        *(rollout(most, size, "sarathi") for size in (() if quick else (128, 1024))),
        *(rollout(most, slots, name) for name in others),
        *(network(*of) for of in (("rybko-stolyar-reversed", "priority"), *networks)),
        ("gym.make", partial(_single, slots, repeats, seed)),
        *((f"gym.make_vec, {n}", partial(_vector, n, slots, repeats, seed)) for n in batches),
        *((f"SB3VecEnv, {n}", partial(_sb3, n, slots, repeats, seed)) for n in batches),
        ("event loop", partial(_event_loop, 1, slots, repeats, seed, 1_000 if quick else 10_000)),
        *(
            (
                f"compiled event loop, {n}",
                partial(_event_loop, n, slots, repeats, seed, 10_000, compiled=True),
            )
            for n in sorted({1, cores()})
        ),
    ]


def _row(
    what: str,
    num_envs: int,
    slots: int,
    policy: str,
    found: Sequence[float] = (),
    compile_s: float | None = None,
    note: str = "",
) -> Row:
    return {
        "what": what,
        "num_envs": num_envs,
        "slots": slots,
        "policy": policy,
        "steps_per_s": float(np.median(found)) if len(found) else None,
        "compile_s": compile_s,
        "note": note,
    }


def _rollout(num_envs: int, slots: int, policy: policies.PolicyLike, **settings: Any) -> Row:
    result = measure(num_envs, slots, policy, **settings)
    note = f"{result.mean_in_system:.0f} present"
    if result.dropped:
        note += f", {result.dropped / result.arrived:.1%} of arrivals dropped"
    speed = [result.steps_per_s]
    what = "compiled rollout"
    if result.scenario != SCENARIO:
        what += f", {result.scenario}"
    return _row(what, num_envs, slots, result.policy, speed, result.compile_s, note)


def _stepped(
    what: str,
    num_envs: int,
    slots: int,
    repeats: int,
    env: Any,
    actions: Sequence[Any],
    seed: int | None = None,
) -> Row:
    """Steps from Python with actions made beforehand."""
    began = time.perf_counter()
    env.reset(**({} if seed is None else {"seed": seed}))
    env.step(actions[0])
    compile_s = time.perf_counter() - began

    def run() -> int:
        for action in actions:
            result = env.step(action)
            if isinstance(env, gym.Env) and result[3]:  # truncated; the others reset by themselves
                env.reset()
        return len(actions) * num_envs

    found = rates(run, repeats)
    env.close()
    return _row(what, num_envs, slots, "random tiles", found, compile_s)


def _single(slots: int, repeats: int, seed: int) -> Row:
    env = gym.make(ENGINE, scenario=speed_scenario(slots))
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(200)]
    return _stepped("gym.make", 1, slots, repeats, env, actions, seed)


def _vector(num_envs: int, slots: int, repeats: int, seed: int) -> Row:
    env = gym.make_vec(ENGINE, num_envs=num_envs, scenario=speed_scenario(slots))
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(20)]
    return _stepped("gym.make_vec", num_envs, slots, repeats, env, actions, seed)


def _sb3(num_envs: int, slots: int, repeats: int, seed: int) -> Row:
    try:
        from llmgym.integrations.sb3 import SB3VecEnv
    except ImportError as error:
        return _row("SB3VecEnv", num_envs, slots, "random tiles", note=str(error))
    env = gym.make_vec(ENGINE, num_envs=num_envs, scenario=speed_scenario(slots))
    env.action_space.seed(seed)
    actions = [env.action_space.sample() for _ in range(20)]
    wrapped = SB3VecEnv(env)
    wrapped.seed(seed)  # its reset takes none
    return _stepped("SB3VecEnv", num_envs, slots, repeats, wrapped, actions)


def _event_loop(
    num_envs: int, slots: int, repeats: int, seed: int, requests: int, compiled: bool = False
) -> Row:
    """An environment for each thread, drawn and run to the end of its requests."""
    what = "compiled event loop (numba)" if compiled else "event loop in Python"
    if compiled and rival.machine_code() is None:
        return _row(what, num_envs, slots, "sarathi", note="needs numba: pip install 'llmgym[dev]'")
    scenario = speed_scenario(slots)

    def one(thread: int, count: int) -> int:
        drawn = rival.Requests.draw(scenario, count, seed + thread)
        return rival.simulate(scenario, drawn, 2 * count, compiled).steps

    began = time.perf_counter()
    one(0, 10)
    compile_s = time.perf_counter() - began if compiled else None
    count = 20 * requests if compiled else requests
    with ThreadPoolExecutor(num_envs) as pool:
        found = rates(lambda: sum(pool.map(partial(one, count=count), range(num_envs))), repeats)
    note = "one core, sarathi only" if num_envs == 1 else f"{num_envs} threads, sarathi only"
    return _row(what, num_envs, slots, "sarathi", found, compile_s, note)


__all__ = ["SpeedResult", "as_json", "measure", "table"]
