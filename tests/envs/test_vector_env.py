"""gym.make_vec("llmgym/Engine-v0"): the rules of vector environments, and rows that are single ones."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import (
    ACTIONS,
    MAX_STEPS,
    NUM_ENVS,
    random_masked,
    settings,
    single_env,
    vector_env,
)

from llmgym import LLMGymError
from llmgym.envs.checker import check_vector_env
from llmgym.envs.vector_env import EngineVectorEnv

SEEDS = [5, 2**35, 7, 5]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "action", ["tiles", *(pytest.param(a, marks=pytest.mark.slow) for a in ACTIONS if a != "tiles")]
)
def test_checker_finds_no_fault(action: str) -> None:
    check_vector_env(vector_env(action), steps=2 * MAX_STEPS + 5)


@pytest.mark.parametrize("action", ["tiles", "scores"])
def test_a_row_is_the_single_environment_with_its_seed(action: str) -> None:
    envs, env, rng = vector_env(action), single_env(action), np.random.default_rng(1)
    first, info = envs.reset(seed=SEEDS)
    steps, chosen = [], []
    for _ in range(MAX_STEPS):
        rows = info["action_mask"]
        chosen.append(np.stack([random_masked(env.action_space, rows[0], rng)] * NUM_ENVS))
        steps.append(envs.step(chosen[-1]))
        info = steps[-1][4]
    for i, seed in enumerate(SEEDS):
        observation, info = env.reset(seed=seed)
        np.testing.assert_array_equal(first[i], observation)
        for t in range(MAX_STEPS):
            observation, reward, _, truncated, info = env.step(chosen[t][i])
            many = steps[t]
            expected = many[4]["final_obs"][i] if truncated else many[0][i]
            np.testing.assert_array_equal(expected, observation)
            assert (many[1][i], many[3][i]) == (reward, truncated)
            facts = many[4]["final_info"] if truncated else many[4]
            assert {k: v for k, v in info.items() if k != "action_mask"} == {
                k: facts[k][i] for k in info if k != "action_mask"
            }
            np.testing.assert_array_equal(facts["action_mask"][i], info["action_mask"])
    assert not np.array_equal(steps[-1][0][0], steps[-1][4]["final_obs"][0])


def test_episodes_that_follow_are_new_and_repeat_with_the_seed() -> None:
    envs = vector_env("tiles")

    def episodes(count: int) -> list[np.ndarray]:
        envs.reset(seed=SEEDS)
        rewards = [envs.step(np.full(NUM_ENVS, 3))[1] for _ in range(count * MAX_STEPS)]
        return np.split(np.array(rewards), count)

    first, second, third = episodes(3)
    assert not (first == second).all() and not (second == third).all()
    np.testing.assert_array_equal(first[:, 0], first[:, 3])  # both have seed 5
    np.testing.assert_array_equal(second[:, 0], second[:, 3])
    assert (second[:, 0] != second[:, 1]).any()
    np.testing.assert_array_equal(np.array(episodes(3)), np.array([first, second, third]))


def test_observations_are_the_callers_to_keep() -> None:
    envs = vector_env("tiles")
    observation, info = envs.reset(seed=0)
    kept, mask = observation.copy(), info["action_mask"].copy()
    for _ in range(3):
        after = envs.step(np.full(NUM_ENVS, 1))
    np.testing.assert_array_equal(observation, kept)
    np.testing.assert_array_equal(info["action_mask"], mask)
    assert after[0].flags.writeable and after[1].flags.writeable


@pytest.mark.parametrize(
    ("action", "bad"),
    [
        ("tiles", np.zeros(NUM_ENVS - 1, int)),
        ("tiles", np.zeros((NUM_ENVS, 1), int)),
        ("tiles", np.full(NUM_ENVS, 4)),
        ("tiles", np.full(NUM_ENVS, -1)),
        ("tiles", np.zeros(NUM_ENVS)),
        ("split", np.full((NUM_ENVS, 2), 4)),
        ("scores", np.full((NUM_ENVS, 6), np.nan)),
        ("scores", np.full((NUM_ENVS, 6), 1.5)),
    ],
)
def test_bad_actions_raise(action: str, bad: np.ndarray) -> None:
    envs = vector_env(action)
    envs.reset(seed=0)
    with pytest.raises(LLMGymError, match="Actions"):
        envs.step(bad)


def test_bad_calls_raise() -> None:
    envs = EngineVectorEnv(num_envs=2, **settings("tiles"))
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        envs.step(np.zeros(2, int))
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        envs.action_masks()
    with pytest.raises(LLMGymError, match="3 seeds for 2"):
        envs.reset(seed=[1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"action": "batch"}, "functional"),
        ({"reward": "goodputs"}, "'goodput'"),
        ({"lode": 0.5}, "'load'"),
    ],
)
def test_bad_settings_raise(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        EngineVectorEnv(**wrong)


def test_make_vec_by_sync_still_works() -> None:
    # The ordinary way, one environment after another: the checker holds for it as well.
    envs = gym.make_vec(
        "llmgym/Engine-v0",
        num_envs=2,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": "SameStep"},
        **settings("tiles"),
    )
    check_vector_env(envs, steps=MAX_STEPS + 5)
