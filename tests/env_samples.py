"""Small environments that several test modules share: each is compiled once in a process."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from request_classes import one_class

import llmgym
from llmgym.engine.view import View
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


def random_queues(scenario: llmgym.Scenario, slots: int, cases: int) -> View:
    """Views of random queues with holes, the empty one among them; cases along the last axis."""
    rng, shape = np.random.default_rng(0), (slots, cases)
    live = rng.random(shape) < rng.random(cases)
    engine = scenario.engine
    prompt = rng.integers(1, 150, shape)
    left = rng.integers(0, prompt + 1)
    generated = np.where(left == 0, rng.integers(0, 20, shape), 0)
    started = live & ((left < prompt) | (generated > 0))
    if engine.seq_limit == "resident" and engine.max_num_seqs is not None:
        # Only as many requests as there are seats can have started.
        fresh = np.cumsum(started, axis=0) > engine.max_num_seqs
        left, generated = np.where(fresh, prompt, left), np.where(fresh, 0, generated)
        started &= ~fresh
    waited = np.sort(rng.integers(0, 10**6, shape), axis=0)[::-1]

    def spread(value: float, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.full(cases, value, dtype)

    seqs = engine.max_num_seqs
    return View(
        prefill=jnp.asarray(np.where(live, left, 0), jnp.int32),
        decoding=jnp.asarray(live & (left == 0)),
        started=jnp.asarray(started),
        prompt=jnp.asarray(np.where(live, prompt, 0), jnp.int32),
        generated=jnp.asarray(np.where(live, generated, 0), jnp.int32),
        waited=jnp.asarray(np.where(live, waited, 0), jnp.int32),
        unserved=jnp.asarray(np.where(live, rng.integers(0, 50, shape), 0), jnp.int32),
        job_class=jnp.asarray(rng.integers(0, len(scenario.class_names), shape), jnp.int32),
        decode_left=None,
        token_budget=spread(engine.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(lambda x: spread(x, jnp.float32), engine.batch_time),
        tick_ms=spread(scenario.tick_ms, jnp.float32),
        batches=spread(0),
        classes=one_class((cases,)),
        free=jnp.ones((cases,), bool),
        job_age=jnp.asarray(np.where(live, waited, 0), jnp.int32),
        resident_limit=engine.seq_limit == "resident",
    )
