"""gym.make("llmgym/Engine-v0"): the interface, its errors, and where episodes end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import ACTIONS, MAX_STEPS, SCENARIO, random_masked, settings, single_env
from gymnasium.utils.env_checker import check_env

from llmgym import LLMGymError
from llmgym.envs.gym_env import EngineEnv


def rollout(env: EngineEnv, seed: int, steps: int) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=seed)
    seen = [(observation, 0.0, False, False, info)]
    for _ in range(steps):
        seen.append(env.step(random_masked(env.action_space, env.action_masks(), rng)))
    return seen


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("action", ACTIONS)
def test_gymnasium_finds_no_fault(action: str) -> None:
    check_env(single_env(action), skip_render_check=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("action", ACTIONS)
def test_sb3_finds_no_fault(action: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(single_env(action))


def test_types_and_info() -> None:
    env = single_env("tiles")
    steps = rollout(env, seed=3, steps=20)
    observation, reward, terminated, truncated, info = steps[-1]
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert observation.dtype == np.float32 and observation.flags.writeable
    assert info["time_s"] == pytest.approx(sum(s[4]["duration_ms"] for s in steps[1:]) / 1000)
    arrived, completed, dropped = (sum(s[4][k] for s in steps[1:]) for k in
                                   ("arrived", "completed", "dropped"))  # fmt: skip
    assert completed > 0
    assert info["in_system"] == arrived - completed - dropped
    assert (np.concatenate([info["action_mask"]], axis=None) == env.action_masks()).all()
    assert info["prefill_tokens"] + info["decode_tokens"] <= SCENARIO.engine.token_budget


def test_same_seed_same_run_other_seed_other_run() -> None:
    env = single_env("tiles")
    first, again, other = (rollout(env, seed, 30) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1] == two[1]
    assert any((one[0] != two[0]).any() for one, two in zip(first, other, strict=True))


def test_seeds_beyond_32_bits_differ() -> None:
    env = single_env("tiles")
    low, high = rollout(env, 1, 30), rollout(env, 1 + 2**40, 30)
    assert any(one[1] != two[1] for one, two in zip(low, high, strict=True))


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_inside_the_mask_are_never_clipped(action: str) -> None:
    steps = rollout(single_env(action), seed=5, steps=MAX_STEPS)
    assert not any(s[4]["clipped"] for s in steps[1:])
    assert sum(s[4]["prefill_tokens"] for s in steps[1:]) > 0


@pytest.mark.parametrize("action", ["tiles", "scores"])
def test_truncated_at_max_steps_never_terminated(action: str) -> None:
    steps = rollout(single_env(action), seed=0, steps=MAX_STEPS)
    assert [s[3] for s in steps[1:]] == [False] * (MAX_STEPS - 1) + [True]
    assert not any(s[2] for s in steps)


def test_step_before_reset_raises() -> None:
    env = EngineEnv(**settings("tiles"))
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        env.step(0)
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        env.action_masks()


@pytest.mark.parametrize(
    ("action", "bad"),
    [
        ("tiles", 4),
        ("tiles", -1),
        ("tiles", 1.5),
        ("tiles", np.array([0, 1])),
        ("split", np.array([0, 5])),
        ("split", np.array([0])),
        ("tokens", np.array([5, 0])),
        ("scores", np.zeros(5, np.float32)),
        ("scores", np.full(6, np.nan, np.float32)),
        ("scores", np.full(6, 1.5, np.float32)),
    ],
)
def test_bad_actions_raise(action: str, bad: Any) -> None:
    env = single_env(action)
    env.reset(seed=0)
    with pytest.raises(LLMGymError, match=r"Actions must be .*numbers of shape"):
        env.step(bad)


@pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scenario": "paper-figure-2"}, "paper-figure-1"),
        ({"action": "tile"}, "'tiles'"),
        ({"reward": "holding_costs"}, "'holding_cost'"),
        ({"render_mode": "rgb"}, "'rgb_array'"),
        ({"lode": 0.9}, "'load'"),
        ({"load": 0.0}, "greater than 0"),
        ({"load": float("nan")}, "finite"),
        ({"max_steps": 0}, "at least 1"),
        ({"action": "split", "action_settings": {"share": 3}}, "'shares'"),
        ({"reward": "weighted_holding", "reward_settings": {"prefil_weight": 1}}, "prefill_weight"),
        ({"reward": "throughput", "reward_settings": {"weight": 1}}, "no settings"),
        ({"scenario": "geometric", "reward": "goodput"}, "targets"),
        ({"action": "batch"}, "functional"),
        ({"observed_requests": -1}, "at least 0"),
    ],
)
def test_bad_settings_raise_with_the_nearest_match(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        gym.make("llmgym/Engine-v0", **wrong)
