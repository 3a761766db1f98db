"""Device forms of the arrival processes: pytrees of arrays that draw gaps from random words.

A sampler has ``gaps(memory, index, words)``: from the process's memory (one uint32), the index of the
next arrival and one random word for each of the next A arrivals it gives the A gaps that follow them,
in clock ticks, and the A + 1 memories before and after each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.pytree import register

NEVER = np.int32(2**31 - 1)
"""Ticks until an arrival that will not come."""

FAR = np.int32(2**30)
"""Ticks (three hours at 0.01 ms) that every gap stays below; later arrivals are not drawn in advance."""


def uniform(words: jax.Array) -> jax.Array:
    """Random words (uint32) as float32 strictly between 0 and 1, on a grid of 2**-23 offset by half."""
    return ((words >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def to_ticks(gap: jax.Array) -> jax.Array:
    """A float gap in ticks as a whole number, cut just below FAR."""
    return jnp.minimum(jnp.round(gap), jnp.float32(FAR - 128)).astype(jnp.int32)


class GapSampler(Protocol):
    """Device form of an arrival process."""

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Gap before arrival 0 and the memory at time 0, from one random word."""

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Gaps after each of the arrivals ``index``, ... (A, ...) and memories (A + 1, ...)."""


def _unchanged(memory: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(memory, (count + 1, *memory.shape))


@register
@dataclass(frozen=True)
class ExponentialGaps:
    """Device form of Poisson arrivals."""

    mean_ticks: jax.Array

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        return to_ticks(-jnp.log(uniform(word)) * self.mean_ticks), jnp.zeros_like(word)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        gap = to_ticks(-jnp.log(uniform(words)) * self.mean_ticks)
        return gap, _unchanged(memory, words.shape[0])


@register
@dataclass(frozen=True)
class RegularGaps:
    """Device form of deterministic arrivals: ``whole + fraction / 2**32`` ticks, the fraction carried."""

    whole: jax.Array
    fraction: jax.Array

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        first = jnp.broadcast_to(self.whole, word.shape)
        return first, jnp.broadcast_to(self.fraction, word.shape)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        count = jnp.arange(words.shape[0] + 1, dtype=jnp.uint32)
        count = count.reshape((-1,) + (1,) * memory.ndim)
        phases = memory + count * self.fraction  # wraps: the carry out of 32 bits is a whole tick
        carry = (phases[1:] < phases[:-1]).astype(jnp.int32)
        return self.whole + carry, phases


@register
@dataclass(frozen=True)
class GammaGaps:
    """Device form of Gamma-renewal arrivals."""

    mean_ticks: jax.Array
    shape: jax.Array

    def _gap(self, words: jax.Array) -> jax.Array:
        # A Gamma variable needs rejection sampling: the word seeds a key of its own. In log space a
        # small shape (a large CV) does not underflow.
        def one(word: jax.Array) -> jax.Array:
            return jax.random.loggamma(jax.random.key(word, impl="threefry2x32"), self.shape)

        log_gap = jax.vmap(one)(words.reshape(-1)).reshape(words.shape)
        return to_ticks(jnp.exp(log_gap) / self.shape * self.mean_ticks)

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._gap(word), jnp.zeros_like(word)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return self._gap(words), _unchanged(memory, words.shape[0])


@register
@dataclass(frozen=True)
class ModulatedGaps:
    """Device form of a two-state Markov-modulated Poisson process; the memory is the state."""

    arrival_rates: jax.Array
    leave_rates: jax.Array

    def _gap(self, state: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(state: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
            key = jax.random.key(word, impl="threefry2x32")

            def unfinished(carry: tuple[Any, ...]) -> jax.Array:
                return ~carry[3]

            def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
                # Arrival and change of state race: the first after Exp(sum of both rates).
                key, state, gap, _ = carry
                key, clock_key, winner_key = jax.random.split(key, 3)
                arrive, leave = self.arrival_rates[state], self.leave_rates[state]
                gap = gap + jax.random.exponential(clock_key) / (arrive + leave)
                arrived = jax.random.uniform(winner_key) * (arrive + leave) < arrive
                return key, jnp.where(arrived, state, 1 - state), gap, arrived

            start = (key, state.astype(jnp.int32), jnp.float32(0), jnp.bool_(False))
            _, state, gap, _ = jax.lax.while_loop(unfinished, race, start)
            return gap, state.astype(jnp.uint32)

        gap, after = jax.vmap(one)(state.reshape(-1), words.reshape(-1))
        return to_ticks(gap.reshape(words.shape)), after.reshape(words.shape)

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Start in the stationary law of the state, not in a burst or a lull for certain.
        leave = self.leave_rates
        in_one = uniform(word * jnp.uint32(2654435761)) < leave[0] / (leave[0] + leave[1])
        return self._gap(in_one.astype(jnp.uint32), word)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def one(state: jax.Array, word: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            gap, after = self._gap(state, word)
            return after, (gap, after)

        _, (gap, after) = jax.lax.scan(one, memory, words)
        return gap, jnp.concatenate([memory[None], after])


@register
@dataclass(frozen=True)
class CurveGaps:
    """Device form of arrivals along a rate curve that repeats, with bursts and lulls on top of it.

    Time goes in units of ``unit`` ticks, the fewest with which a period has less than 2**31 of them.
    The memory is the unit of the period in which the last arrival was, and in its top bit the state
    of the bursts.
    """

    arrival_rates: jax.Array  # (bins, 2) per unit, in both states
    leave_rates: jax.Array  # (2,) per unit; both 0 without bursts
    bin_units: jax.Array  # length of a bin
    unit: jax.Array  # ticks

    def _gap(self, memory: jax.Array, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        bins, longest = self.arrival_rates.shape[0], (FAR - 128) // self.unit

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return ~carry[4]

        def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            # Arrival, change of state and the end of the bin race. Exponential times have no memory:
            # after either of the latter two they are drawn anew.
            key, phase, state, gap, _ = carry
            key, draw_key = jax.random.split(key)
            draw = uniform(jax.random.bits(draw_key, (2,), jnp.uint32))
            here = phase // self.bin_units
            arrive, leave = self.arrival_rates[here, state], self.leave_rates[state]
            clock = -jnp.log(draw[0]) / (arrive + leave)  # infinite where nothing ever happens
            event = to_ticks(clock)
            rest = jnp.minimum((here + 1) * self.bin_units - phase, longest - gap)
            inside = event < rest
            step = jnp.minimum(event, rest)
            wins = draw[1] * (arrive + leave) < arrive
            gap, phase = gap + step, phase + step
            phase = jnp.where(phase >= bins * self.bin_units, 0, phase)
            state = jnp.where(inside & ~wins, 1 - state, state)
            return key, phase, state, gap, (inside & wins) | (gap >= longest)

        key = jax.random.key(word, impl="threefry2x32")
        phase, state = (memory & 0x7FFFFFFF).astype(jnp.int32), (memory >> 31).astype(jnp.int32)
        start = (key, phase, state, jnp.int32(0), jnp.bool_(False))
        _, phase, state, gap, _ = jax.lax.while_loop(unfinished, race, start)
        return gap * self.unit, phase.astype(jnp.uint32) | (state.astype(jnp.uint32) << 31)

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        # From the beginning of the period, in the stationary law of the state.
        leave = self.leave_rates
        in_one = uniform(word * jnp.uint32(2654435761)) * (leave[0] + leave[1]) < leave[0]
        memory = in_one.astype(jnp.uint32) << 31
        gap, after = jax.vmap(self._gap)(memory.reshape(-1), word.reshape(-1))
        return gap.reshape(word.shape), after.reshape(word.shape)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def one(
            memory: jax.Array, word: jax.Array
        ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            gap, after = jax.vmap(self._gap)(memory.reshape(-1), word.reshape(-1))
            after = after.reshape(memory.shape)
            return after, (gap.reshape(memory.shape), after)

        _, (gap, after) = jax.lax.scan(one, memory, words)
        return gap, jnp.concatenate([memory[None], after])


@register
@dataclass(frozen=True)
class ListedGaps:
    """Device form of a replay: ``listed[n]`` ticks pass between arrivals n - 1 and n, then NEVER."""

    listed: jax.Array

    def _gap(self, index: jax.Array) -> jax.Array:
        return jnp.take(self.listed, jnp.minimum(index, self.listed.shape[0] - 1))

    def first(self, word: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self._gap(jnp.zeros(word.shape, jnp.int32)), jnp.zeros_like(word)

    def gaps(
        self, memory: jax.Array, index: jax.Array, words: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        ahead = jnp.arange(1, words.shape[0] + 1, dtype=jnp.int32)
        ahead = ahead.reshape((-1,) + (1,) * index.ndim)
        return self._gap(index + ahead), _unchanged(memory, words.shape[0])
