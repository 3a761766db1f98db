"""Small environments that several test modules share: each is compiled once in a process."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np

import llmgym
from llmgym.envs.gym_env import EngineEnv
from llmgym.envs.vector_env import EngineVectorEnv

ACTIONS = ("tiles", "split", "tokens", "scores")
MAX_STEPS, NUM_ENVS = 40, 4

SCENARIO = llmgym.Scenario.single_engine(
    batch_time=llmgym.Staircase(c_ms=5.0, a_ms=20.0, tile=64),
    token_budget=256,
    workload=llmgym.Workload(
        llmgym.Poisson(10.0),
        llmgym.Geometric(60),
        llmgym.Geometric(20),
        ttft_ms=200.0,
        tpot_ms=60.0,
    ),
    slots=32,
    name="small",
)
ACTION_SETTINGS: dict[str, dict[str, Any]] = {
    "tokens": {"quantum": 64},
    "scores": {"requests": 6},
}


def settings(action: str) -> dict[str, Any]:
    """Arguments of gym.make and gym.make_vec."""
    return {
        "scenario": SCENARIO,
        "load": 0.8,
        "action": action,
        "action_settings": ACTION_SETTINGS.get(action),
        "max_steps": MAX_STEPS,
    }


@cache
def single_env(action: str) -> EngineEnv:
    """The environment of gym.make, without its wrappers."""
    env = gym.make("llmgym/Engine-v0", **settings(action)).unwrapped
    assert isinstance(env, EngineEnv)
    return env


@cache
def vector_env(action: str) -> EngineVectorEnv:
    """The environment of gym.make_vec."""
    env = gym.make_vec("llmgym/Engine-v0", num_envs=NUM_ENVS, **settings(action))
    assert isinstance(env, EngineVectorEnv)
    return env


def random_masked(space: gym.Space[Any], mask: np.ndarray, rng: np.random.Generator) -> Any:
    """A random action inside a flat mask."""
    if isinstance(space, gym.spaces.Box):
        return rng.uniform(-1, 1, space.shape).astype(np.float32)
    sizes = [space.n] if isinstance(space, gym.spaces.Discrete) else list(space.nvec)
    parts = np.split(mask, np.cumsum(sizes)[:-1])
    chosen = [rng.choice(np.flatnonzero(part)) for part in parts]
    return np.int64(chosen[0]) if isinstance(space, gym.spaces.Discrete) else np.array(chosen)
