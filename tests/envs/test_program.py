"""Runners: what their programs give is what the functions give, to the bit, in any blocks and threads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.envs.packing import Packing
from llmgym.envs.program import Runner

STEPS = 40


def keyed(seeds: jax.Array) -> jax.Array:
    def key(seed: jax.Array) -> jax.Array:
        return jax.random.key(seed, impl="threefry2x32")

    return jax.vmap(key)(seeds) if seeds.ndim else key(seeds)


def functions(core: Any) -> tuple[Any, Any]:
    def begin(params: Any, seeds: Any, extra: Any) -> tuple[Any, Any]:
        state = core.init(keyed(seeds), params)
        return state, (core.observe(state, params), core.action_mask(state, params))

    def step(params: Any, state: Any, action: Any, extra: Any) -> tuple[Any, Any]:
        state, out = core.step(state, action, params)
        return state, (out.observation, out.reward, out.truncated, out.info)

    return begin, step


def actions(core: Any, num_envs: int | None) -> list[np.ndarray]:
    core.action_space.seed(0)
    made = []
    for _ in range(STEPS):
        drawn = [core.action_space.sample() for _ in range(num_envs or 1)]
        joined = np.stack(drawn, axis=-1) if num_envs else np.asarray(drawn[0])
        made.append(joined.astype(np.float32 if joined.dtype.kind == "f" else np.int32))
    return made


def environments_first(tree: Any, batched: bool) -> Any:
    return jax.tree.map(lambda x: np.moveaxis(np.asarray(x), -1, 0) if batched else x, tree)


def assert_equal(found: Any, expected: Any) -> None:
    named = jax.tree_util.tree_leaves_with_path(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, x), y in zip(named, jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(y, x, err_msg=jax.tree_util.keystr(path))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"scenario": "paper-figure-1", "load": 1.2, "action": "scores"},
    {"scenario": "two-classes", "action": "tokens", "reward": "latency"},
]


@pytest.mark.parametrize("num_envs", [None, 1, 7])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_runner_steps_as_the_functions_do(settings: dict[str, Any], num_envs: int | None) -> None:
    core = llmgym.functional("llmgym/Engine-v0", **settings)
    begin, step = functions(core)
    runner = Runner(begin, {"step": step}, core.params, num_envs=num_envs, block=4, threads=2)
    seeds = np.arange(3, 3 + (num_envs or 1), dtype=np.uint32)
    seeds = seeds if num_envs else seeds[0]
    plain, batched = jax.jit(step), num_envs is not None
    state, expected = jax.jit(begin)(core.params, seeds, None)
    assert_equal(runner.begin(seeds), environments_first(expected, batched))
    for action in actions(core, num_envs):
        state, expected = plain(core.params, state, action, None)
        assert_equal(runner.move("step", action), environments_first(expected, batched))
    assert_equal(runner.state, jax.device_get(state))
