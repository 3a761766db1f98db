"""Exact 64-bit counters made of two 32-bit words.

JAX computes in 32 bits unless a process-wide switch is set, and a library must not set it for its
users. A float32 clock loses milliseconds after hours, so clocks and token counters are pairs of words.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.pytree import register


@register
@dataclass(frozen=True)
class Wide:
    """A non-negative integer below 2**63: ``high * 2**32 + low``, both words uint32 of one shape."""

    high: jax.Array
    low: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> Wide:
        """Zero, in every entry of ``shape``."""
        return cls(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32))

    def __add__(self, amount: jax.Array) -> Wide:
        """Add a non-negative 32-bit integer."""
        low = self.low + amount.astype(jnp.uint32)
        return Wide(self.high + (low < self.low).astype(jnp.uint32), low)

    def __sub__(self, amount: jax.Array) -> Wide:
        """Take away a 32-bit integer of either sign; the result must not be negative."""
        low = self.low - amount.astype(jnp.uint32)
        sign = (amount >> 31).astype(jnp.uint32)  # of int32: all ones where it is negative
        borrow = (low > self.low).astype(jnp.uint32)
        return Wide(self.high - borrow - sign, low)

    def add_product(self, a: jax.Array, b: jax.Array) -> Wide:
        """Add ``a * b`` exactly, both non-negative and below 2**31."""
        a, b = a.astype(jnp.uint32), b.astype(jnp.uint32)
        a_high, a_low = a >> 16, a & 0xFFFF
        b_high, b_low = b >> 16, b & 0xFFFF
        middle_1, middle_2 = a_high * b_low, a_low * b_high
        total = self + a_low * b_low
        total = total + (middle_1 << 16)
        total = total + (middle_2 << 16)
        high = total.high + a_high * b_high + (middle_1 >> 16) + (middle_2 >> 16)
        return Wide(high, total.low)

    def add_sum(self, amounts: jax.Array) -> Wide:
        """Add all entries of axis 0 exactly: up to 2**15 of them, non-negative and below 2**31."""
        total = self + jnp.sum(amounts & 0xFFFF, axis=0)
        return total.add_product(jnp.sum(amounts >> 16, axis=0), jnp.int32(1 << 16))

    def until(self, later: Wide) -> jax.Array:
        """``later - self`` as int32, cut to 0 .. 2**30 - 1."""
        most = jnp.uint32(2**30 - 1)
        low = later.low - self.low
        borrow = (later.low < self.low).astype(jnp.uint32)
        high = later.high - self.high - borrow
        past = (later.high < self.high + borrow) | (later.high < self.high)
        cut = jnp.where(high > 0, most, jnp.minimum(low, most))
        return jnp.where(past, 0, cut).astype(jnp.int32)

    def to_float(self) -> jax.Array:
        """The value as float32, for looking at: exact below 2**24, to seven digits above."""
        high = self.high.astype(jnp.float32) * jnp.float32(2.0**32)
        return high + self.low.astype(jnp.float32)

    @classmethod
    def of(cls, value: int) -> Wide:
        """A host number as a scalar."""
        return cls(jnp.uint32(value >> 32), jnp.uint32(value & 0xFFFFFFFF))

    def to_numpy(self) -> np.ndarray:
        """The value as int64 on the host."""
        high = np.asarray(self.high).astype(np.int64)
        return (high << 32) | np.asarray(self.low).astype(np.int64)
