"""gym.make_vec("llmgym/Engine-v0"): the rules of vector environments, and rows that are single ones."""

from __future__ import annotations

from functools import cache
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
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as wrappers

from llmgym import LLMGymError
from llmgym.envs.checker import check_vector_env
from llmgym.envs.vector_env import RENDERED, EngineVectorEnv

SEEDS = [5, 2**35, 7, 5]

WRAPPERS = [
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    wrappers.RecordEpisodeStatistics,
    wrappers.FlattenObservation,
    wrappers.DictInfoToList,
    lambda envs: wrappers.RescaleObservation(envs, 0.0, 1.0),
    lambda envs: wrappers.ClipReward(envs, -1.0, 1.0),
    lambda envs: wrappers.DtypeObservation(envs, np.float64),
]


@pytest.mark.filterwarnings("ignore::llmgym.core.errors.TableFullWarning")  # small tables
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "action", ["tiles", *(pytest.param(a, marks=pytest.mark.slow) for a in ACTIONS if a != "tiles")]
)
def test_checker_finds_no_fault(action: str) -> None:
    check_vector_env(vector_env(action), steps=2 * MAX_STEPS + 5)


@cache
def next_step_env() -> EngineVectorEnv:
    return EngineVectorEnv(NUM_ENVS, autoreset_mode="NextStep", **settings("tiles"))


@pytest.mark.filterwarnings("ignore::llmgym.core.errors.TableFullWarning")  # small tables
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, "Disabled"])
def test_all_autoreset_modes_keep_their_rules(mode: Any) -> None:
    envs = EngineVectorEnv(NUM_ENVS, autoreset_mode=mode, **settings("tiles"))
    assert envs.autoreset_mode is envs.metadata["autoreset_mode"] is AutoresetMode(mode)
    check_vector_env(envs, steps=2 * MAX_STEPS + 5)


def test_episodes_are_the_same_in_all_modes() -> None:
    """The same actions lead through the same episodes, one step later after each in NEXT_STEP."""
    runs = []
    for mode in AutoresetMode:
        envs = EngineVectorEnv(NUM_ENVS, autoreset_mode=mode, **settings("tiles"))
        observation, _ = envs.reset(seed=SEEDS)
        seen = [observation]
        for _ in range(2):
            for _ in range(MAX_STEPS):
                observation, _, _, done, _ = envs.step(np.full(NUM_ENVS, 2))
                seen.append(observation)
            assert done.all()
            if mode is AutoresetMode.DISABLED:
                with pytest.raises(LLMGymError, match="reset_mask"):
                    envs.step(np.full(NUM_ENVS, 2))
                seen[-1], info = envs.reset(options={"reset_mask": done})
                assert info["_action_mask"].all()
            elif mode is AutoresetMode.NEXT_STEP:
                seen[-1], reward, _, done, info = envs.step(np.full(NUM_ENVS, 2))
                assert not reward.any() and not done.any() and not info["_time_s"].any()
        runs.append(seen)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_a_partial_reset_leaves_the_others_alone() -> None:
    envs = EngineVectorEnv(NUM_ENVS, autoreset_mode="Disabled", **settings("tiles"))
    envs.reset(seed=SEEDS)
    for _ in range(5):
        before, *_ = envs.step(np.full(NUM_ENVS, 2))
    some = np.array([True, False, False, True])
    after, info = envs.reset(options={"reset_mask": some})
    np.testing.assert_array_equal(after[~some], before[~some])
    assert (after[some] != before[some]).any(axis=1).all()
    np.testing.assert_array_equal(info["_action_mask"], some)
    for wrong in (np.zeros(NUM_ENVS, bool), np.ones(3, bool), [1, 0, 0, 1], "all"):
        with pytest.raises(LLMGymError, match="reset_mask must be a bool array"):
            envs.reset(options={"reset_mask": wrong})


def test_images_of_the_first_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RENDERED == 4
    monkeypatch.setattr("llmgym.envs.vector_env.RENDERED", 3)  # NUM_ENVS are compiled anyway
    envs = EngineVectorEnv(NUM_ENVS, render_mode="rgb_array", **settings("tiles"))
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        envs.render()
    envs.reset(seed=0)
    envs.step(np.full(NUM_ENVS, 2))
    frames = envs.render()
    assert frames is not None and len(frames) == 3
    assert {frame.shape[2] for frame in frames} == {3} and frames[0].dtype == np.uint8


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_of_gymnasium(wrapper: Any) -> None:
    # Gymnasium's wrappers of observations want the last one of an episode in its place.
    envs = wrapper(next_step_env())
    observation, _ = envs.reset(seed=0)
    for _ in range(3):
        observation, reward, _, _, _ = envs.step(envs.action_space.sample())
    assert observation.shape == (NUM_ENVS, *envs.single_observation_space.shape)
    assert np.isfinite(observation).all() and reward.shape == (NUM_ENVS,)


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
