"""The calls that ended in a step and are to be passed on, as bits: read a few at a time, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.arrays import nth_bit, once, rows
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
    def of(cls, mask: jax.Array, any_yet: jax.Array) -> Ended:
        """All calls of a mask (rows, stations, ...); ``any_yet``: () whether there may be any at all."""
        padding = -mask.shape[0] % WORD
        shape = ((mask.shape[0] + padding) // WORD * mask.shape[1], *mask.shape[2:])

        def pack(_: jax.Array) -> jax.Array:
            bits = jnp.pad(mask, [(0, padding)] + [(0, 0)] * (mask.ndim - 1))
            bits = bits.reshape(-1, WORD, *mask.shape[1:]).astype(jnp.uint32)
            bit = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, -1, *[1] * (mask.ndim - 1))
            words = jnp.sum(bits << bit, axis=1, dtype=jnp.uint32)
            return jnp.moveaxis(words, 1, 0).reshape(shape)

        # Otherwise its sums would compute the whole mask again.
        words = once(any_yet, pack, jnp.zeros(shape, jnp.uint32))
        count = jax.lax.population_count(words).astype(jnp.int32)
        before = rows(words)[:, None] >= rows(words)[None]
        upto = jnp.sum(jnp.where(before, count[None], 0), axis=1)
        return cls(words, upto, jnp.zeros_like(upto[0]))

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

        def clear(words: jax.Array) -> jax.Array:
            before = self.upto - jax.lax.population_count(words).astype(jnp.int32)
            ones = jnp.full_like(words, 0xFFFFFFFF)
            later = ones << nth_bit(words, self.passed - before).astype(jnp.uint32)
            kept = jnp.where(before >= self.passed, words, words & later)
            return jnp.where(self.upto > self.passed, kept, 0)

        # Otherwise every row would compute its word again.
        words = once(jnp.any(self.passed > 0), clear, self.words)
        words = words.reshape(stations, -1, 1, *words.shape[1:])
        bit = jnp.arange(WORD, dtype=jnp.uint32).reshape(1, 1, -1, *[1] * (words.ndim - 3))
        bits = (words >> bit) & 1 > 0
        return jnp.moveaxis(bits.reshape(stations, -1, *words.shape[3:]), 0, 1)[:size]

    def next(
        self, several: int, stations: int
    ) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
        """How to read the next calls (several, ...) from a column of the table, and which there are."""
        ahead = jnp.arange(several, dtype=jnp.int32)
        number = self.passed + ahead.reshape(-1, *[1] * self.passed.ndim)
        there = number < self.upto[-1]
        count = len(self.words)
        if count <= 64:  # a sum that is written out is vectorised
            place = jnp.zeros_like(number)
            for n in range(count - 1):
                place = place + (self.upto[n] <= number)
        else:
            past = self.upto[:-1][None] <= number[:, None]
            place = jnp.sum(past.astype(jnp.int32), axis=1)
        word, upto = (jnp.take_along_axis(x, place, axis=0) for x in (self.words, self.upto))
        before = upto - jax.lax.population_count(word).astype(jnp.int32)
        slot = place % (count // stations) * WORD + nth_bit(word, number - before)
        index = jnp.where(there, slot * stations + place // (count // stations), 0)

        def take(column: jax.Array) -> jax.Array:
            flat = column.reshape(-1, *column.shape[2:])
            return jnp.take_along_axis(flat, index, axis=0, mode="promise_in_bounds")

        return take, there
