"""``action="budget"``: a policy inside the action encoding, and its memory in the environment's state."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import SCENARIO, random_masked
from remembering import COUNTING, MOODY

import llmgym
from llmgym import LLMGymError, baselines

STEPS, SEEDS = 7, [3, 4, 5]
SETTINGS: dict[str, Any] = {
    "scenario": SCENARIO,
    "load": 0.8,
    "action": "budget",
    "action_settings": {"base": MOODY},
    "max_steps": STEPS,
}


def test_the_memory_travels_with_the_state_and_begins_again_with_it() -> None:
    """Vector environment, single environment and scan: one run, memory included."""
    envs: Any = gym.make_vec("llmgym/Engine-v0", num_envs=len(SEEDS), **SETTINGS)
    one: Any = gym.make("llmgym/Engine-v0", **SETTINGS).unwrapped
    envs.reset(seed=SEEDS)
    rng, actions, seen, moods = np.random.default_rng(0), [], [], []
    for n in range(2 * STEPS + 3):
        action = np.array(
            [random_masked(envs.single_action_space, m, rng) for m in envs.action_masks()]
        )
        observation, *_, truncated, info = envs.step(action)
        assert (truncated == (n % STEPS == STEPS - 1)).all()
        actions.append(action)
        final = info["final_obs"] if truncated.any() else observation
        seen.append(final)
        moods.append(jax.device_get(envs._groups[0]._runner.state.memory[1]))
    calls = np.array([m["calls"] for m in moods])
    episode = [1, 2, 3, 4, 5, 6, 0]  # a new episode has decided nothing yet
    assert (calls == np.array([*episode, *episode, 1, 2, 3])[:, None]).all()
    assert (np.array([m["mean"] for m in moods]) > 0).any()

    core = one.core
    scan = jax.jit(lambda state, todo: jax.lax.scan(core.step, state, todo))
    for i, seed in enumerate(SEEDS):
        one.reset(seed=seed)
        start = one.state
        for n in range(STEPS):
            observation, *_ = one.step(int(actions[n][i]))
            np.testing.assert_array_equal(observation, seen[n][i])
            if n < STEPS - 1:
                for name, value in one.state.memory[1].items():
                    np.testing.assert_array_equal(value, moods[n][name][..., i], err_msg=name)
        end, found = scan(start, jnp.array([a[i] for a in actions[:STEPS]]))
        np.testing.assert_array_equal(found.observation[-1], seen[STEPS - 1][i])
        assert int(end.memory[1]["calls"]) == STEPS


def test_engines_of_a_network_remember_their_own_decisions() -> None:
    settings = SETTINGS | {"scenario": llmgym.scenario("rybko-stolyar", slots=32), "max_steps": 50}
    core = llmgym.functional(
        "llmgym/Network-v0", **settings | {"action_settings": {"base": COUNTING}}
    )
    assert core.action_space is not None

    @jax.jit
    def run(state: Any) -> Any:
        def body(state: Any, action: jax.Array) -> Any:
            free = core.view(state).free
            after, _ = core.step(state, action)
            return after, (free, jnp.stack(after.memory[1]))

        shape = core.action_space.shape
        return jax.lax.scan(body, state, jnp.ones((40, *shape, 2), jnp.int32))[1]

    free, counts = run(core.init(jax.random.split(jax.random.key(0), 2)))
    np.testing.assert_array_equal(np.cumsum(free, axis=0), counts)
    assert not np.asarray(free).all()
    state = core.init(jax.random.key(0))
    with pytest.raises(LLMGymError, match="This encoding has a memory"):
        core.encoding.expand(jnp.zeros(core.action_space.shape, jnp.int32), core.view(state))


def test_an_action_is_the_budget_of_the_base() -> None:
    core = llmgym.functional("llmgym/Engine-v0", **SETTINGS | {"action_settings": None})
    step = jax.jit(core.step)
    state = core.init(jax.random.key(1))
    for _ in range(12):
        state, _ = step(state, 0)
    for action in (0, 1, 3):
        found = core.expand(state, action).tokens
        own = baselines.make("sarathi", token_budget=64 * (action + 1))
        np.testing.assert_array_equal(found, own(jax.random.key(0), core.view(state)).tokens)
    assert state.memory[1] is None


def test_a_base_that_is_none_is_refused() -> None:
    for base, message in (
        ("sarathy", "Did you mean 'sarathi'"),
        (lambda key, view, memory: None, r"has no start\(view\) -> memory"),
    ):
        with pytest.raises(LLMGymError, match=message):
            llmgym.functional("llmgym/Engine-v0", **SETTINGS | {"action_settings": {"base": base}})
