"""What PPO needs to know of a choice: what a decision sees, what it may do, and what that means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from llmgym.agents.neural import best_choice, init_mlp, log_prob_of, mlp
from llmgym.core.pytree import register
from llmgym.engine.view import Batch, View


@register
@dataclass(frozen=True)
class Sight:
    """What a decision is made of; arrays (entries, ...)."""

    features: jax.Array  # float32
    mask: jax.Array  # bool, allowed choices, part after part
    prior: jax.Array  # float32, logits of the untrained policy, of the same choices


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
    def look(self, view: View) -> Sight:
        """Features, mask and prior of a view."""

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
