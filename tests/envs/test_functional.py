"""The functional form: the same run under jit, vmap and scan, and one compilation for all loads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import MAX_STEPS, SCENARIO, settings, single_env

import llmgym
from llmgym import LLMGymError
from llmgym.engine import simulator
from llmgym.envs.functional import EnvState, FunctionalEngine, TimeStep
from llmgym.envs.task import Task
from llmgym.theory.capacity import at_load

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def core() -> FunctionalEngine:
    made = llmgym.functional("llmgym/Engine-v0", **settings("tiles"))
    assert isinstance(made, FunctionalEngine)
    return made


@pytest.fixture(scope="module")
def actions() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, MAX_STEPS)


def key_of(seed: int) -> jax.Array:
    """The key that EngineEnv.reset(seed=seed) makes."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
    return jax.random.key(int(rng.integers(2**31)), impl="threefry2x32")


@pytest.fixture(scope="module")
def gym_runs(actions: np.ndarray) -> list[list[tuple[Any, ...]]]:
    """The same actions through EngineEnv, whose step is jitted by itself."""
    env, runs = single_env("tiles"), []
    for seed in SEEDS:
        env.reset(seed=seed)
        runs.append([env.step(int(action)) for action in actions])
    return runs


def assert_same(run: list[tuple[Any, ...]], steps: TimeStep) -> None:
    np.testing.assert_array_equal(np.array([s[0] for s in run]), steps.observation)
    np.testing.assert_array_equal(np.array([s[1] for s in run], np.float32), steps.reward)
    np.testing.assert_array_equal(np.array([s[3] for s in run]), steps.truncated)
    for name, values in steps.info.items():
        np.testing.assert_array_equal(np.array([s[4][name] for s in run]), values, err_msg=name)


def test_a_scan_of_vmap_equals_gym_env(
    core: FunctionalEngine, actions: np.ndarray, gym_runs: list[Any]
) -> None:
    """One program for both; scans of one environment are compared in test_budget_action.py."""
    keys = jnp.stack([key_of(seed) for seed in SEEDS])

    @jax.jit
    def run(keys: jax.Array, params: Any) -> TimeStep:
        step = jax.vmap(core.step, (0, None, None))
        states = jax.vmap(core.init, (0, None))(keys, params)
        return jax.lax.scan(lambda s, a: step(s, a, params), states, jnp.asarray(actions))[1]

    found = jax.device_get(run(keys, core.params))
    for i, expected in enumerate(gym_runs):
        assert_same(expected, jax.tree.map(lambda x, i=i: x[:, i], found))


def test_one_compilation_serves_all_loads() -> None:
    core, costs, compiled = single_env("tiles").core, [], []
    for load in (0.2, 0.8, 1.4):
        params = simulator.lower(at_load(SCENARIO, load))
        state, cost = core.init(key_of(0), params), 0.0
        for _ in range(100):
            state, result = core.step(state, jnp.int32(3), params)
            cost -= float(result.reward) / 1000
        costs.append(cost / float(result.info["time_s"]))
        compiled.append((Task.init._cache_size(), Task.step._cache_size()))
    assert compiled[0] == compiled[1] == compiled[2]
    assert costs[0] < costs[1] < costs[2]


def test_a_batch_is_an_action() -> None:
    core = llmgym.functional("llmgym/Engine-v0", scenario=SCENARIO, action="batch")
    sarathi = llmgym.baselines.make("sarathi")

    @jax.jit
    def run(state: EnvState) -> Any:
        def body(state: EnvState, _: None) -> Any:
            batch = sarathi(key_of(0), core.view(state))
            after, result = core.step(state, batch)
            done = result.info["prefill_tokens"] + result.info["decode_tokens"]
            wanted = (core.action_mask(state) == (core.view(state).demand > 0)).all()
            return after, (result.info["clipped"], batch.size, done, wanted)

        return jax.lax.scan(body, state, None, length=200)[1]

    clipped, asked, ran, masked = run(single_env("tiles").core.init(key_of(0), core.params))
    assert not clipped.any() and masked.all()
    np.testing.assert_array_equal(asked, ran)
    assert ran.sum() > 0
    assert core.action_space is None


def test_unknown_id_and_setting_raise_with_the_nearest_match() -> None:
    with pytest.raises(LLMGymError, match="Did you mean 'llmgym/Engine-v0'"):
        llmgym.functional("llmgym/Engine-v1")
    with pytest.raises(LLMGymError, match="Did you mean 'max_steps'"):
        llmgym.functional("llmgym/Engine-v0", max_step=3)
