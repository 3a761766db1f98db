"""Device forms of the arrival processes that have bursts, lulls and a course of the day."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.scenario.gap_samplers import (
    FAR,
    FINE,
    PERIOD,
    PERIOD_BITS,
    Gap,
    carried,
    first_of,
    in_parts,
    split,
    uniform,
)


def _times(rates: jax.Array, pace: jax.Array) -> jax.Array:
    """Rates times a pace, whose environments stand behind the axes of the rates."""
    return rates.reshape(*rates.shape, *[1] * pace.ndim) * pace


def _of_each(rates: jax.Array, axes: int, like: jax.Array) -> jax.Array:
    """Rates with ``axes`` axes of their own, and one more of all environments of ``like`` (...)."""
    own, envs = rates.shape[:axes], rates.shape[axes:]
    rates = rates.reshape(*own, *[1] * (like.ndim - len(envs)), *envs)
    return jnp.broadcast_to(rates, (*own, *like.shape)).reshape(*own, -1)


@register
@dataclass(frozen=True)
class ModulatedGaps:
    """Device form of a two-state Markov-modulated Poisson process; the memory is the state."""

    arrival_rates: jax.Array  # (2,), or (2, ...) of each environment
    leave_rates: jax.Array

    def _gap(self, state: jax.Array, words: jax.Array) -> tuple[jax.Array, ...]:
        """A gap as ``split`` gives it, and the state after it."""

        def one(state: jax.Array, word: jax.Array, rates: jax.Array) -> tuple[jax.Array, ...]:
            key = jax.random.key(word, impl="threefry2x32")

            def unfinished(carry: tuple[Any, ...]) -> jax.Array:
                return ~carry[4]

            def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
                # Arrival and change of state race: the first after Exp(sum of both rates).
                key, state, gap, later, _ = carry
                key, clock_key, winner_key = jax.random.split(key, 3)
                arrive, leave = rates[state], self.leave_rates[state]
                gap = gap + jax.random.exponential(clock_key) / (arrive + leave)
                gap, periods = split(gap)  # or rounding to a large sum would lose what is added
                arrived = jax.random.uniform(winner_key) * (arrive + leave) < arrive
                return key, jnp.where(arrived, state, 1 - state), gap, later + periods, arrived

            zero = jnp.float32(0)
            start = (key, state.astype(jnp.int32), zero, zero, jnp.bool_(False))
            _, state, gap, later, _ = jax.lax.while_loop(unfinished, race, start)
            return gap, later, state.astype(jnp.uint32)

        rates = _of_each(self.arrival_rates, 1, words)
        found = jax.vmap(one, (0, 0, 1))(state.reshape(-1), words.reshape(-1), rates)
        return tuple(x.reshape(words.shape) for x in found)

    def at_pace(self, pace: jax.Array) -> ModulatedGaps:
        return ModulatedGaps(_times(self.arrival_rates, pace), self.leave_rates)

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        # Start from the stationary law of the state, not always in a burst or always in a lull.
        leave = self.leave_rates
        in_one = uniform(word * jnp.uint32(2654435761)) < leave[0] / (leave[0] + leave[1])
        memory = jnp.stack([in_one.astype(jnp.uint32), jnp.zeros_like(word)])
        return first_of(self.gaps(memory, jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        def one(state: jax.Array, word: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            gap, later, after = self._gap(state, word)
            return after, (gap, later, after)

        _, (gap, later, after) = jax.lax.scan(one, memory[0], words)
        fine = jnp.max(self.arrival_rates, axis=0) * FINE > 1
        return carried(gap, later, fine, memory, jnp.concatenate([memory[:1], after]))


@register
@dataclass(frozen=True)
class CurveGaps:
    """Device form of arrivals along a rate curve that repeats, with bursts and lulls on top of it.

    Time is counted in units of ``unit`` ticks, the fewest with which a period has fewer than 2**31 units.
    The first word of the memory is the unit of the period in which the last arrival came, with the state
    of the bursts in its top bit; the second word is a fraction of a unit.
    """

    arrival_rates: jax.Array  # (bins, 2) per unit, in both states; or (bins, 2, ...)
    leave_rates: jax.Array  # (2,) per unit; both 0 without bursts
    bin_units: jax.Array  # length of a bin
    unit: jax.Array  # ticks

    def _gap(self, memory: jax.Array, word: jax.Array, rates: jax.Array) -> tuple[Gap, jax.Array]:
        bins, longest = rates.shape[0], (FAR - 128) // self.unit
        fine = jnp.max(rates) * FINE > 1

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return ~carry[-1]

        def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            # Arrival, change of state, the end of the bin and the end of what ``gap`` can hold race.
            # Exponential times have no memory: unless an arrival wins, they are drawn again.
            key, phase, part, state, gap, rest, later, _ = carry
            key, draw_key = jax.random.split(key)
            draw = uniform(jax.random.bits(draw_key, (2,), jnp.uint32))
            here = phase // self.bin_units
            arrive, leave = rates[here, state], self.leave_rates[state]
            clock = -jnp.log(draw[0]) / (arrive + leave)  # infinite where nothing ever happens
            event, fraction = in_parts(jnp.minimum(clock, jnp.float32(FAR - 128)), fine)
            new_part = part + fraction
            event = event + (new_part < part)
            end = jnp.minimum((here + 1) * self.bin_units - phase, longest - gap)
            inside = event < end
            step = jnp.minimum(event, end)
            wins = draw[1] * (arrive + leave) < arrive
            gap, phase = gap + step, phase + step
            phase = jnp.where(phase >= bins * self.bin_units, 0, phase)
            state = jnp.where(inside & ~wins, 1 - state, state)
            full = gap >= longest
            rest = rest + jnp.where(full, longest * self.unit, 0)
            gap, later = jnp.where(full, 0, gap), later + (rest >> PERIOD_BITS)
            part, rest = jnp.where(inside, new_part, 0), rest & (PERIOD - 1)
            return key, phase, part, state, gap, rest, later, inside & wins

        key = jax.random.key(word, impl="threefry2x32")
        phase, state = (memory[0] & 0x7FFFFFFF).astype(jnp.int32), (memory[0] >> 31)
        zero = jnp.int32(0)
        state = state.astype(jnp.int32)
        start = (key, phase, memory[1], state, zero, zero, zero, jnp.bool_(False))
        _, phase, part, state, gap, rest, later, _ = jax.lax.while_loop(unfinished, race, start)
        memory = jnp.stack([phase.astype(jnp.uint32) | (state.astype(jnp.uint32) << 31), part])
        ticks = gap * self.unit + rest
        over = (ticks >= FAR).astype(jnp.int32)
        return Gap(ticks - (over << PERIOD_BITS), later + over), memory

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        # Start at the beginning of the period, from the stationary law of the state.
        leave = self.leave_rates
        in_one = uniform(word * jnp.uint32(2654435761)) * (leave[0] + leave[1]) < leave[0]
        memory = jnp.stack([in_one.astype(jnp.uint32) << 31, jnp.zeros_like(word)])
        return first_of(self.gaps(memory, jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        rates = _of_each(self.arrival_rates, 2, words[0])

        def one(memory: jax.Array, word: jax.Array) -> tuple[jax.Array, tuple[Gap, jax.Array]]:
            each = jax.vmap(self._gap, (1, 0, 2), (0, 1))
            found = each(memory.reshape(2, -1), word.reshape(-1), rates)
            gap, after = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], *word.shape), found)
            return after, (gap, after)

        _, (gap, after) = jax.lax.scan(one, memory, words)
        return gap, jnp.concatenate([memory[None], after])

    def at_pace(self, pace: jax.Array) -> CurveGaps:
        return replace(self, arrival_rates=_times(self.arrival_rates, pace))
