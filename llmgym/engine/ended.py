"""The calls that ended in a step and are to be passed on, as bits: read a few at a time, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.arrays import nth_bit, rows
from llmgym.core.pytree import register

WORD = 32
"""Rows of a station that one word has bits for."""


@register
@dataclass(frozen=True)
class Ended:
    """Calls that ended, station by station in order of the table; the first ``passed`` are passed on.

    A pass over words costs a thirtieth of one over the table, and nothing is written but a counter.
    """

    words: jax.Array  # (stations * words, ...) uint32, those of a station together
    upto: jax.Array  # (stations * words, ...) calls in each word and those before it
    passed: jax.Array  # (...)

    @classmethod
    def of(cls, mask: jax.Array) -> Ended:
        """All calls of a mask (rows, stations, ...)."""
        padding = -mask.shape[0] % WORD
        if padding:
            mask = jnp.concatenate([mask, jnp.zeros((padding, *mask.shape[1:]), bool)])
        bits = mask.reshape(-1, WORD, *mask.shape[1:])
        bit = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, -1, *[1] * (mask.ndim - 1))
        words = jnp.sum(jnp.left_shift(bits.astype(jnp.uint32), bit), axis=1, dtype=jnp.uint32)
        words = jnp.moveaxis(words, 1, 0).reshape(-1, *mask.shape[2:])
        # Behind barriers, or whatever reads a word would pass over the table again.
        words = jax.lax.optimization_barrier(words)
        count = jax.lax.population_count(words).astype(jnp.int32)
        before = rows(words)[:, None] >= rows(words)[None]
        upto = jnp.sum(jnp.where(before, count[None], 0), axis=1)
        return cls(words, jax.lax.optimization_barrier(upto), jnp.zeros_like(upto[0]))

    @property
    def left(self) -> jax.Array:
        """How many are left."""
        return self.upto[-1] - self.passed

    @property
    def any(self) -> jax.Array:
        """Whether any is left."""
        return self.left > 0

    def mask(self, size: int, stations: int) -> jax.Array:
        """Those that are left, (size, stations, ...)."""
        before = self.upto - jax.lax.population_count(self.words).astype(jnp.int32)
        ones = jnp.full_like(self.words, 0xFFFFFFFF)
        later = jnp.left_shift(ones, nth_bit(self.words, self.passed - before).astype(jnp.uint32))
        words = jnp.where(before >= self.passed, self.words, self.words & later)
        words = jnp.where(self.upto > self.passed, words, 0)
        words = words.reshape(stations, -1, 1, *words.shape[1:])
        bit = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, 1, -1, *[1] * (words.ndim - 3))
        bits = jnp.right_shift(words, bit) & 1 > 0
        return jnp.moveaxis(bits.reshape(stations, -1, *words.shape[3:]), 0, 1)[:size]

    def next(
        self, several: int, stations: int
    ) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
        """How to read the next calls (several, ...) from a column of the table, and which there are."""
        ahead = jnp.arange(several, dtype=jnp.int32)
        number = self.passed + ahead.reshape(-1, *[1] * self.passed.ndim)
        past = self.upto[None] <= number[:, None]
        count = jax.lax.population_count(self.words).astype(jnp.int32)
        here = ~past & (self.upto - count <= number[:, None])

        def total(values: jax.Array, where: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(where, values, 0), axis=1, dtype=values.dtype)

        word, before = total(self.words[None], here), total(count[None], past)
        place = jnp.sum(past.astype(jnp.int32), axis=1)
        there = number < self.upto[-1]
        per_station = len(self.words) // stations
        slot = place % per_station * WORD + nth_bit(word, number - before)
        index = jnp.where(there, slot * stations + place // per_station, 0)
        index = jax.lax.optimization_barrier(index)

        def take(column: jax.Array) -> jax.Array:
            flat = column.reshape(-1, *column.shape[2:])
            return jnp.take_along_axis(flat, index, axis=0, mode="promise_in_bounds")

        return take, there
