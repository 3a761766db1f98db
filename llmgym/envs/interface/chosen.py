"""An observation put together from entries by name and from features of users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import as_list
from llmgym.core.errors import LLMGymError, shown, unknown
from llmgym.engine.view import View
from llmgym.envs.interface.features import FEATURES, Feature
from llmgym.envs.interface.observations import ObservationBase

ENGINE = "engine"
"""The name of all entries of the observation of llmgym."""


@dataclass(frozen=True)
class Chosen(ObservationBase):
    """Some entries of an observation, and features behind them.

    Args:
        whole: the observation from which entries are taken, with its memory.
        taken: their numbers.
        features: what stands behind them.
    """

    whole: ObservationBase
    taken: tuple[int, ...]
    features: tuple[Feature, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        return (*(self.whole.names[n] for n in self.taken), *(f.name for f in self.features))

    @cached_property
    def space(self) -> gym.spaces.Box:
        """Box of float32 with finite bounds."""
        whole, taken = self.whole.space, list(self.taken)
        low = np.append(whole.low[taken], [f.low for f in self.features]).astype(np.float32)
        high = np.append(whole.high[taken], [f.high for f in self.features]).astype(np.float32)
        return gym.spaces.Box(low, high, dtype=np.float32)

    def start(self, view: View) -> Any:
        return self.whole.start(view)

    def remember(self, view: View, memory: Any) -> Any:
        return self.whole.remember(view, memory)

    def __call__(self, view: View, memory: Any) -> jax.Array:
        """The vector (entries, ...)."""
        own = [feature(view) for feature in self.features]
        if not self.taken:
            return jnp.stack(own)
        vector = self.whole(view, memory)[jnp.array(self.taken)]
        return jnp.concatenate([vector, jnp.stack(own)]) if own else vector


def make_observation(observation: Any, whole: ObservationBase) -> ObservationBase:
    """The observation that a name, a feature or a list of them stands for, or the object itself.

    Args:
        observation: "engine", all entries of llmgym; the name of one of them or of a registered feature; a
            ``Feature``; a list of these, in any order (features stand last); or an object with ``names``,
            ``space`` and a call, such as one derived from ``ObservationBase``.
        whole: the observation of llmgym.

    Raises LLMGymError for an unknown name, a name twice, or something else.
    """
    if isinstance(observation, str) and observation == ENGINE:
        return whole
    if isinstance(observation, ObservationBase):
        return observation
    one = isinstance(observation, (str, Feature))
    given = (
        (observation,) if one else as_list("observation", observation, what="names and features")
    )
    if given == (ENGINE,):
        return whole
    taken: list[int] = []
    features: list[Feature] = []
    for entry in given:
        if isinstance(entry, str) and entry == ENGINE:
            taken += range(len(whole.names))
        elif isinstance(entry, str) and entry in whole.names:
            taken.append(whole.names.index(entry))
        elif isinstance(entry, str) and entry in FEATURES:
            features.append(FEATURES[entry])
        elif isinstance(entry, str):
            raise unknown("feature", entry, (ENGINE, *whole.names, *FEATURES))
        elif isinstance(entry, Feature):
            features.append(entry)
        else:
            raise LLMGymError(
                f"An observation is made of names and llmgym.Feature objects, got {shown(entry)}."
            )
    names = [*(whole.names[n] for n in taken), *(f.name for f in features)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        fault = "has no entry" if twice is None else f"has the entry {twice!r} twice"
        raise LLMGymError(f"The observation {fault}; give each entry once, at least one.")
    return Chosen(whole, tuple(taken), tuple(features))
