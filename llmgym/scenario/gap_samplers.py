"""Device forms of the arrival processes: pytrees of arrays that draw gaps from random words.

Two things keep rates exact at both ends. A gap beyond FAR is ticks and whole periods (``Gap``). And where
gaps are short, below FINE ticks on average, the fraction of a tick that a gap leaves is carried to the
next one, in the second word of the memory; rounding each of them would speed up the arrivals. Above that
every gap is rounded: its mean is then too small by less than one part in 90,000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import prefix_sum
from llmgym.core.pytree import register

NEVER = np.int32(2**31 - 1)
"""Ticks until an arrival that will not come."""

FAR = np.int32(2**30)
"""Ticks (three hours at 0.01 ms) beyond which arrivals are not drawn in advance."""

PERIOD_BITS = 29
PERIOD = 1 << PERIOD_BITS
"""Ticks of the periods in which a wait beyond FAR is counted."""

FINE = 64.0
"""Mean gap in ticks, of a process in its busiest state, below which fractions of a tick are carried.

Rounding makes the mean of exponential gaps of m ticks 1 / (2 sinh(1 / (2 m))), about m - 1 / (24 m).
"""


@register
@dataclass(frozen=True)
class Gap:
    """Ticks between two arrivals: ``ticks`` (int32, below FAR; or NEVER) and ``later`` PERIODs."""

    ticks: jax.Array
    later: jax.Array

    def to_numpy(self) -> np.ndarray:
        """The ticks in all, as int64 on the host."""
        return np.asarray(self.ticks, np.int64) + np.asarray(self.later, np.int64) * PERIOD


def lift(wait: jax.Array, later: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same time with as many of its ``later`` periods in ``wait`` as it takes to reach FAR."""
    moved = jnp.clip(2 - (wait >> PERIOD_BITS), 0, later)
    return wait + (moved << PERIOD_BITS), later - moved


def uniform(words: jax.Array) -> jax.Array:
    """Random words (uint32) as float32 strictly between 0 and 1, on a grid of 2**-23 offset by half."""
    return ((words >> 9).astype(jnp.float32) + 0.5) * jnp.float32(2.0**-23)


def split(ticks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A float as (rest below FAR, periods that were taken out), both float32; exact."""
    ticks = jnp.minimum(ticks, jnp.float32(2.0**60 - 2.0**36))
    periods = jnp.where(ticks >= FAR, jnp.floor(ticks / PERIOD), 0)
    return ticks - periods * PERIOD, periods


def in_parts(ticks: jax.Array, fine: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Float ticks below FAR as whole ones (int32) and a fraction in units of 2**-32 (uint32).

    Unless ``fine`` they are rounded and the fraction is 0.
    """
    whole = jnp.where(fine, jnp.floor(ticks), jnp.round(ticks))
    fraction = jnp.where(fine, ticks - whole, 0.0)
    return whole.astype(jnp.int32), (fraction * jnp.float32(2.0**32)).astype(jnp.uint32)


def carried(
    ticks: jax.Array, later: jax.Array, fine: jax.Array, memory: jax.Array, states: jax.Array
) -> tuple[Gap, jax.Array]:
    """Gaps in whole ticks, with the fractions carried from each to the next.

    Args:
        ticks, later: the gaps (A, ...) as ``split`` gives them, float32.
        fine: whether fractions count.
        memory: the memory (2, ...) before them.
        states: its first word before and after each gap, (A + 1, ...).

    Returns:
        The gaps and the memories (A + 1, 2, ...).
    """
    whole, fraction = in_parts(ticks, fine)
    phases = memory[1] + prefix_sum(fraction).astype(jnp.uint32)
    phases = jnp.concatenate([memory[1][None], phases])
    carry = (phases[1:] < phases[:-1]).astype(jnp.int32)  # out of 32 bits: a whole tick
    gap = Gap(whole + carry, later.astype(jnp.int32))
    return gap, jnp.stack([states, phases], axis=1)


class GapSampler(Protocol):
    """Device form of an arrival process."""

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        """Gap before arrival 0 and the memory (2, ...) after it, from one random word."""

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        """The gaps in clock ticks that follow the next A arrivals (A, ...), and the memories (A + 1, 2, ...).

        Args:
            memory: the memory of the process before these gaps, (2, ...) uint32.
            index: number of the first of the arrivals, (...) int32.
            words: a random word for each gap, (A, ...) uint32.
        """


def _unchanged(memory: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(memory, (count + 1, *memory.shape))


def _first_of(found: tuple[Gap, jax.Array]) -> tuple[Gap, jax.Array]:
    """The gap and the memory after it, of gaps (1, ...) and memories (2, 2, ...)."""
    gaps, memories = found
    return Gap(gaps.ticks[0], gaps.later[0]), memories[1]


def _blank(word: jax.Array) -> jax.Array:
    """The memory before anything came."""
    return jnp.zeros((2, *word.shape), jnp.uint32)


class IndependentGaps:
    """Gaps that know nothing of each other."""

    mean_ticks: jax.Array

    def draw(self, words: jax.Array) -> jax.Array:
        """Float gaps in ticks, one from each word."""
        raise NotImplementedError

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        return _first_of(self.gaps(_blank(word), jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        states = _unchanged(memory[0], words.shape[0])
        return carried(*split(self.draw(words)), self.mean_ticks < FINE, memory, states)


@register
@dataclass(frozen=True)
class ExponentialGaps(IndependentGaps):
    """Device form of Poisson arrivals."""

    mean_ticks: jax.Array

    def draw(self, words: jax.Array) -> jax.Array:
        return -jnp.log(uniform(words)) * self.mean_ticks


@register
@dataclass(frozen=True)
class RegularGaps:
    """Device form of deterministic arrivals: ``later`` periods and ``whole + fraction / 2**32`` ticks."""

    whole: jax.Array
    later: jax.Array
    fraction: jax.Array

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        return _first_of(self.gaps(_blank(word), jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        count = jnp.arange(words.shape[0] + 1, dtype=jnp.uint32)
        count = count.reshape((-1,) + (1,) * words[0].ndim)
        # The sum wraps: its carry out of 32 bits is a whole tick.
        phases = memory[1] + count * self.fraction
        carry = (phases[1:] < phases[:-1]).astype(jnp.int32)
        later = jnp.broadcast_to(self.later, carry.shape)
        states = _unchanged(memory[0], words.shape[0])
        return Gap(self.whole + carry, later), jnp.stack([states, phases], axis=1)


@register
@dataclass(frozen=True)
class GammaGaps(IndependentGaps):
    """Device form of Gamma-renewal arrivals."""

    mean_ticks: jax.Array
    shape: jax.Array

    def draw(self, words: jax.Array) -> jax.Array:
        # A Gamma variable needs rejection sampling: the word seeds a key of its own. In log space a
        # small shape (a large CV) does not underflow.
        def one(word: jax.Array) -> jax.Array:
            return jax.random.loggamma(jax.random.key(word, impl="threefry2x32"), self.shape)

        log_gap = jax.vmap(one)(words.reshape(-1)).reshape(words.shape)
        return jnp.exp(log_gap) / self.shape * self.mean_ticks


@register
@dataclass(frozen=True)
class ModulatedGaps:
    """Device form of a two-state Markov-modulated Poisson process; the memory is the state."""

    arrival_rates: jax.Array
    leave_rates: jax.Array

    def _gap(self, state: jax.Array, words: jax.Array) -> tuple[jax.Array, ...]:
        """A gap as ``split`` gives it, and the state after it."""

        def one(state: jax.Array, word: jax.Array) -> tuple[jax.Array, ...]:
            key = jax.random.key(word, impl="threefry2x32")

            def unfinished(carry: tuple[Any, ...]) -> jax.Array:
                return ~carry[4]

            def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
                # Arrival and change of state race: the first after Exp(sum of both rates).
                key, state, gap, later, _ = carry
                key, clock_key, winner_key = jax.random.split(key, 3)
                arrive, leave = self.arrival_rates[state], self.leave_rates[state]
                gap = gap + jax.random.exponential(clock_key) / (arrive + leave)
                gap, periods = split(gap)  # or rounding to a large sum would lose what is added
                arrived = jax.random.uniform(winner_key) * (arrive + leave) < arrive
                return key, jnp.where(arrived, state, 1 - state), gap, later + periods, arrived

            zero = jnp.float32(0)
            start = (key, state.astype(jnp.int32), zero, zero, jnp.bool_(False))
            _, state, gap, later, _ = jax.lax.while_loop(unfinished, race, start)
            return gap, later, state.astype(jnp.uint32)

        found = jax.vmap(one)(state.reshape(-1), words.reshape(-1))
        return tuple(x.reshape(words.shape) for x in found)

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        # Start from the stationary law of the state, not always in a burst or always in a lull.
        leave = self.leave_rates
        in_one = uniform(word * jnp.uint32(2654435761)) < leave[0] / (leave[0] + leave[1])
        memory = jnp.stack([in_one.astype(jnp.uint32), jnp.zeros_like(word)])
        return _first_of(self.gaps(memory, jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        def one(state: jax.Array, word: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            gap, later, after = self._gap(state, word)
            return after, (gap, later, after)

        _, (gap, later, after) = jax.lax.scan(one, memory[0], words)
        fine = jnp.max(self.arrival_rates) * FINE > 1
        return carried(gap, later, fine, memory, jnp.concatenate([memory[:1], after]))


@register
@dataclass(frozen=True)
class CurveGaps:
    """Device form of arrivals along a rate curve that repeats, with bursts and lulls on top of it.

    Time is counted in units of ``unit`` ticks, the fewest with which a period has fewer than 2**31 units.
    The first word of the memory is the unit of the period in which the last arrival came, with the state
    of the bursts in its top bit; the second word is a fraction of a unit.
    """

    arrival_rates: jax.Array  # (bins, 2) per unit, in both states
    leave_rates: jax.Array  # (2,) per unit; both 0 without bursts
    bin_units: jax.Array  # length of a bin
    unit: jax.Array  # ticks

    def _gap(self, memory: jax.Array, word: jax.Array) -> tuple[Gap, jax.Array]:
        bins, longest = self.arrival_rates.shape[0], (FAR - 128) // self.unit
        fine = jnp.max(self.arrival_rates) * FINE > 1

        def unfinished(carry: tuple[Any, ...]) -> jax.Array:
            return ~carry[-1]

        def race(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            # Arrival, change of state, the end of the bin and the end of what ``gap`` can hold race.
            # Exponential times have no memory: unless an arrival wins, they are drawn again.
            key, phase, part, state, gap, rest, later, _ = carry
            key, draw_key = jax.random.split(key)
            draw = uniform(jax.random.bits(draw_key, (2,), jnp.uint32))
            here = phase // self.bin_units
            arrive, leave = self.arrival_rates[here, state], self.leave_rates[state]
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
        return _first_of(self.gaps(memory, jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        def one(memory: jax.Array, word: jax.Array) -> tuple[jax.Array, tuple[Gap, jax.Array]]:
            found = jax.vmap(self._gap, (1, 0), (0, 1))(memory.reshape(2, -1), word.reshape(-1))
            gap, after = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], *word.shape), found)
            return after, (gap, after)

        _, (gap, after) = jax.lax.scan(one, memory, words)
        return gap, jnp.concatenate([memory[None], after])


@register
@dataclass(frozen=True)
class ListedGaps:
    """Device form of a replay: ``listed[n]`` ticks pass between arrivals n - 1 and n, then NEVER.

    ``later`` are the periods on top of them; None where there are none.
    """

    listed: jax.Array
    later: jax.Array | None = None

    def _gap(self, index: jax.Array) -> Gap:
        index = jnp.minimum(index, self.listed.shape[0] - 1)
        later = jnp.zeros_like(index) if self.later is None else jnp.take(self.later, index)
        return Gap(jnp.take(self.listed, index), later)

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        return self._gap(jnp.zeros(word.shape, jnp.int32)), _blank(word)

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        ahead = jnp.arange(1, words.shape[0] + 1, dtype=jnp.int32)
        ahead = ahead.reshape((-1,) + (1,) * index.ndim)
        return self._gap(index + ahead), _unchanged(memory, words.shape[0])
