"""Stable-Baselines3: the adapter keeps its interface, and its algorithms train on every encoding."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import ACTIONS, MAX_STEPS, NUM_ENVS, single_env, vector_env
from env_samples import settings as env_settings
from gymnasium.vector import AutoresetMode, VectorWrapper

import llmgym
from llmgym import LLMGymError

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from llmgym.envs.gym_env import EngineEnv
from llmgym.integrations.lazy_info import LazyInfo, columns_of, row_of
from llmgym.integrations.sb3 import SB3VecEnv

pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore::llmgym.core.errors.TableFullWarning"),  # small tables
    # Torch and TensorBoard speak of their own future.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MASKABLE = ("tiles", "split", "tokens")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cartpole(mode: AutoresetMode = AutoresetMode.SAME_STEP) -> Any:
    return gym.make_vec(
        "CartPole-v1", 3, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )


def test_it_is_a_dummy_vec_env_of_single_environments_but_faster() -> None:
    # SB3's own way: one environment after another. Same seeds, same actions, same everything.
    ours = SB3VecEnv(vector_env("tiles"))
    dummy = DummyVecEnv([lambda: EngineEnv(**env_settings("tiles"))] * NUM_ENVS)
    rng = np.random.default_rng(0)
    for env in (ours, dummy):
        env.seed(11)
    np.testing.assert_array_equal(ours.reset(), dummy.reset())
    for info, expected in zip(ours.reset_infos, dummy.reset_infos, strict=True):
        assert_same_info(info, expected)
    for step in range(1, MAX_STEPS + 1):
        actions = rng.integers(0, 4, NUM_ENVS)
        (obs, rewards, dones, infos), expected = ours.step(actions), dummy.step(actions)
        np.testing.assert_array_equal(rewards, expected[1])
        np.testing.assert_array_equal(dones, expected[2])
        assert dones.all() == (step == MAX_STEPS) and rewards.dtype == np.float32
        if step < MAX_STEPS:  # the episodes after the first have other seeds
            np.testing.assert_array_equal(obs, expected[0])
        for one, other in zip(infos, expected[3], strict=True):
            assert_same_info(one, other)
    assert infos[0]["TimeLimit.truncated"] is True


def assert_same_info(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert set(one) == set(other)
    for key, value in other.items():
        np.testing.assert_array_equal(one[key], value, err_msg=key)
        if not isinstance(value, np.ndarray):
            assert type(one[key]) is type(value)


def test_terminal_observation_is_the_last_of_the_episode() -> None:
    envs = vector_env("tiles")
    adapter = SB3VecEnv(envs)
    adapter.reset()
    for _ in range(MAX_STEPS):
        observation, _, dones, infos = adapter.step(np.zeros(NUM_ENVS, int))
    assert dones.all()
    for row, info in zip(observation, infos, strict=True):
        assert not np.array_equal(row, info["terminal_observation"])
        assert info["terminal_observation"].shape == row.shape


def test_cartpole_terminates_and_is_not_truncated() -> None:
    # Any vector environment with autoreset in the same step will do.
    adapter = VecMonitor(SB3VecEnv(cartpole()))
    adapter.seed(0)
    adapter.reset()
    lengths, episodes = np.zeros(3, int), 0
    for _ in range(60):
        _, _, dones, infos = adapter.step(np.ones(3, int))
        lengths += 1
        for i in np.flatnonzero(dones):
            assert infos[i]["TimeLimit.truncated"] is False
            assert np.abs(infos[i]["terminal_observation"][2]) > 0.2  # fallen over
            assert infos[i]["episode"]["l"] == infos[i]["episode"]["r"] == lengths[i]
            lengths[i], episodes = 0, episodes + 1
        assert all("episode" not in infos[i] for i in np.flatnonzero(~dones))
    assert episodes >= 10
    assert adapter.get_attr("gravity") == [9.8] * 3  # of the sub-environments
    adapter.set_attr("gravity", 5.0)
    assert adapter.get_attr("gravity", [0, 2]) == [5.0, 5.0]
    assert [a.n for a in adapter.get_attr("single_action_space")] == [2, 2, 2]


def test_an_attribute_is_set_where_it_is_found() -> None:
    class Noted(VectorWrapper):  # type: ignore[type-arg]
        """A wrapper with an attribute of its own."""

        note = "old"

    inner = Noted(cartpole())
    adapter = SB3VecEnv(VectorWrapper(inner))
    assert adapter.get_attr("note") == ["old"] * 3
    adapter.set_attr("note", "new")
    assert adapter.get_attr("note") == ["new"] * 3 and inner.note == "new"
    assert not hasattr(inner.unwrapped, "note")


def test_seed_holds_for_the_next_reset_only() -> None:
    adapter = SB3VecEnv(cartpole())
    adapter.seed(4)
    first, second = adapter.reset(), adapter.reset()
    adapter.seed(4)
    np.testing.assert_array_equal(adapter.reset(), first)
    assert (first != second).any()


def test_masks_are_found() -> None:
    envs = vector_env("split")
    adapter = VecMonitor(SB3VecEnv(envs))
    assert is_masking_supported(adapter)
    adapter.reset()
    np.testing.assert_array_equal(get_action_masks(adapter), envs.action_masks())
    np.testing.assert_array_equal(adapter.env_method("action_masks", indices=[2])[0],
                                  envs.action_masks()[2])  # fmt: skip
    assert not is_masking_supported(SB3VecEnv(cartpole()))
    with pytest.raises(AttributeError, match="nothing"):
        adapter.get_attr("nothing")


def test_attributes_belong_to_all() -> None:
    adapter = SB3VecEnv(vector_env("tiles"))
    assert adapter.get_attr("render_mode") == [None] * NUM_ENVS
    assert adapter.get_attr("num_envs", 1) == [NUM_ENVS]
    adapter.set_attr("note", "x")
    assert adapter.get_attr("note", [0]) == ["x"]
    with pytest.raises(LLMGymError, match="for all of them"):
        adapter.set_attr("note", "y", indices=[0])
    adapter.set_options([{"a": 1}, {}, {}, {}])
    with pytest.raises(LLMGymError, match="same options"):
        adapter.reset()


def test_what_it_refuses() -> None:
    with pytest.raises(LLMGymError, match="NEXT_STEP"):
        SB3VecEnv(cartpole(AutoresetMode.NEXT_STEP))
    with pytest.raises(LLMGymError, match="make_vec"):
        SB3VecEnv(single_env("tiles"))  # type: ignore[arg-type]


def test_infos_follow_their_masks() -> None:
    info = {
        "speed": np.array([1.5, 2.5, 3.5]),
        "_speed": np.array([True, False, True]),
        "count": np.array([1, 2, 3], np.int32),
        "_count": np.ones(3, bool),
        "inner": {"flag": np.array([True, False, False])},
        "_inner": np.array([False, True, True]),
    }
    expected = [
        {"speed": 1.5, "count": 1},
        {"count": 2, "inner": {"flag": False}},
        {"speed": 3.5, "count": 3, "inner": {"flag": False}},
    ]
    assert [row_of(columns_of(info), i) for i in range(3)] == expected
    assert [LazyInfo(columns_of(info), i) for i in range(3)] == expected
    assert LazyInfo({}, 2) == {}


LOOKS: list[Any] = [
    dict, lambda d: {**d}, lambda d: d | {}, lambda d: {} | d, copy.copy, copy.deepcopy,
    lambda d: d.copy(), lambda d: dict(d.items()), lambda d: {k: d[k] for k in d}, lambda d: {
        k: d.get(k) for k in ("speed", "count")}, lambda d: dict(zip(d.keys(), d.values(), strict=True)),
    lambda d: pickle.loads(pickle.dumps(d)),
    lambda d: json.loads(json.dumps(dict(d))), lambda d: eval(repr(d)),
    lambda d: {k: d.pop(k) for k in ("count", "speed")},
]  # fmt: skip


@pytest.mark.parametrize("look", LOOKS)
def test_however_an_info_is_looked_at_it_is_filled(look: Any) -> None:
    columns = columns_of({"speed": np.array([1.5, 2.5]), "count": np.array([1, 2], np.int32)})
    assert look(LazyInfo(columns, 1)) == {"speed": 2.5, "count": 2}
    one = LazyInfo(columns, 0)
    assert one.get("nothing") is None and one.get("nothing", 3) == 3
    one["more"] = True
    assert len(one) == 3 and "speed" in one and bool(LazyInfo(columns, 0))


def test_without_sb3_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['stable_baselines3'] = None\n"
        "try:\n    import llmgym.integrations.sb3\n"
        "except ImportError as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'llmgym[sb3]'" in result.stdout


def settings(steps: int) -> dict[str, Any]:
    return {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "seed": 0, "device": "cpu"} | (
        {"n_steps": 256} if steps > 1000 else {}
    )


def assert_trained(model: Any, steps: int) -> None:
    assert model.num_timesteps >= steps
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())
    assert len(model.ep_info_buffer) > 0
    lengths = {episode["l"] for episode in model.ep_info_buffer}
    assert lengths == {MAX_STEPS}


BUDGETS = [512, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("steps", BUDGETS)
@pytest.mark.parametrize("action", ACTIONS)
def test_ppo_trains_on_the_adapter(action: str, steps: int) -> None:
    model = PPO("MlpPolicy", VecMonitor(SB3VecEnv(vector_env(action))), **settings(steps))
    assert_trained(model.learn(steps), steps)


@pytest.mark.parametrize("steps", BUDGETS)
@pytest.mark.parametrize("action", MASKABLE)
def test_maskable_ppo_trains_on_the_adapter(action: str, steps: int) -> None:
    adapter = VecMonitor(SB3VecEnv(vector_env(action)))
    model = MaskablePPO("MlpPolicy", adapter, **settings(steps))
    assert_trained(model.learn(steps), steps)
    observation = adapter.reset()
    masks = get_action_masks(adapter)
    actions, _ = model.predict(observation, action_masks=masks)
    chosen = np.atleast_2d(actions.T).T  # (num_envs, dimensions)
    space = adapter.action_space
    starts = [0] if action == "tiles" else [0, *np.cumsum(space.nvec)[:-1]]  # type: ignore[attr-defined]
    for row, mask in zip(chosen, masks, strict=True):
        assert all(mask[start + choice] for start, choice in zip(starts, row, strict=True))


@pytest.mark.parametrize("steps", BUDGETS)
def test_ppo_trains_on_a_plain_environment(steps: int) -> None:
    model = PPO("MlpPolicy", single_env("tiles"), **settings(steps))
    assert_trained(model.learn(steps), steps)


@pytest.mark.parametrize("steps", BUDGETS)
def test_dqn_trains_on_tiles(steps: int) -> None:
    model = DQN("MlpPolicy", VecMonitor(SB3VecEnv(vector_env("tiles"))), learning_starts=100,
                buffer_size=2000, seed=0, device="cpu")  # fmt: skip
    assert_trained(model.learn(steps), steps)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["tiles", "split"])
@pytest.mark.parametrize("learner", [PPO, MaskablePPO])
def test_networks_train_on_the_adapter(action: str, learner: Any) -> None:
    envs = gym.make_vec(
        "llmgym/Network-v0",
        num_envs=4,
        scenario=llmgym.scenario("rybko-stolyar-reversed", slots=64),
        load=0.5,
        action=action,
        max_steps=MAX_STEPS,
    )
    model = learner("MlpPolicy", VecMonitor(SB3VecEnv(envs)), **settings(512))
    assert_trained(model.learn(512), 512)


def test_evaluation_and_normalisation_wrap_it() -> None:
    adapter = VecNormalize(VecMonitor(SB3VecEnv(vector_env("tiles"))))
    model = PPO("MlpPolicy", adapter, **settings(0))
    rewards, lengths = evaluate_policy(model, adapter, 4, return_episode_rewards=True)
    assert lengths == [MAX_STEPS] * 4 and all(reward < 0 for reward in rewards)
