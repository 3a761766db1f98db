"""Models that SB3 trained on plain environments become policies that act as the models do."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError
from llmgym.theory.capacity import at_load

pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from torch import nn

from llmgym.agents.of_interface import InterfaceChoice
from llmgym.agents.sb3_policies import policy_of
from llmgym.integrations.sb3 import SB3VecEnv

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::llmgym.core.errors.TableFullWarning"),  # small tables
    pytest.mark.filterwarnings("ignore:You have specified a mini-batch:UserWarning"),
]

SCENARIO = at_load(llmgym.scenario("paper-figure-1", slots=32), 0.7)
ENGINE: dict[str, Any] = {"scenario": SCENARIO, "max_steps": 64}
TINY: dict[str, Any] = {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}


def engines(**settings: Any) -> Any:
    return SB3VecEnv(gym.make_vec("llmgym/Engine-v0", num_envs=2, **ENGINE | settings))


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        (MaskablePPO, {"action": "tiles"}),
        (MaskablePPO, {"action": "split", "action_settings": {"shares": 3}}),
        (PPO, {"observation": ["decoding", "prefill_tokens", "arrival_rate"]}),
        (MaskablePPO, {"action": "budget", "action_settings": {"base": "vllm"}}),
    ],
)
def test_it_forms_the_batches_of_the_model(learner: Any, settings: dict[str, Any]) -> None:
    envs = VecNormalize(VecMonitor(engines(**settings)), norm_obs=False)
    model = learner("MlpPolicy", envs, **TINY).learn(64)
    policy: Any = policy_of(model)
    assert isinstance(policy.choice, InterfaceChoice) and policy.masks == (learner is MaskablePPO)
    env: Any = gym.make("llmgym/Engine-v0", **ENGINE | settings).unwrapped
    assert policy.choice.interface == env.core.interface
    act = jax.jit(lambda view, memory: policy(jax.random.key(0), view, memory)[0].tokens)
    observation, _ = env.reset(seed=1)
    for _ in range(40):
        masks = {"action_masks": env.action_masks()} if policy.masks else {}
        action, _ = model.predict(observation, deterministic=True, **masks)
        ours = act(env.core.view(env.state), env.state.memory)
        np.testing.assert_array_equal(env.core.expand(env.state, action).tokens, ours)
        observation, *_ = env.step(action)
    assert llmgym.simulate(SCENARIO, policy, duration_s=5).summary["arrived"] > 0


def test_a_model_on_a_single_environment_does_as_well() -> None:
    model = PPO("MlpPolicy", gym.make("llmgym/Engine-v0", **ENGINE), **TINY).learn(32)
    assert policy_of(model).choice == InterfaceChoice(SCENARIO)


def test_what_is_refused() -> None:
    own = llmgym.Feature("own", lambda view: view.token_budget * 0.0)
    scaled = VecNormalize(engines(), norm_obs=True)
    relu = {"policy_kwargs": {"activation_fn": nn.ReLU}}
    for model, message in [
        (PPO("MlpPolicy", scaled, **TINY), "train with norm_obs=False"),
        (PPO("MlpPolicy", engines(observation=["engine", own]), **TINY), "parts without names"),
        (PPO("MlpPolicy", engines(), **TINY, **relu), "with MlpPolicy and tanh"),
        (PPO("MlpPolicy", engines(action="scores"), **TINY), "parts without names"),
        (PPO("MlpPolicy", "CartPole-v1", device="cpu"), "Only a model of"),
        (DQN("MlpPolicy", engines(), device="cpu"), "Only a model of"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            policy_of(model)


def test_an_interface_is_named_again() -> None:
    for settings in (
        {"action": "tokens", "action_settings": {"quantum": 64}, "observed_requests": 2},
        {"observation": ["decoding", "rate_1"], "action": "budget"},
    ):
        core = llmgym.functional("llmgym/Engine-v0", scenario=SCENARIO, **settings)
        assert InterfaceChoice.of(core.interface).interface == core.interface
    mine = {"base": llmgym.baselines.make("vllm", token_budget=64)}  # its name says less
    core = llmgym.functional(
        "llmgym/Engine-v0", scenario=SCENARIO, action="budget", action_settings=mine
    )
    with pytest.raises(LLMGymError, match="parts without names"):
        InterfaceChoice.of(core.interface)
