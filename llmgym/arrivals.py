"""Arrival processes: the gaps between consecutive requests of one job type.

The device form of a process is a pytree with ``gaps(memory, index, words)``: from the process's memory
(one uint32), the index of the next arrival and one random word for each of the next A arrivals it
gives the A gaps that follow them, in clock ticks, and the A + 1 memories before and after each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.errors import LLMGymError, check_number
from llmgym.pytree import register

NEVER = np.int32(2**31 - 1)
"""Ticks until an arrival that will not come."""

FAR = np.int32(2**30)
"""Ticks (three hours at 0.01 ms) that every gap stays below; later arrivals are not drawn in advance."""

Self = TypeVar("Self", bound="Arrivals")


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


class Arrivals:
    """Base of the arrival processes. ``rate_per_s`` is the long-run number of arrivals per second."""

    kind: ClassVar[str]
    rate_per_s: float

    def at_rate(self: Self, rate_per_s: float) -> Self:
        """The same process sped up or slowed down to ``rate_per_s``."""
        return replace(self, rate_per_s=rate_per_s)  # type: ignore[type-var]

    def sampler(self, ticks_per_s: float) -> GapSampler:
        """Device form, with time in clock ticks."""
        raise TypeError("an arrival process must define sampler(ticks_per_s)")


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


def _check_rate(rate_per_s: object) -> None:
    check_number("rate_per_s", rate_per_s, above=0)


@dataclass(frozen=True)
class Poisson(Arrivals):
    """Poisson arrivals at ``rate_per_s``."""

    rate_per_s: float
    kind: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        return ExponentialGaps(jnp.float32(ticks_per_s / self.rate_per_s))


@dataclass(frozen=True)
class Deterministic(Arrivals):
    """One arrival every 1/rate seconds, the first after one interval, which is kept to 2**-32 ticks."""

    rate_per_s: float
    kind: ClassVar[str] = "deterministic"

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        # A rate is usually written as a rounded decimal of 1/interval: limit_denominator recovers it.
        exact = Fraction(ticks_per_s) / Fraction(self.rate_per_s)
        interval = exact.limit_denominator(10**6) if exact > 1 else exact
        scaled = round(interval * 2**32)
        return RegularGaps(jnp.int32(scaled >> 32), jnp.uint32(scaled & 0xFFFFFFFF))


@dataclass(frozen=True)
class GammaRenewal(Arrivals):
    """Independent Gamma gaps with coefficient of variation ``cv``: 1 is Poisson, above it bursty."""

    rate_per_s: float
    cv: float
    kind: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        check_number("cv", self.cv, above=0, high=100)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        return GammaGaps(jnp.float32(ticks_per_s / self.rate_per_s), jnp.float32(self.cv**-2))


@dataclass(frozen=True)
class MMPP(Arrivals):
    """Two-state Markov-modulated Poisson process: bursts and lulls.

    In state i requests arrive at a rate in proportion to ``weights[i]`` and the state lasts an
    exponential time of mean ``sojourn_s[i]`` seconds. ``rate_per_s`` is the long-run mean rate.
    Changing the rate changes the intensity, not the sojourns.
    """

    rate_per_s: float
    weights: tuple[float, float]
    sojourn_s: tuple[float, float]
    kind: ClassVar[str] = "mmpp"

    def __post_init__(self) -> None:
        _check_rate(self.rate_per_s)
        for name in ("weights", "sojourn_s"):
            pair = tuple(getattr(self, name))
            object.__setattr__(self, name, pair)
            if len(pair) != 2:
                raise LLMGymError(f"MMPP {name} needs two numbers, one per state, got {len(pair)}.")
        for i in range(2):
            check_number(f"weights[{i}]", self.weights[i], low=0)
            check_number(f"sojourn_s[{i}]", self.sojourn_s[i], above=0)
        if sum(self.weights) <= 0:
            raise LLMGymError("MMPP weights must not both be 0: nothing would ever arrive.")

    def sampler(self, ticks_per_s: float) -> GapSampler:
        weights, sojourn = np.array(self.weights), np.array(self.sojourn_s)
        mean_weight = weights @ sojourn / sojourn.sum()
        rates = self.rate_per_s * weights / mean_weight
        as_ticks = 1 / ticks_per_s
        return ModulatedGaps(
            jnp.asarray(rates * as_ticks, jnp.float32),
            jnp.asarray(as_ticks / sojourn, jnp.float32),
        )


ARRIVALS: dict[str, type[Arrivals]] = {
    a.kind: a for a in (Poisson, Deterministic, GammaRenewal, MMPP)
}
