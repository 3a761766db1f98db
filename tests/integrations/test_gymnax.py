"""The gymnax shape: its contract, the same numbers as the functional form, and a learner compiled whole."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from env_samples import MAX_STEPS, settings

import llmgym
from llmgym import LLMGymError
from llmgym.integrations.gymnax import FIRST, LAST, MID, GymnaxEnv, TimeStepEnv

KEY = jax.random.PRNGKey(0)  # of the old kind, which PureJaxRL uses
STEPS, NUM_ENVS = MAX_STEPS + 5, 4


@cache
def env_of(values: int = 5) -> GymnaxEnv:
    return GymnaxEnv("llmgym/Engine-v0", values=values, **settings("tiles"))


def actions_of(steps: int, *envs: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 4, (steps, *envs)), jnp.int32)


@cache
def episode() -> Any:
    """More than an episode of one environment: first observation, and what each step returned."""
    env = env_of()
    params = env.default_params

    @jax.jit
    def play(key: jax.Array, actions: jax.Array) -> Any:
        observation, state = env.reset(key, params)

        def one(state: Any, given: Any) -> Any:
            observation, state, *rest = env.step(given[0], state, given[1], params)
            return state, (observation, *rest, env.action_mask(state, params))

        return observation, jax.lax.scan(one, state, (jax.random.split(key, STEPS), actions))[1]

    return play(KEY, actions_of(STEPS))


@cache
def functional_run() -> Any:
    """The same episode in the functional form, without a reset."""
    core = env_of().core

    @jax.jit
    def play(key: jax.Array, actions: jax.Array) -> Any:
        state = core.init(key)
        return core.observe(state), jax.lax.scan(core.step, state, actions)[1]

    return play(jax.random.wrap_key_data(KEY), actions_of(MAX_STEPS))


def test_the_contract_of_gymnax() -> None:
    env = env_of()
    params = env.default_params
    assert (env.name, env.num_actions) == ("llmgym/Engine-v0", 4)
    assert params.max_steps_in_episode == MAX_STEPS
    assert params.replace(max_steps_in_episode=7).max_steps_in_episode == 7
    space, seen = env.action_space(params), env.observation_space(params)
    assert (space.n, space.shape) == (4, ())
    assert bool(space.contains(jax.jit(space.sample)(KEY)))
    observation, state = env.reset(KEY, params)
    assert observation.shape == seen.shape
    assert bool(seen.contains(observation))
    assert seen.sample(KEY).shape == seen.shape
    observation, state, reward, done, info = env.step(KEY, state, space.sample(KEY), params)
    assert (observation.shape, reward.shape, done.dtype) == (seen.shape, (), jnp.bool_)
    assert info["discount"] == 1.0
    assert env.discount(state, params) == 1.0
    assert hash(env) == hash(env)  # learners hand it to jit as a static argument


def test_params_may_be_left_out() -> None:
    env = env_of()
    a, b = env.reset(KEY), env.reset(KEY, env.default_params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a[0]), jax.device_get(b[0]))


def test_an_episode_equals_the_functional_form() -> None:
    first, (observation, reward, done, info, _) = episode()
    wanted_first, wanted = functional_run()
    np.testing.assert_array_equal(first, wanted_first)
    final = info["final_observation"][:MAX_STEPS]
    np.testing.assert_array_equal(final, wanted.observation)
    np.testing.assert_array_equal(observation[: MAX_STEPS - 1], final[:-1])
    np.testing.assert_array_equal(reward[:MAX_STEPS], wanted.reward)
    np.testing.assert_array_equal(done[:MAX_STEPS], wanted.truncated)
    for name, values in wanted.info.items():
        upto = MAX_STEPS - (name == "action_mask")  # at the end it is the mask of the next episode
        np.testing.assert_array_equal(info[name][:upto], values[:upto], err_msg=name)


def test_the_end_of_an_episode_begins_the_next_and_keeps_the_discount() -> None:
    _, (observation, _, done, info, mask) = episode()
    end = MAX_STEPS - 1
    assert np.flatnonzero(done).tolist() == [end]
    first, _ = env_of().reset(jax.random.split(KEY, STEPS)[end])
    np.testing.assert_array_equal(observation[end], first)
    assert not np.array_equal(info["final_observation"][end], first)
    assert info["time_s"][end + 1] < info["time_s"][end]
    assert np.all(info["discount"] == 1)
    np.testing.assert_array_equal(info["action_mask"], mask)


def test_six_values_name_the_truncation() -> None:
    env = env_of(6)
    params = env.default_params.replace(max_steps_in_episode=2)
    _, state = env.reset(KEY, params)
    for truncated in (False, True):
        *_, terminated, cut, info = out = env.step(KEY, state, 1, params)
        state = out[1]
        assert len(out) == 6
        assert (bool(terminated), bool(cut), bool(info["truncated"])) == (
            False,
            truncated,
            truncated,
        )
    assert int(state.engine.steps) == 0


def test_a_step_without_reset_stays_at_the_end() -> None:
    env = env_of()
    params = env.default_params.replace(max_steps_in_episode=1)
    _, state = env.reset(KEY, params)
    observation, state, _, done, info = env.step_env(KEY, state, 1, params)
    assert bool(done)
    assert int(state.engine.steps) == 1
    np.testing.assert_array_equal(observation, info["final_observation"])


def test_one_program_for_several_loads() -> None:
    """Parameters of several loads, stacked, under vmap: each as alone."""
    env = env_of()
    given = settings("tiles")
    cores = [llmgym.functional("llmgym/Engine-v0", **given | {"load": x}) for x in (0.4, 0.9)]
    alone = [env.default_params.replace(engine=core.params) for core in cores]
    both = jax.tree.map(lambda *x: jnp.stack(x), *alone)

    def play(params: Any) -> Any:
        def one(state: Any, action: Any) -> Any:
            _, state, reward, *_ = env.step(KEY, state, action, params)
            return state, reward

        return jax.lax.scan(one, env.reset(KEY, params)[1], actions_of(10))[1]

    found = jax.jit(jax.vmap(play))(both)
    for params, rewards in zip(alone, found, strict=True):
        _, state = env.reset(KEY, params)
        for action, expected in zip(actions_of(10), rewards, strict=True):
            _, state, reward, *_ = env.step(KEY, state, action, params)
            assert reward == expected


def test_time_steps_have_the_shape_of_dm_env() -> None:
    env = TimeStepEnv("llmgym/Engine-v0", **settings("tiles") | {"max_steps": 2})
    state, step = env.reset(KEY)
    kinds, structure = [int(step.step_type)], jax.tree.structure(step)
    assert bool(step.first())
    assert not step.mid()
    assert (float(step.reward), float(step.discount)) == (0.0, 1.0)
    for _ in range(2):
        state, step = env.step(state, 1)
        assert jax.tree.structure(step) == structure
        kinds.append(int(step.step_type))
    assert kinds == [FIRST, MID, LAST]
    assert bool(step.last())
    assert float(step.discount) == 1.0
    assert int(state.env.engine.steps) == 2


def test_time_steps_reset_by_themselves_where_they_shall() -> None:
    env = TimeStepEnv("llmgym/Engine-v0", autoreset=True, **settings("tiles") | {"max_steps": 2})
    start, step = env.reset(KEY)
    assert step.extras["next_obs"].shape == step.observation.shape
    state, steps = jax.lax.scan(env.step, start, actions_of(4))
    assert steps.step_type.tolist() == [MID, LAST, MID, LAST]
    second = jax.random.split(start.key)[1]
    begin, _ = env.env.reset(jax.random.split(second)[0])  # the episode ends with the second step
    np.testing.assert_array_equal(steps.observation[1], begin)
    assert not np.array_equal(steps.extras["next_obs"][1], begin)
    assert int(state.env.engine.steps) == 0
    assert not np.array_equal(state.key, start.key)


@pytest.mark.parametrize("action", ["split", "tokens", "scores"])
def test_every_action_has_a_space(action: str) -> None:
    env = GymnaxEnv("llmgym/Engine-v0", **settings(action))
    space, theirs = env.action_space(), env.core.action_space
    assert theirs is not None
    sample = np.asarray(jax.jit(space.sample)(KEY))
    assert (sample.shape, env.num_actions) == (theirs.shape, theirs.shape[0])
    assert theirs.contains(sample.astype(theirs.dtype))
    assert bool(space.contains(sample))


def test_what_no_learner_takes_is_refused() -> None:
    with pytest.raises(LLMGymError, match='action="batch"'):
        GymnaxEnv("llmgym/Engine-v0", **settings("batch"))
    with pytest.raises(LLMGymError, match="5 or 6"):
        GymnaxEnv("llmgym/Engine-v0", values=4, **settings("tiles"))


def test_a_policy_gradient_compiled_whole_learns() -> None:
    """Reset, rollouts by scan and vmap, and updates in one program, as PureJaxRL has it.

    The policy is one logit for each choice, so that the test is of the loop, not of networks.
    """
    env = GymnaxEnv("llmgym/Engine-v0", **settings("tiles"), reward="throughput")
    params, optimiser = env.default_params, optax.adam(0.3)
    step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

    def update(carry: Any, key: jax.Array) -> Any:
        logits, memory, state = carry

        def one(state: Any, key: jax.Array) -> Any:
            action = jax.random.categorical(key, logits, shape=(NUM_ENVS,))
            _, state, reward, *_ = step(jax.random.split(key, NUM_ENVS), state, action, params)
            return state, (action, reward)

        state, (action, reward) = jax.lax.scan(one, state, jax.random.split(key, 10))

        def loss(logits: jax.Array) -> jax.Array:
            chosen = jax.nn.log_softmax(logits)[action]
            return -jnp.mean(chosen * (reward - reward.mean()) / (reward.std() + 1e-6))

        changes, memory = optimiser.update(jax.grad(loss)(logits), memory, logits)
        return (optax.apply_updates(logits, changes), memory, state), reward.mean()

    @jax.jit
    def train(key: jax.Array) -> Any:
        logits, keys = jnp.zeros(4), jax.random.split(key, NUM_ENVS)
        state = jax.vmap(env.reset, in_axes=(0, None))(keys, params)[1]
        return jax.lax.scan(
            update, (logits, optimiser.init(logits), state), jax.random.split(key, 12)
        )

    (logits, *_), rewards = train(jax.random.PRNGKey(1))
    assert rewards.shape == (12,)
    assert int(jnp.argmin(logits)) == 0  # no tokens of prompts: the least throughput
