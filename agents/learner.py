"""What a PPO run is made of: its worlds, what they have seen, all that an iteration changes; when it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

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


def stalled(cost: np.ndarray, patience: int, memory: float = 0.9, least: float = 0.001) -> bool:
    """Whether costs have stopped falling.

    Args:
        cost: per second, after each iteration (iterations, worlds), positive.
        patience: iterations without progress that are tolerated.
        memory: weight of the past in the smoothed mean of log(cost) over the worlds.
        least: fall of that mean below its lowest value so far that counts as progress.
    """
    level, best, since = np.log(cost[0]).mean(), np.inf, 0
    for row in cost:
        level = memory * level + (1 - memory) * np.log(row).mean()
        since = 0 if level < best - least else since + 1
        best = level if since == 0 else best
    return since > patience
