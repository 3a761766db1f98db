"""Spaces as gymnax has them: of one environment, sampled with a key, inside jit too."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Discrete:
    """Whole numbers from 0 to ``n`` - 1."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.int32

    def sample(self, key: jax.Array) -> jax.Array:
        """One of them at random."""
        return jax.random.randint(key, self.shape, 0, self.n, self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is one of them."""
        return jnp.logical_and(x >= 0, x < self.n)


@dataclass(frozen=True)
class MultiDiscrete:
    """A list of whole numbers, each from 0 to its ``nvec`` - 1."""

    nvec: np.ndarray
    dtype: Any = jnp.int32

    @property
    def shape(self) -> tuple[int, ...]:
        """(entries,)"""
        return self.nvec.shape

    def sample(self, key: jax.Array) -> jax.Array:
        """One of them at random."""
        return jax.random.randint(key, self.shape, 0, jnp.asarray(self.nvec), self.dtype)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is one of them."""
        return jnp.all((x >= 0) & (x < self.nvec))


@dataclass(frozen=True)
class Box:
    """Arrays between ``low`` and ``high``."""

    low: np.ndarray
    high: np.ndarray
    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    def sample(self, key: jax.Array) -> jax.Array:
        """One of them at random."""
        return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

    def contains(self, x: Any) -> jax.Array:
        """Whether ``x`` is one of them."""
        return jnp.all((x >= self.low) & (x <= self.high))


def space_of(space: gym.Space[Any] | None) -> Any:
    """A Gymnasium space as gymnax has it: in its own classes where gymnax is imported already.

    Learners ask ``isinstance(space, gymnax.environments.spaces.Discrete)``.
    """
    theirs = sys.modules.get("gymnax.environments.spaces")
    if isinstance(space, gym.spaces.Discrete):
        return theirs.Discrete(int(space.n)) if theirs else Discrete(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete):
        return MultiDiscrete(space.nvec)
    assert isinstance(space, gym.spaces.Box)
    kind: Any = theirs.Box if theirs else Box
    return kind(space.low, space.high, space.shape, jnp.float32)
