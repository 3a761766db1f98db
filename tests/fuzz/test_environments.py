"""Odd values in environments: constructors, resets, actions and rewards.

What comes in is a right result or one short LLMGymError; in no case does NaN pass.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import RUN_SECONDS, SECONDS, within
from odd_values import ODD, ONE, VALUES, Silent, changed, try_out

import llmgym
from llmgym import LLMGymError
from llmgym.core.errors import MOST_CHARACTERS
from llmgym.envs.functional import FunctionalEngine, FunctionalNetwork
from llmgym.envs.gym_env import EngineEnv
from llmgym.envs.interface import actions as encodings
from llmgym.envs.interface.observations import Observation
from llmgym.envs.interface.sound import sound_action, sound_actions, sound_batch
from llmgym.envs.rewards import make_reward
from llmgym.envs.vector_env import EngineVectorEnv
from llmgym.integrations.pettingzoo import NetworkParallelEnv

SETTINGS: dict[str, Any] = {
    "scenario": ONE, "load": None, "action": "tiles", "reward": "holding_cost", "max_steps": 8,
    "observed_requests": 0, "action_settings": None, "reward_settings": None, "observation": "engine",
    "interface": None, "start": "empty", "backlog_tokens": None, "window_s": None, "offset_s": None,
    "slots": None,
}  # fmt: skip


def made(**settings: Any) -> Any:
    """By gym.make, which looks at render_mode itself."""
    return gym.make("llmgym/Engine-v0", **settings)


def made_vec(**settings: Any) -> Any:
    return gym.make_vec("llmgym/Engine-v0", **settings)


CONSTRUCTORS: dict[Callable[..., Any], dict[str, Any]] = {
    FunctionalEngine: SETTINGS,
    FunctionalNetwork: SETTINGS,
    EngineEnv: SETTINGS | {"render_mode": None},
    EngineVectorEnv: SETTINGS
    | {"num_envs": 2, "render_mode": None, "autoreset_mode": "NextStep", "max_episode_steps": None},
    NetworkParallelEnv: SETTINGS,
    llmgym.functional: SETTINGS | {"env_id": "llmgym/Engine-v0"},
    made: SETTINGS,
    made_vec: SETTINGS | {"num_envs": 2},
    encodings.Tiles: {"sizes": ONE},
    encodings.Split: {"sizes": ONE, "shares": 5},
    encodings.Tokens: {"sizes": ONE, "quantum": 16},
    encodings.Scores: {"sizes": ONE, "requests": 32},
    encodings.Budget: {"sizes": ONE, "base": "sarathi"},
    encodings.make_encoding: {"scenario": ONE, "action": "split", "shares": 3},
    Observation: {"sizes": ONE, "requests": 2},
    make_reward: {
        "scenario": ONE, "reward": "weighted_holding", "prefill_weight": 1.0, "decode_weight": 1.0,
    },
}  # fmt: skip

SPACES = {
    "tiles": gym.spaces.Discrete(4),
    "split": gym.spaces.MultiDiscrete([4, 3]),
    "scores": gym.spaces.Box(-1.0, 1.0, (3,), np.float32),
}
ACTIONS = st.one_of(
    ODD,
    st.lists(st.one_of(st.integers(-2, 5), st.floats()), max_size=4),
    st.sampled_from(
        [np.full(3, np.nan), np.full(3, np.inf), np.zeros(3, complex), np.zeros((2, 3)), np.zeros(2, "U1"),
         np.zeros(3, object), np.zeros(2, np.uint8), np.array([3, 99]), np.array([0, -1]), np.zeros(3)]
    ),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(changed(CONSTRUCTORS))
def test_odd_settings_are_right_or_refused(case: Any) -> None:
    try_out(*case)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(changed(CONSTRUCTORS))
def test_ten_thousand_odd_settings_are_right_or_refused(case: Any) -> None:
    try_out(*case)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(SPACES)), ACTIONS)
def test_an_odd_action_is_in_the_space_or_refused(kind: str, action: Any) -> None:
    space = SPACES[kind]
    assert space.shape is not None

    def checked(action: Any) -> None:
        for found in (sound_actions(action, space, space.shape), sound_action(action, space, ())):  # type: ignore[arg-type]
            values = np.asarray(found)
            assert values.shape == space.shape and np.isfinite(values).all()
            assert space.contains(values.astype(space.dtype))

    try_out(checked, {"action": action})
    try_out(lambda a: sound_actions(a, space, (2, *space.shape)), {"a": action})  # type: ignore[misc]


@settings(max_examples=60, deadline=None)
@given(ODD)
def test_odd_batches_are_refused(action: Any) -> None:
    for given_ in (action, llmgym.Batch(action)):
        with pytest.raises(LLMGymError, match=r"must be a Batch|has .* entries"):
            sound_batch(given_, (7,))


@cache
def single() -> EngineEnv:
    env = EngineEnv(**SETTINGS)
    env.reset(seed=0)
    return env


@cache
def several() -> EngineVectorEnv:
    envs = EngineVectorEnv(2, **SETTINGS)
    envs.reset(seed=0)
    return envs


@pytest.mark.parametrize("env", [single, several])
def test_every_odd_value_as_seed_options_and_action(env: Callable[[], Any]) -> None:
    for value in VALUES:
        try_out(env().reset, {"seed": value})
        try_out(env().reset, {"options": value})
        env().reset(seed=0)

        def stepped(value: Any = value) -> None:
            observation, reward, *_ = env().step(value)
            assert np.isfinite(observation).all() and np.isfinite(reward).all()

        try_out(stepped, {})


def test_seeds_that_are_whole_floats_are_whole_numbers() -> None:
    (first, _), (second, _) = several().reset(seed=1.0), several().reset(seed=1)  # type: ignore[arg-type]
    np.testing.assert_array_equal(first, second)
    with pytest.raises(LLMGymError, match="3 seeds for 2 environments"):
        several().reset(seed=[1, 2, 3])


def test_nothing_steps_before_a_reset() -> None:
    for env in (EngineEnv(**SETTINGS), EngineVectorEnv(2, **SETTINGS)):
        with pytest.raises(LLMGymError, match=r"Call reset\(\) first"):
            env.step(0)


@pytest.mark.parametrize(
    "count", [0, -1, 2.5, None, True, "2", [2], float("nan"), 10**400, 10**9, 2**32]
)
def test_numbers_of_environments_that_cannot_be(count: Any) -> None:
    wrong = pytest.raises(LLMGymError, match=r"num_envs must|would take .* GB")
    with within(RUN_SECONDS, cpu_seconds=SECONDS), wrong:
        gym.make_vec("llmgym/Engine-v0", num_envs=count, **SETTINGS)
    assert EngineVectorEnv(2.0, **SETTINGS).num_envs == 2  # type: ignore[arg-type]


def division(step: Any) -> Any:
    return 1 / 0


def branch(step: Any) -> Any:
    return 1.0 if step.duration_s > 0 else 0.0


REWARDS: dict[str, Any] = {
    "nothing": lambda step: None,
    "text": lambda step: "a",
    "complex": lambda step: 1j * step.duration_s,
    "shape": lambda step: jnp.zeros(3),
    "list": lambda step: [1, 2],
    "object": lambda step: object(),
    "silent": lambda step: Silent(),
    "huge": lambda step: 10**400,
    "long": lambda step: range(10**9),
    "table": lambda step: {"a": 1},
    "division": division,
    "branch": branch,
    "number": lambda step: float(step.duration_s),
    "attribute": lambda step: step.nothing,
    "no argument": lambda: 1.0,
    "two arguments": lambda step, more: 1.0,
    "class": int,
    "built in": len,
}


@pytest.mark.parametrize("name", REWARDS)
def test_odd_answers_of_a_reward_are_refused_when_the_environment_is_made(name: str) -> None:
    with pytest.raises(LLMGymError, match="reward function") as raised:
        FunctionalEngine(**SETTINGS | {"reward": REWARDS[name]})
    assert len(str(raised.value)) <= MOST_CHARACTERS


def late(value: float) -> Any:
    """A reward that is finite in the first three steps."""
    return lambda step: jnp.where(step.after.steps > 3, value, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rewards_that_are_not_finite_are_refused_at_once_or_as_they_come(value: float) -> None:
    for kind in (EngineEnv, EngineVectorEnv):
        with pytest.raises(LLMGymError, match=r"The reward is .*nf|The reward is nan"):
            kind(**SETTINGS | {"reward": lambda step: value * jnp.ones(step.after.present.shape)})
    env, envs = (
        kind(**SETTINGS | {"reward": late(value)}) for kind in (EngineEnv, EngineVectorEnv)
    )
    for one, action in ((env, 0), (envs, [0])):
        one.reset(seed=0)
        for _ in range(3):
            one.step(action)
        with pytest.raises(LLMGymError, match=r"The reward is .*nf|The reward is nan"):
            one.step(action)


OPTIONS = ("load", "scenario", "start", "backlog_tokens", "window_s", "offset_s", "reset_mask")


@pytest.mark.parametrize("option", OPTIONS)
def test_odd_options_of_resets_are_right_or_refused(option: str) -> None:
    for value in [*VALUES, [[True], [True, False]], np.array([1.0, 2.0])]:
        try_out(several().reset, {"seed": 0, "options": {option: value}})
        if option != "reset_mask":
            try_out(single().reset, {"seed": 0, "options": {option: value}})


@pytest.mark.parametrize("slots", [np.array([1.0, 2.0]), [16], "many", b"auto", np.nan])
def test_sizes_of_the_table_that_cannot_be(slots: Any) -> None:
    with pytest.raises(LLMGymError, match="slots must be"):
        FunctionalEngine(**SETTINGS | {"slots": slots})


@pytest.mark.parametrize("kind", [FunctionalEngine, EngineEnv, made_vec])
@pytest.mark.parametrize("load", [[[1], [2, 3]], ([1], [2, 3]), [[0.5, 0.6]], np.ones((2, 2))])
def test_loads_of_uneven_lists_are_refused(kind: Callable[..., Any], load: Any) -> None:
    with pytest.raises(LLMGymError, match="load"):
        kind(**SETTINGS | {"load": load} | ({"num_envs": 2} if kind is made_vec else {}))
