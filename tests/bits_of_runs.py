"""Prints digests of small runs, those that are named; ``test_precision`` compares two processes' prints."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

import llmgym
from llmgym import baselines
from llmgym.engine import simulator
from llmgym.evaluation.rollout import keys


def digest(things: Any) -> str:
    """Of the values and types of all arrays in a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(things):
        array = np.asarray(leaf)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def small(name: str, **changes: Any) -> llmgym.Scenario:
    """A scenario with room for few requests."""
    return llmgym.scenario(name, slots=32, **changes)


def run(scenario: llmgym.Scenario, policy: str) -> str:
    """Two replications of two seconds and their tables."""
    return digest(llmgym.simulate(scenario, policy, duration_s=2.0, num_envs=2, seed=3).raw)


def engine() -> str:
    """Prompts and outputs of several laws, bursty arrivals, random choices."""
    bursty = llmgym.MMPP(15.0, (1.0, 6.0), (2.0, 0.5))
    jobs = (
        llmgym.Workload(bursty, llmgym.Geometric(60), llmgym.Geometric(9), name="a"),
        llmgym.Workload(llmgym.GammaRenewal(5.0, 2.0), llmgym.Uniform(1, 90), 5, name="b"),
    )
    scenario = llmgym.Scenario.single_engine(llmgym.Staircase(5.0, 20.0, 64), 128, jobs, slots=32)
    return run(scenario, "random")


def environment() -> str:
    """Some steps of the Gymnasium environment, masked actions drawn by NumPy."""
    env = gym.make("llmgym/Engine-v0", scenario=small("geometric"), load=0.9, max_steps=50)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=5)
    seen = [observation]
    for _ in range(20):
        action = rng.choice(np.flatnonzero(info["action_mask"][: env.action_space.n]))
        observation, reward, *_, info = env.step(int(action))
        seen += [observation, np.float64(reward), np.asarray(info["backlog_tokens"])]
    return digest(seen)


def vector() -> str:
    """The vector environment, across a reset."""
    env = gym.make_vec("llmgym/Engine-v0", 2, scenario=small("geometric"), load=0.9, max_steps=5)
    seen = [env.reset(seed=5)[0]]
    seen += [env.step(np.ones(2, np.int64))[:2] for _ in range(8)]
    return digest(seen)


def functional() -> str:
    """The functions inside of a caller's own jit and scan, with a caller's own arrays."""
    env = llmgym.functional("llmgym/Engine-v0", scenario=small("geometric"), load=0.9)

    @jax.jit
    def several(key: jax.Array, actions: jax.Array) -> Any:
        return jax.lax.scan(env.step, env.init(key), actions)

    return digest(several(jax.random.key(2), jnp.arange(12) % 3))


def own_loop() -> str:
    """The physics and a baseline called by hand."""
    scenario, policy = small("geometric"), baselines.make("sarathi")
    physics, key = simulator.lower(scenario), keys(0, 2)

    @jax.jit
    def several(state: Any) -> Any:
        def body(state: Any, _: None) -> Any:
            after, info = simulator.step(
                physics, state, policy(key, simulator.view(physics, state))
            )
            return after, info.duration

        return jax.lax.scan(body, state, None, length=20)

    return digest(several(simulator.init(physics, key)))


RUNS: dict[str, Callable[[], str]] = {
    "engine": engine,
    "memory": lambda: run(small("paper-gpu-memory"), "vllm_v1"),
    "network": lambda: run(small("rybko-stolyar"), "priority"),
    "environment": environment,
    "vector": vector,
    "functional": functional,
    "own loop": own_loop,
    "capacity": lambda: digest(llmgym.capacity("paper-gpu-memory").requests_per_s),
}

if __name__ == "__main__":
    print(json.dumps({name: RUNS[name]() for name in sys.argv[1:]}))
