"""Compare the speed of the simulator with that of another checkout, the two in turn.

    python tools/speed_against.py ../llmgym-before

Each checkout runs in a process of its own; one computes while the other waits, many short times over, so
that a machine which is now fast and now slow treats both alike. What counts is the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

CASES: dict[str, tuple[str, float | None, str, int]] = {
    "single engine": ("geometric", 0.8, "sarathi", 256),
    "with KV memory": ("paper-gpu-memory", None, "vllm_v1", 256),
    "rybko-stolyar-reversed": ("rybko-stolyar-reversed", 0.8, "priority", 256),
    "load-balanced": ("load-balanced", 0.8, "sarathi", 256),
    "fork-join": ("fork-join", 0.8, "sarathi", 64),
}
"""Name: scenario, load, policy, slots."""

STEPS = 64


def work(name: str, num_envs: int) -> None:
    """Run STEPS steps for every line on the input, and answer with the CPU time in seconds."""
    from dataclasses import replace

    import jax

    import llmgym
    from llmgym import baselines
    from llmgym.evaluation.rollout import keys, policy_key

    try:
        from llmgym.engine import simulator
        from llmgym.evaluation.policies import compose
    except ImportError:  # before version 0.2
        from llmgym import model as simulator  # type: ignore[no-redef, attr-defined]
        from llmgym.policies import compose  # type: ignore[no-redef]

    scenario, load, policy_name, slots = CASES[name]
    chosen: Any = replace(llmgym.scenario(scenario), slots=slots)
    if load is not None:
        chosen = (
            chosen.at_load(load) if hasattr(chosen, "at_load") else llmgym.at_load(chosen, load)
        )
    policy, physics, key = baselines.make(policy_name), simulator.lower(chosen), keys(0, num_envs)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: Any) -> Any:
        def step(state: Any, _: None) -> tuple[Any, None]:
            seen = simulator.view(physics, state)
            batch = compose(policy, policy_key(key, state.steps), seen)
            return simulator.step(physics, state, batch)[0], None

        return jax.lax.scan(step, state, None, length=STEPS)[0]

    state = jax.jit(simulator.init)(physics, key)
    for _ in range(4):  # into the steady state
        state = jax.block_until_ready(advance(state))
    print("ready", flush=True)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        state = jax.block_until_ready(advance(state))
        print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]), flush=True)


class Worker:
    """A checkout that waits for its turn."""

    def __init__(self, folder: Path, name: str, num_envs: int) -> None:
        command = [sys.executable, __file__, str(folder), "--work", name]
        self.process = subprocess.Popen(
            [*command, "--num-envs", str(num_envs)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit("A checkout could not be run; its message stands above.")
        return line

    def turn(self) -> list[float]:
        """CPU and wall time of one turn, seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        times: list[float] = json.loads(self.answer())
        return times

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(other: Path, name: str, num_envs: int, turns: int) -> None:
    """Print a line for one case."""
    folders = other.resolve(), Path(__file__).parents[1]
    workers = [Worker(folder, name, num_envs) for folder in folders]
    times = [[worker.turn() for worker in workers] for _ in range(turns)]
    for worker in workers:
        worker.end()
    unit = 1e9 / STEPS / num_envs
    before, after = (statistics.median(t[k][1] for t in times) * unit for k in (0, 1))
    wall, cpu = (sorted(t[0][n] / t[1][n] for t in times) for n in (1, 0))
    print(
        f"{name:24}{before:10,.0f}{after:10,.0f}{statistics.median(wall):10.2f}"
        f"{wall[turns // 4]:8.2f}..{wall[-1 - turns // 4]:.2f}{statistics.median(cpu):10.2f}",
        flush=True,
    )


def main() -> None:
    """Read the options; compare, or be one of the two that are compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument(
        "--case", action="append", choices=list(CASES), help="one or several of all"
    )
    parser.add_argument("--num-envs", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.work, given.num_envs)
    print(
        f"{given.num_envs:,} environments; ns per environment and step, median of {given.turns} turns"
    )
    print(f"{'':24}{'other':>10}{'this':>10}{'faster':>10}{'quartiles':>14}{'by CPU':>8}")
    for name in given.case or CASES:
        compare(given.other, name, given.num_envs, given.turns)
    return None


if __name__ == "__main__":
    main()
