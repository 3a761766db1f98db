"""What an agent sees and does: the one object that environments, learners and trained policies share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.encoding import ActionEncoding, parts_of
from llmgym.envs.interface.observations import ObservationBase


@register
@dataclass(frozen=True)
class Sight:
    """What a decision is made of; arrays (entries, ...)."""

    features: jax.Array  # float32
    mask: jax.Array  # bool, allowed choices, part after part
    prior: jax.Array  # float32, logits of the untrained policy, of the same choices


class Interface(ABC):
    """What an agent sees and does.

    All functions work on a View with any batch axes behind the slots; axis 0 of what they give counts
    entries or choices. The memory is a pytree that travels with the environment's state.
    """

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the entries of the observation."""

    @property
    @abstractmethod
    def observation_space(self) -> gym.spaces.Box:
        """Space of observations."""

    @property
    @abstractmethod
    def action_space(self) -> gym.Space[Any] | None:
        """Space of actions; None where an action is a Batch itself."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of choices in each dimension of the action; () where it is none of choices."""
        return parts_of(self.action_space)

    @abstractmethod
    def start(self, view: View) -> Any:
        """The memory at the start of an episode, whose first state ``view`` shows; None without one."""

    @abstractmethod
    def look(self, view: View, memory: Any) -> Sight:
        """What a decision at ``view`` is made of."""

    @abstractmethod
    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        """The batch of an action, and the memory for the next decision.

        Args:
            action: an element of ``action_space``; of a batch of environments with its axes last.
            view: what the engines show.
            memory: as ``start`` or the decision before returned it.
        """


@dataclass(frozen=True)
class Composed(Interface):
    """An observation and an action encoding."""

    observation: ObservationBase
    action: ActionEncoding

    @property
    def names(self) -> tuple[str, ...]:
        return self.observation.names

    @property
    def observation_space(self) -> gym.spaces.Box:
        return self.observation.space

    @property
    def action_space(self) -> gym.Space[Any] | None:
        return self.action.space

    def start(self, view: View) -> tuple[Any, Any]:
        return self.observation.start(view), self.action.start(view)

    def look(self, view: View, memory: Any) -> Sight:
        mask = self.action.mask(view)
        prior = self.action.prior(view) if hasattr(self.action, "prior") else None
        if prior is None:
            prior = jnp.zeros(mask.shape, jnp.float32)
        return Sight(self.observation(view, memory[0]), mask, prior)

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        seen, done = memory
        batch, done = self.action.decide(action, view, done)
        return batch, (self.observation.remember(view, seen), done)
