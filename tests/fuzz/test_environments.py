"""Odd values in environments: constructors, reset, actions and rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from odd_values import ONE

import llmgym
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.gym_env import EngineEnv
from llmgym.envs.interface import actions as encodings
from llmgym.envs.interface.observations import Observation
from llmgym.envs.network import FunctionalNetwork
from llmgym.envs.rewards import make_reward
from llmgym.envs.vector_env import EngineVectorEnv
from llmgym.integrations.pettingzoo import NetworkParallelEnv

SETTINGS: dict[str, Any] = {
    "scenario": ONE, "load": None, "action": "tiles", "reward": "holding_cost", "max_steps": 8,
    "observed_requests": 0, "action_settings": None, "reward_settings": None,
}  # fmt: skip


def made(**settings: Any) -> Any:
    return gym.make("llmgym/Engine-v0", **settings)


def made_vec(**settings: Any) -> Any:
    return gym.make_vec("llmgym/Engine-v0", **settings)


CONSTRUCTORS: dict[Callable[..., Any], dict[str, Any]] = {
    FunctionalEngine: SETTINGS,
    FunctionalNetwork: SETTINGS,
    EngineEnv: SETTINGS | {"render_mode": None},
    EngineVectorEnv: SETTINGS | {"num_envs": 2, "render_mode": None},
    NetworkParallelEnv: SETTINGS,
    llmgym.functional: SETTINGS | {"env_id": "llmgym/Engine-v0"},
    made: SETTINGS | {"render_mode": None},
    made_vec: SETTINGS | {"num_envs": 2},
    encodings.Tiles: {"scenario": ONE},
    encodings.Split: {"scenario": ONE, "shares": 5},
    encodings.Tokens: {"scenario": ONE, "quantum": 16},
    encodings.Scores: {"scenario": ONE, "requests": 32},
    encodings.Budget: {"scenario": ONE, "base": "sarathi"},
    encodings.make_encoding: {"scenario": ONE, "action": "split", "shares": 3},
    Observation: {"scenario": ONE, "requests": 2},
    make_reward: {
        "scenario": ONE, "reward": "weighted_holding", "prefill_weight": 1.0, "decode_weight": 1.0,
    },
}  # fmt: skip
