"""Networks of Stable-Baselines3 for ``Worlds``: on top of a prior, beside a critic that sees more."""

from __future__ import annotations

from typing import Any

import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor

HIDDEN = (32, 32)
"""Units of the hidden layers."""


class _Towers(MlpExtractor):
    """Hidden layers of actor and critic: see ``Worlds`` for what they observe.

    The prior bypasses those of the actor. The work, in which values are quadratic, enters those of the
    critic and bypasses them as well.
    """

    def __init__(self, inputs: int, logits: int, size: int, **settings: Any) -> None:
        super().__init__(inputs, **settings)
        self.sizes = (inputs, logits, size - inputs - logits)
        first, *others = self.value_net.children()
        wider = torch.nn.Linear(inputs + self.sizes[2], first.out_features)  # type: ignore[arg-type]
        self.value_net = torch.nn.Sequential(wider, *others)
        self.latent_dim_vf += self.sizes[2]

    def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
        seen, prior, _ = features.split(self.sizes, dim=1)
        return torch.cat([self.policy_net(seen), prior], dim=1)

    def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
        seen, _, work = features.split(self.sizes, dim=1)
        return torch.cat([self.value_net(torch.cat([seen, work], dim=1)), work], dim=1)


class _Logits(torch.nn.Module):
    """Logits of the choices: what the last layer says, on top of the prior."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        inputs = self.layer.in_features
        return self.layer(latent[:, :inputs]) + latent[:, inputs:]


class Residual:
    """An actor-critic policy of SB3 for the observations of ``Worlds``: features, logits, the rest."""

    mlp_extractor: Any
    action_net: Any

    def __init__(self, *args: Any, inputs: int, logits: int, **settings: Any) -> None:
        self.inputs, self.logits = inputs, logits
        super().__init__(*args, **settings)

    def _build_mlp_extractor(self: Any) -> None:
        self.mlp_extractor = _Towers(
            self.inputs,
            self.logits,
            self.features_dim,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            device=self.device,
        )

    def _build(self: Any, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = _Logits(self.action_net)  # the optimizer has its parameters already

    def _get_constructor_parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = super()._get_constructor_parameters()  # type: ignore[misc]
        return found | {"inputs": self.inputs, "logits": self.logits}


class ResidualPolicy(Residual, ActorCriticPolicy):
    """SB3's actor-critic, on top of the prior."""


class MaskableResidualPolicy(Residual, MaskableActorCriticPolicy):
    """sb3-contrib's, which knows masks."""
