"""A trained policy: an ordinary policy object, with the network's weights in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.agents.choice import Choice
from llmgym.agents.neural import log_probs, nearest_choice
from llmgym.agents.tile_choice import TileChoice
from llmgym.baselines.policy import Policy
from llmgym.engine.fill import own_budget
from llmgym.engine.view import View


@dataclass(frozen=True)
class TrainedPolicy(Policy):
    """The likeliest choice of an actor network; equal and hashed by its digest.

    Attributes:
        choice: what it observes and what it may do.
        digest: of the choice and the weights.
        label: its name in tables.
        masks: whether only allowed choices compete; else the likeliest of all wins, and the nearest
            allowed one takes its place.
        actor: the weights, of ``choice.init_actor``.
        header: what the checkpoint says of itself: scenarios, settings, seed, versions, figures.
    """

    choice: Choice = field(default_factory=TileChoice)
    digest: str = ""
    label: str = field(default="trained", compare=False)
    masks: bool = True
    actor: Any = field(default_factory=list, compare=False, repr=False)
    header: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    name: ClassVar[str] = "trained"

    @property
    def saturates(self) -> bool:  # type: ignore[override]
        """Whether more waiting requests never slow it down: on one engine, with a guard."""
        return isinstance(self.choice, TileChoice) and self.choice.guard is not None

    @property
    def start(self) -> Callable[[View], Any] | None:
        """What gives the first memory; None where the choice, and so the policy, has none."""
        return self.choice.start if self.choice.remembers else None

    def __call__(self, key: jax.Array, view: View, memory: Any = None) -> Any:
        """The batch; where the choice has a memory (Batch, memory)."""
        view = replace(view, token_budget=own_budget(view, self.token_budget))
        sight = self.choice.look(view, memory)
        features, mask, prior = (
            jnp.moveaxis(x, 0, -1) for x in (sight.features, sight.mask, sight.prior)
        )
        actor = jax.tree.map(jnp.asarray, self.actor)
        compete = mask if self.masks else jnp.ones_like(mask)
        logits = prior + self.choice.logits(actor, features)
        chosen = self.choice.choose(view, log_probs(self.choice.parts, logits, compete))
        if not self.masks:
            chosen = nearest_choice(self.choice.parts, mask, chosen)
        batch, memory = self.choice.decide(view, jnp.moveaxis(chosen, -1, 0), memory)
        return (batch, memory) if self.choice.remembers else batch
