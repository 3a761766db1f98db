"""What a PPO run is made of: its worlds, what they have seen, and all that an iteration changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from llmgym.core.pytree import register


@register
@dataclass(frozen=True)
class World:
    """A block of environments; in a group of worlds their axis stands before all others."""

    number: jax.Array
    engine: Any  # the state of its environments
    key: jax.Array  # words of the random key of its decisions
    rates: jax.Array  # mean per second of what ``arrivals`` counts
    cost: jax.Array  # fading sum over the iterations so far
    seconds: jax.Array  # likewise
    scale: jax.Array  # standard deviation of the values
    memory: Any = None  # of the choice, if it has one


@register
@dataclass(frozen=True)
class Learner:
    """Everything that an iteration changes."""

    params: dict[str, Any]
    optimizer: Any
    worlds: tuple[World, ...]  # groups that share a compiled form
    key: jax.Array  # words
    iteration: jax.Array


class Experience(NamedTuple):
    """Decisions (worlds, steps, envs, ...)."""

    features: jax.Array
    mask: jax.Array
    prior: jax.Array
    choice: jax.Array  # (..., parts)
    log_prob: jax.Array
    critic: jax.Array  # what the critic sees
    cost: jax.Array
    seconds: jax.Array
    surprise: jax.Array  # what arrived, less its mean
