"""Device forms of the arrival processes: pytrees of arrays that draw gaps from random words.

Two things keep rates exact at both ends. A gap beyond FAR is ticks and whole periods (``Gap``). And where
gaps are short, below FINE ticks on average, the fraction of a tick that a gap leaves is carried to the
next one, in the second word of the memory; rounding each of them would speed up the arrivals. Above that
every gap is rounded: its mean is then too small by less than one part in 90,000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

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

    def at_pace(self, pace: jax.Array) -> GapSampler:
        """The same process with arrivals ``pace`` times as frequent: () or one for each environment (...)."""


def _unchanged(memory: jax.Array, count: int) -> jax.Array:
    return jnp.broadcast_to(memory, (count + 1, *memory.shape))


def first_of(found: tuple[Gap, jax.Array]) -> tuple[Gap, jax.Array]:
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
        return first_of(self.gaps(_blank(word), jnp.zeros(word.shape, jnp.int32), word[None]))

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

    def at_pace(self, pace: jax.Array) -> ExponentialGaps:
        return ExponentialGaps(self.mean_ticks / pace)


@register
@dataclass(frozen=True)
class RegularGaps:
    """Device form of deterministic arrivals: ``later`` periods and ``whole + fraction / 2**32`` ticks."""

    whole: jax.Array
    later: jax.Array
    fraction: jax.Array

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        return first_of(self.gaps(_blank(word), jnp.zeros(word.shape, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        count = jnp.arange(words.shape[0] + 1, dtype=jnp.uint32)
        count = count.reshape((-1,) + (1,) * words[0].ndim)
        # The sum wraps: its carry out of 32 bits is a whole tick.
        phases = memory[1] + count * self.fraction
        carry = (phases[1:] < phases[:-1]).astype(jnp.int32)
        later = jnp.broadcast_to(self.later, carry.shape)
        states = _unchanged(memory[0], words.shape[0])
        return Gap(self.whole + carry, later), jnp.stack([states, phases], axis=1)

    def at_pace(self, pace: jax.Array) -> RegularGaps:
        ticks = self.later.astype(jnp.float32) * PERIOD + self.whole.astype(jnp.float32)
        ticks, later = split((ticks + self.fraction.astype(jnp.float32) * 2.0**-32) / pace)
        whole, fraction = in_parts(ticks, jnp.bool_(True))
        scaled = RegularGaps(whole, later.astype(jnp.int32), fraction)
        return jax.tree.map(lambda own, new: jnp.where(pace == 1, own, new), self, scaled)


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

    def at_pace(self, pace: jax.Array) -> GammaGaps:
        return GammaGaps(self.mean_ticks / pace, self.shape)


@register
@dataclass(frozen=True)
class ListedGaps:
    """Device form of a replay: ``listed[n]`` ticks pass between arrivals n - 1 and n, then NEVER.

    ``later`` are the periods on top of them; None where there are none. At a ``pace`` of its own (None: 1)
    each gap is shorter, and the fraction of a tick that it leaves is carried to the next.
    """

    listed: jax.Array
    later: jax.Array | None = None
    pace: jax.Array | None = None

    def _gap(self, index: jax.Array) -> Gap:
        index = jnp.minimum(index, self.listed.shape[0] - 1)
        later = jnp.zeros_like(index) if self.later is None else jnp.take(self.later, index)
        return Gap(jnp.take(self.listed, index), later)

    def first(self, word: jax.Array) -> tuple[Gap, jax.Array]:
        return first_of(self.gaps(_blank(word), jnp.full(word.shape, -1, jnp.int32), word[None]))

    def gaps(self, memory: jax.Array, index: jax.Array, words: jax.Array) -> tuple[Gap, jax.Array]:
        ahead = jnp.arange(1, words.shape[0] + 1, dtype=jnp.int32)
        ahead = ahead.reshape((-1,) + (1,) * index.ndim)
        gap, memories = self._gap(index + ahead), _unchanged(memory, words.shape[0])
        if self.pace is None:
            return gap, memories
        ticks = gap.later.astype(jnp.float32) * PERIOD + gap.ticks.astype(jnp.float32)
        scaled = carried(*split(ticks / self.pace), jnp.bool_(True), memory, memories[:, 0])
        own = (self.pace == 1) | (gap.ticks == NEVER)
        moved = jax.tree.map(lambda x, y: jnp.where(own, x, y), gap, scaled[0])
        return moved, scaled[1]

    def at_pace(self, pace: jax.Array) -> ListedGaps:
        return replace(self, pace=pace)
