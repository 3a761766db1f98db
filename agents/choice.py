"""What PPO needs to know of a choice: what a decision sees, what it may do, and what that means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.agents.neural import best_choice, init_mlp, log_prob_of, mlp
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.interface import Interface, Sight


@dataclass(frozen=True)
class Choice(ABC):
    """Observation and action of a learned policy: one choice in each of one or more parts.

    ``kind`` is its name in checkpoints.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def parts(self) -> tuple[int, ...]:
        """Number of choices in each part."""

    @property
    @abstractmethod
    def features(self) -> tuple[str, ...]:
        """Names of the features, without those of single requests."""

    @abstractmethod
    def look(self, view: View, memory: Any = None) -> Sight:
        """Features, mask and prior of a view, with the memory of ``start`` or ``decide``, if there is one."""

    @abstractmethod
    def batch(self, view: View, choice: jax.Array) -> Batch:
        """The batch of a choice (parts, ...), where no memory is needed; else see ``decide``."""

    @property
    def remembers(self) -> bool:
        """Whether forming a batch needs a memory."""
        return False

    def start(self, view: View) -> Any:
        """The memory at the beginning of a run, whose first state ``view`` shows; None without one."""
        return None

    def decide(self, view: View, choice: jax.Array, memory: Any) -> tuple[Batch, Any]:
        """The batch of a choice, and the memory for the next decision.

        Args:
            view: what the engines show.
            choice: a number in each part (parts, ...), int32.
            memory: from ``start`` or from the last decision; None without one.
        """
        return self.batch(view, choice), memory

    @property
    def interface(self) -> Interface:
        """The same for an environment: ``gym.make(..., interface=choice)``."""
        return OfChoice(self)

    @property
    def inputs(self) -> int:
        """Entries of an observation."""
        return len(self.features)

    @property
    def engines(self) -> int:
        """How many engines decide together."""
        return 1

    def init_actor(self, key: jax.Array, hidden: int) -> Any:
        """Weights of a network with two hidden layers: the untrained policy is nearly its prior."""
        return init_mlp(key, (len(self.features), hidden, hidden, sum(self.parts)), 0.01)

    def logits(self, actor: Any, features: jax.Array) -> jax.Array:
        """What the network adds to the prior (..., choices), for features (..., entries)."""
        return mlp(actor, features)

    def choose(self, view: View, scores: jax.Array) -> jax.Array:
        """The choice (..., parts) with the best scores (..., choices)."""
        return best_choice(self.parts, scores)

    def log_prob_of(self, log_p: jax.Array, choice: jax.Array) -> jax.Array:
        """Log probability of a choice (..., parts), from those of all choices (..., choices)."""
        return log_prob_of(self.parts, log_p, choice)


@dataclass(frozen=True)
class OfChoice(Interface):
    """The interface of an environment whose agent sees and does what a choice says.

    In a network the entries of the first engine come first.
    """

    choice: Choice

    @property
    def names(self) -> tuple[str, ...]:
        several, features = self.choice.engines, self.choice.features
        if several == 1:
            return features
        return tuple(f"engine {n + 1}.{name}" for n in range(several) for name in features)

    @property
    def observation_space(self) -> gym.spaces.Box:
        entries = self.choice.inputs * self.choice.engines
        return gym.spaces.Box(-np.inf, np.inf, (entries,), np.float32)

    @property
    def action_space(self) -> gym.spaces.Space[Any]:
        parts = self.choice.parts * self.choice.engines
        return (
            gym.spaces.Discrete(parts[0])
            if len(parts) == 1
            else gym.spaces.MultiDiscrete(np.array(parts))
        )

    def start(self, view: View) -> Any:
        return self.choice.start(view)

    def look(self, view: View, memory: Any) -> Sight:
        sight = self.choice.look(view, memory)
        return jax.tree.map(self._in_a_row, sight)

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        engines, parts = self.choice.engines, len(self.choice.parts)
        action = jnp.asarray(action, jnp.int32)
        if engines * parts == 1:
            chosen = action[None]
        elif engines == 1:
            chosen = action
        else:
            chosen = jnp.moveaxis(action.reshape(engines, parts, *action.shape[1:]), 0, 1)
        return self.choice.decide(view, chosen, memory)

    def _in_a_row(self, x: jax.Array) -> jax.Array:
        """Entries (entries, engines, ...) as (engines * entries, ...)."""
        if self.choice.engines == 1:
            return x
        return jnp.moveaxis(x, 1, 0).reshape(-1, *x.shape[2:])
