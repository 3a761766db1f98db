"""``llmgym/Network-v0``: both checkers, masks, routing choices, pictures."""

from __future__ import annotations

from typing import Any

import env_samples
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.envs.rendering.network import NetworkRenderer

SLOW = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("error")


def settings(action: str) -> dict:
    scenario = llmgym.scenario("planner-workers-critic", slots=32)
    return {"scenario": scenario, "action": action, "max_steps": 48}


@pytest.mark.parametrize(
    "action",
    ["tiles", *(pytest.param(a, marks=SLOW) for a in ("split", "tokens", "scores"))],
)
def test_both_checkers_are_content(action: str) -> None:
    env = gym.make("llmgym/Network-v0", **settings(action))
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)
    observation, info = env.reset(seed=1)
    core = env.unwrapped.core  # type: ignore[attr-defined]
    assert len(core.observation.names) == observation.size
    over = False
    while not over:
        observation, reward, terminated, over, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert reward <= 0
        assert not terminated
    if isinstance(env.action_space, gym.spaces.MultiDiscrete):
        assert [mask.size for mask in info["action_mask"]] == list(env.action_space.nvec)
        assert env.action_space.contains(env.action_space.sample(info["action_mask"]))


@SLOW
def test_the_vector_environment_is_checked() -> None:
    envs = gym.make_vec("llmgym/Network-v0", num_envs=3, **settings("tiles"))
    llmgym.check_vector_env(envs)


def test_the_agent_routes() -> None:
    scenario = llmgym.scenario("load-balanced", router="action", slots=64)
    core = llmgym.functional("llmgym/Network-v0", scenario=scenario)
    assert core.action_space.nvec.tolist() == [4, 4, 2]
    import jax

    state, step = core.init(jax.random.key(0)), jax.jit(core.step)
    for _ in range(60):
        state, result = step(state, np.array([3, 3, 1]))
    batches = np.asarray(state.engine.batches)
    assert batches[0] <= 1  # what came before the first choice
    assert batches[1] > 10
    assert float(result.reward) < 0


def test_pictures() -> None:
    env = gym.make("llmgym/Network-v0", render_mode="rgb_array", **settings("tiles"))
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.array([3, 3, 3]))
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (480, 800, 3)
    assert picture.std() > 10
    inside: Any = env.unwrapped
    text = NetworkRenderer(inside.core, "ansi").render(inside.state)
    assert isinstance(text, str)
    assert all(name in text for name in ("large", "workers-1", "workers-2"))


def test_what_cannot_be() -> None:
    with pytest.raises(LLMGymError, match="judges single calls"):
        llmgym.functional("llmgym/Network-v0", reward="goodput")
    with pytest.raises(LLMGymError, match="Did you mean 'tiles'"):
        llmgym.functional("llmgym/Network-v0", action="tile")
    with pytest.raises(LLMGymError, match="Did you mean 'llmgym/Network-v0'"):
        llmgym.functional("llmgym/Netwrk-v0")


@pytest.mark.parametrize("action", ["tiles", pytest.param("scores", marks=SLOW)])
def test_one_engine_is_a_network_of_one(action: str) -> None:
    """The same epochs as llmgym/Engine-v0 shows, with a row of choices of which there is one."""
    network = gym.make("llmgym/Network-v0", **env_samples.settings(action))
    engine = env_samples.single_env(action)
    for env in (network, engine):
        env.reset(seed=1)
    network.action_space.seed(1)
    for _ in range(40):
        choice = network.action_space.sample()
        seen = network.step(choice)
        alone = engine.step(int(choice[0]) if action == "tiles" else choice)
        assert seen[1] == pytest.approx(float(alone[1]), rel=1e-5)  # two compiled programs
        assert seen[4]["in_system"] == alone[4]["in_system"]
        assert network.observation_space.contains(seen[0])
    with pytest.raises(LLMGymError, match="judges single calls"):
        gym.make("llmgym/Network-v0", scenario="slo", reward="goodput")
