"""Features: the entries of an observation, those of llmgym and those of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.checks import check_callable, check_text, keep_number
from llmgym.core.errors import LLMGymError
from llmgym.core.user_code import ask, line_of
from llmgym.engine.view import View
from llmgym.envs.interface.sound import sound_array


@dataclass(frozen=True)
class Feature:
    """One entry of an observation: a function of the view, and the bounds to which it is cut.

    Args:
        name: in ``observation.names``.
        of: view -> one number for each environment, an array of the shape of ``view.token_budget``. Arrays
            of requests in the view have an axis of slots in front of it, which ``jnp.sum(..., axis=0)``
            takes away.
        high, low: bounds; both finite.
    """

    name: str
    of: Callable[[View], jax.Array]
    high: float = 1.0
    low: float = 0.0

    def __post_init__(self) -> None:
        check_text("name", self.name)
        if check_callable(f"The feature {self.name!r}", self.of) is None:
            raise LLMGymError(f"The feature {self.name!r} has no function: give of=...")
        keep_number(self, "low")
        keep_number(self, "high", above=self.low)

    def __call__(self, view: View) -> jax.Array:
        """Its value (...), float32, inside its bounds. Raises LLMGymError for a function of another shape."""
        shape = view.token_budget.shape
        must = (
            f"The feature {self.name!r}{line_of(self.of)} must return one number for each environment, an "
            f"array of shape {shape}"
        )
        answer = ask(f"The feature {self.name!r}", self.of, view)
        found = sound_array(f"The answer of the feature {self.name!r}", answer, shape, "fiub", must)
        return jnp.clip(found.astype(jnp.float32), self.low, self.high)


FEATURES: dict[str, Feature] = {}


def register_feature(feature: Feature) -> Feature:
    """Make a feature known by its name, for ``observation=["engine", name]``.

    Raises LLMGymError where the name is taken.
    """
    if not isinstance(feature, Feature):
        raise LLMGymError("register_feature takes llmgym.Feature(name, of=..., high=...).")
    if feature.name in FEATURES and FEATURES[feature.name] != feature:
        raise LLMGymError(f"The feature {feature.name!r} is taken: choose another name.")
    FEATURES[feature.name] = feature
    return feature
