"""A trained policy: an ordinary policy object, with the network's weights in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.networks import Layers, best_choice, log_probs, mlp
from llmgym.agents.tiles import TileChoice
from llmgym.baselines.policy import Policy
from llmgym.composition import Batch, View, own_budget


@dataclass(frozen=True)
class TrainedPolicy(Policy):
    """The likeliest choice of an actor network; equal and hashed by its digest.

    Attributes:
        choice: what it observes and what it may do.
        digest: of the choice and the weights.
        label: its name in tables.
        actor: the layers.
        header: what the checkpoint says of itself: scenarios, settings, seed, versions, figures.
    """

    choice: TileChoice | NetworkChoice = field(default_factory=TileChoice)
    digest: str = ""
    label: str = field(default="trained", compare=False)
    actor: Layers = field(default_factory=list, compare=False, repr=False)
    header: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    name: ClassVar[str] = "trained"

    @property
    def saturates(self) -> bool:  # type: ignore[override]
        """On one engine with a guard more waiting requests never slow it down."""
        return isinstance(self.choice, TileChoice) and self.choice.guard is not None

    def __call__(self, key: jax.Array, view: View) -> Batch:
        view = replace(view, token_budget=own_budget(view, self.token_budget))
        sight = self.choice.look(view)
        features, mask, prior = (
            jnp.moveaxis(x, 0, -1) for x in (sight.features, sight.mask, sight.prior)
        )
        actor = [{name: jnp.asarray(x) for name, x in layer.items()} for layer in self.actor]
        log_p = log_probs(self.choice.parts, prior + mlp(actor, features), mask)
        return self.choice.batch(view, jnp.moveaxis(best_choice(self.choice.parts, log_p), -1, 0))
