"""Sliding windows: the last pairs of numbers that a policy has seen, and what they say."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.arrays import rows
from llmgym.core.pytree import register


@register
@dataclass(frozen=True)
class Window:
    """The last pairs (x, y), the oldest overwritten by the next.

    Rows are (size, ...) with batch axes last; only the first ``pushed`` of them hold anything until the
    window is full.
    """

    x: jax.Array  # float32
    y: jax.Array  # float32
    pushed: jax.Array  # pairs so far (...), int32

    @classmethod
    def empty(cls, size: int, shape: tuple[int, ...]) -> Window:
        """A window of ``size`` pairs that holds none, one for each entry of ``shape``."""
        none = jnp.zeros((size, *shape), jnp.float32)
        return cls(none, none, jnp.zeros(shape, jnp.int32))

    def push(self, x: jax.Array, y: jax.Array, where: jax.Array) -> Window:
        """The window with one more pair.

        Args:
            x, y: the pair (...).
            where: whether to take it (...), bool; elsewhere the window stays as it is.
        """
        here = (rows(self.x) == self.pushed % self.x.shape[0]) & where
        return Window(jnp.where(here, x, self.x), jnp.where(here, y, self.y), self.pushed + where)

    def ratio(self, otherwise: jax.Array) -> jax.Array:
        """sum(y) / sum(x) (...), or ``otherwise`` where the x add up to nothing."""
        x, y = jnp.sum(self.x, axis=0), jnp.sum(self.y, axis=0)
        return jnp.where(x > 0, y / jnp.maximum(x, 1.0), otherwise)

    def line(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Intercept and slope of the line of least squares (...), and whether the x differ at all."""
        held = rows(self.x) < self.pushed
        count = jnp.maximum(jnp.minimum(self.pushed, self.x.shape[0]), 1)
        mean_x, mean_y = (jnp.sum(v, axis=0) / count for v in (self.x, self.y))
        off_x = jnp.where(held, self.x - mean_x, 0.0)
        off_y = jnp.where(held, self.y - mean_y, 0.0)
        spread = jnp.sum(off_x**2, axis=0)
        most = jnp.max(jnp.where(held, self.x, -jnp.inf), axis=0)
        known = most > jnp.min(jnp.where(held, self.x, jnp.inf), axis=0)
        slope = jnp.where(
            known, jnp.sum(off_x * off_y, axis=0) / jnp.where(known, spread, 1.0), 0.0
        )
        return mean_y - slope * mean_x, slope, known
