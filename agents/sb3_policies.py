"""Models of Stable-Baselines3 as policies of llmgym: their weights, in JAX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_wrapper

from llmgym.agents import checkpoint
from llmgym.agents.choice import Choice
from llmgym.agents.of_interface import InterfaceChoice
from llmgym.agents.sb3_networks import Residual
from llmgym.agents.trained import TrainedPolicy
from llmgym.core.errors import LLMGymError

Layers = list[torch.nn.Linear]


def policy_of(
    model: BaseAlgorithm, choice: Choice | None = None, header: Mapping[str, Any] | None = None
) -> TrainedPolicy:
    """The policy of a model, with its weights in JAX; it chooses as
    ``model.predict(..., deterministic=True)`` does.

    Args:
        model: from ``llmgym.agents.sb3_ppo.train``; or PPO or MaskablePPO with "MlpPolicy" (tanh between
            the layers, its default), trained on an environment of one engine that was made by ``gym.make``
            or ``gym.make_vec`` with names of observation and action. As SB3 loads them they need ``choice``.
        choice: what it observes and may do; None: what the model's environment says.
        header: what a checkpoint will say of it.

    Raises LLMGymError for another model.
    """
    ours = isinstance(model, DQN) or isinstance(model.policy, Residual)
    if choice is None:
        choice = _told(model) if ours else _seen(model)
    layers = _layers(model)
    if choice is None or not layers:
        raise LLMGymError(
            "Only a model of llmgym.agents.sb3_ppo.train, or PPO or MaskablePPO with MlpPolicy and tanh, "
            "becomes a policy of llmgym; one that was loaded from a file also needs its choice."
        )
    sizes = layers[0].in_features, layers[-1].out_features
    if sizes != (choice.inputs, sum(choice.parts)):
        raise LLMGymError(
            f"The model has {sizes[0]} inputs and {sizes[1]} outputs, and the choice "
            f"{choice.inputs} and {sum(choice.parts)}."
        )
    actor = [
        {name: x.detach().numpy().T.copy() for name, x in layer.named_parameters()}
        for layer in layers
    ]
    label = f"sb3-{type(model).__name__.lower()}"
    masks = isinstance(model, MaskablePPO)
    return checkpoint.policy_of(choice, actor, dict(header or {}), label, masks)


def _told(model: BaseAlgorithm) -> Choice | None:
    """The choice of the worlds of ``train``."""
    env = model.get_env()
    if isinstance(env, VecEnv) and env.has_attr("choice"):
        found: Choice = env.get_attr("choice")[0]
        return found
    return None


def _seen(model: BaseAlgorithm) -> Choice | None:
    """The choice that the interface of a model's environments stands for.

    Raises LLMGymError where what the network sees is not what they show.
    """
    env = model.get_env()
    if not isinstance(env, VecEnv) or not env.has_attr("core"):
        return None
    normal = unwrap_vec_wrapper(env, VecNormalize)
    if isinstance(normal, VecNormalize) and normal.norm_obs:
        raise LLMGymError(
            "VecNormalize has scaled what the model saw, which a policy of llmgym cannot: train with "
            "norm_obs=False; the entries of an observation are of the order of 1."
        )
    return InterfaceChoice.of(env.get_attr("core")[0].interface)


def _layers(model: BaseAlgorithm) -> Layers:
    """The layers of the actor, or of the Q-network; none of a model that is no policy of llmgym."""
    policy: Any = model.policy
    if isinstance(model, DQN):
        nets = [policy.q_net.q_net]
    elif isinstance(policy, Residual) or _plain(policy):
        towers: Any = policy
        nets = [towers.mlp_extractor.policy_net, towers.action_net]
    else:
        return []
    return [x for net in nets for x in net.modules() if isinstance(x, torch.nn.Linear)]


def _plain(policy: Any) -> bool:
    """Whether a policy is SB3's MlpPolicy, or sb3-contrib's, with tanh and choices."""
    actor_critic = isinstance(policy, ActorCriticPolicy) or hasattr(policy, "mlp_extractor")
    return (
        actor_critic
        and isinstance(policy.features_extractor, FlattenExtractor)
        and policy.activation_fn is torch.nn.Tanh
    )
