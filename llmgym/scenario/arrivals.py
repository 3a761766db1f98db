"""Arrival processes: when the requests of one job type come.

``llmgym.scenario.gap_samplers`` has their device forms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, TypeVar

import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import as_list, keep_list, keep_number
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.bursty_gaps import CurveGaps, ModulatedGaps
from llmgym.scenario.gap_samplers import (
    FAR,
    NEVER,
    PERIOD,
    ExponentialGaps,
    GammaGaps,
    GapSampler,
    ListedGaps,
    RegularGaps,
    uniform,
)

Self = TypeVar("Self", bound="Arrivals")


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


def _keep_rate(process: Arrivals) -> None:
    keep_number(process, "rate_per_s", above=0)


MOST_TICKS = 2.0**40
"""Longest mean gap in ticks (127 days at 0.01 ms)."""

MOST_PER_TICK = 1024
"""Most arrivals per tick, in the busiest state (1e8 per second at 0.01 ms)."""

MOST_CHANGES = 100_000
"""Most changes of state, or bins of a curve, in a mean gap: each costs random draws."""


def _check_scale(rate_per_s: float, ticks_per_s: float, busiest_per_s: float = 0.0) -> None:
    """Refuse a rate whose gaps the clock cannot hold, or cannot tell apart."""
    tick_ms, busiest = 1000 / ticks_per_s, max(busiest_per_s, rate_per_s)
    if rate_per_s * MOST_TICKS < ticks_per_s:
        raise LLMGymError(
            f"{rate_per_s:g} arrivals per second are too few for a clock tick of {tick_ms:g} ms; the "
            f"fewest are {ticks_per_s / MOST_TICKS:.3g}. Use a larger tick_ms."
        )
    if busiest > MOST_PER_TICK * ticks_per_s:
        raise LLMGymError(
            f"{busiest:g} arrivals per second are too many for a clock tick of {tick_ms:g} ms; the "
            f"most are {MOST_PER_TICK * ticks_per_s:.3g}. Use a smaller tick_ms."
        )


def _check_changes(rate_per_s: float, shortest_s: float, what: str) -> None:
    """Refuse a process whose states or bins are far shorter than the time between arrivals."""
    if rate_per_s * shortest_s * MOST_CHANGES < 1:
        raise LLMGymError(
            f"At {rate_per_s:g} arrivals per second the next one is {1 / (rate_per_s * shortest_s):.3g} "
            f"times {what} of {shortest_s:g} s away; the most is {MOST_CHANGES}. Arrivals that rare "
            "show nothing of it: use Poisson arrivals."
        )


@dataclass(frozen=True)
class Poisson(Arrivals):
    """Poisson arrivals at ``rate_per_s``."""

    rate_per_s: float
    kind: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        _keep_rate(self)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        _check_scale(self.rate_per_s, ticks_per_s)
        return ExponentialGaps(jnp.float32(ticks_per_s / self.rate_per_s))


@dataclass(frozen=True)
class Deterministic(Arrivals):
    """One arrival every 1/rate seconds, the first after one interval. It is exact to 2**-32 ticks."""

    rate_per_s: float
    kind: ClassVar[str] = "deterministic"

    def __post_init__(self) -> None:
        _keep_rate(self)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        _check_scale(self.rate_per_s, ticks_per_s)
        # A rate is usually written as a rounded decimal of 1/interval: limit_denominator recovers it.
        exact = Fraction(ticks_per_s) / Fraction(self.rate_per_s)
        interval = exact.limit_denominator(10**6) if exact > 1 else exact
        whole, fraction = divmod(round(interval * 2**32), 2**32)
        later = whole // PERIOD if whole >= FAR else 0
        return RegularGaps(
            jnp.int32(whole - later * PERIOD), jnp.int32(later), jnp.uint32(fraction)
        )


@dataclass(frozen=True)
class GammaRenewal(Arrivals):
    """Independent Gamma gaps with coefficient of variation ``cv``: 1 is Poisson, above it bursty."""

    rate_per_s: float
    cv: float
    kind: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        _keep_rate(self)
        keep_number(self, "cv", above=0, high=100)

    def sampler(self, ticks_per_s: float) -> GapSampler:
        _check_scale(self.rate_per_s, ticks_per_s)
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
        _keep_rate(self)
        _check_states(self, "weights", "sojourn_s")

    def sampler(self, ticks_per_s: float) -> GapSampler:
        as_ticks = 1 / ticks_per_s
        rates = self.rate_per_s * relative_rates(self.weights, self.sojourn_s)
        _check_scale(self.rate_per_s, ticks_per_s, float(rates.max()))
        _check_changes(self.rate_per_s, min(self.sojourn_s), "a sojourn")
        return ModulatedGaps(
            jnp.asarray(rates * as_ticks, jnp.float32),
            jnp.asarray(as_ticks / np.array(self.sojourn_s), jnp.float32),
        )


def relative_rates(weights: tuple[float, float], sojourn_s: tuple[float, float]) -> np.ndarray:
    """Rates of the two states of an MMPP as multiples of the mean rate."""
    share = np.array(sojourn_s) / np.sum(sojourn_s)
    return np.array(weights) / (weights @ share)


def _check_states(process: Arrivals, weights: str, sojourn_s: str) -> None:
    """Refuse bad values in the two fields that describe a process of two states; make them tuples."""
    kind = type(process).__name__
    for name in (weights, sojourn_s):
        pair = as_list(name, getattr(process, name), what="two numbers")
        if len(pair) != 2:
            raise LLMGymError(f"{kind} {name} needs two numbers, one per state, got {len(pair)}.")
        limits = {"low": 0.0} if name == weights else {"above": 0.0}
        checked = tuple(check_number(f"{name}[{i}]", x, **limits) for i, x in enumerate(pair))  # type: ignore[arg-type]
        object.__setattr__(process, name, checked)
    if sum(getattr(process, weights)) <= 0:
        raise LLMGymError(f"{kind} {weights} must not both be 0: nothing would ever arrive.")


@dataclass(frozen=True)
class RateCurve(Arrivals):
    """Poisson arrivals at a rate that follows a curve and repeats, such as the course of a day.

    The period is cut into bins of equal length; in bin i requests arrive at a rate in proportion to
    ``weights[i]``. ``rate_per_s`` is the mean over a period, and time 0 is its beginning. Bursts and
    lulls may come on top: then the rate is also in proportion to ``burst_weights`` of a state that
    lasts an exponential time of mean ``burst_sojourn_s`` seconds, as in MMPP.

    A bin is a whole number of clock ticks, or of units of a few ticks where a period has more than 2**31.
    """

    rate_per_s: float
    weights: tuple[float, ...]
    period_s: float = 86_400.0
    burst_weights: tuple[float, float] | None = None
    burst_sojourn_s: tuple[float, float] | None = None
    kind: ClassVar[str] = "rate_curve"

    def __post_init__(self) -> None:
        _keep_rate(self)
        keep_number(self, "period_s", above=0)
        keep_list(self, "weights", what="numbers")
        checked = [check_number(f"weights[{i}]", w, low=0) for i, w in enumerate(self.weights)]
        object.__setattr__(self, "weights", tuple(checked))
        if sum(self.weights) <= 0:
            raise LLMGymError("A rate curve needs a weight above 0: nothing would ever arrive.")
        if (self.burst_weights is None) != (self.burst_sojourn_s is None):
            raise LLMGymError(
                "Bursts need both burst_weights and burst_sojourn_s; give both or none."
            )
        if self.burst_weights is not None:
            _check_states(self, "burst_weights", "burst_sojourn_s")

    def sampler(self, ticks_per_s: float) -> GapSampler:
        weights, period = np.array(self.weights, float), self.period_s * ticks_per_s
        if period > MOST_TICKS:
            raise LLMGymError(
                f"The period of the rate curve has {period:.3g} clock ticks; the most are "
                f"{MOST_TICKS:.3g}. Use a larger tick_ms, or a shorter period_s."
            )
        unit = int(np.ceil(period / (2**31 - len(weights))))
        bin_units = round(period / len(weights) / unit)
        if bin_units < 1:
            raise LLMGymError(
                f"The rate curve has bins of {self.period_s / len(weights):g} s, shorter than a clock "
                "tick; use fewer bins or a smaller tick_ms."
            )
        states, leave = np.ones(2), np.zeros(2)
        if self.burst_weights is not None and self.burst_sojourn_s is not None:
            states = relative_rates(self.burst_weights, self.burst_sojourn_s)
            leave = 1 / np.array(self.burst_sojourn_s)
        per_unit = unit / ticks_per_s
        rates = np.outer(self.rate_per_s * weights / weights.mean(), states)
        shortest = min([self.period_s / len(weights), *(self.burst_sojourn_s or ())])
        _check_scale(self.rate_per_s, ticks_per_s, float(rates.max()))
        _check_changes(self.rate_per_s, shortest, "a bin or sojourn")
        return CurveGaps(
            jnp.asarray(rates * per_unit, jnp.float32),
            jnp.asarray(leave * per_unit, jnp.float32),
            jnp.int32(bin_units),
            jnp.int32(unit),
        )


LATEST = 2.0**53
"""Ticks before which every arrival of a list must come: float64 holds whole numbers up to it."""


@dataclass(frozen=True, eq=False)
class ListedArrivals(Arrivals):
    """Arrivals at the times of a list (seconds, not decreasing): those of a replay. Then it ends."""

    arrival_s: np.ndarray
    kind: ClassVar[str] = "replay"

    @property
    def rate_per_s(self) -> float:  # type: ignore[override]
        """Mean over the span of the list; infinite where they all come at once."""
        span = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self.arrival_s) - 1) / span if span > 0 else float("inf")

    def at_rate(self, rate_per_s: float) -> ListedArrivals:
        rate_per_s = check_number("rate_per_s", rate_per_s, above=0)
        if not np.isfinite(self.rate_per_s):
            raise LLMGymError("All requests arrive at one instant: there is no rate to change.")
        return replace(self, arrival_s=self.arrival_s * (self.rate_per_s / rate_per_s))

    def sampler(self, ticks_per_s: float) -> GapSampler:
        times = np.rint(self.arrival_s * ticks_per_s)
        if times[-1] >= LATEST:
            raise LLMGymError(
                f"The last request comes after {self.arrival_s[-1]:g} s; the clock holds "
                f"{LATEST / ticks_per_s:g} s. Use a larger tick_ms, or cut the trace there."
            )
        gaps = np.diff(times.astype(np.int64), prepend=0)
        later = np.where(gaps >= FAR, gaps // PERIOD, 0)
        ticks = jnp.asarray(np.append(gaps - later * PERIOD, NEVER), jnp.int32)
        return ListedGaps(
            ticks, jnp.asarray(np.append(later, 0), jnp.int32) if later.any() else None
        )


ARRIVALS: dict[str, type[Arrivals]] = {
    a.kind: a for a in (Poisson, Deterministic, GammaRenewal, MMPP, RateCurve)
}

__all__ = [
    "ARRIVALS",
    "FAR",
    "MMPP",
    "NEVER",
    "PERIOD",
    "Arrivals",
    "Deterministic",
    "GammaRenewal",
    "GapSampler",
    "ListedArrivals",
    "ListedGaps",
    "Poisson",
    "RateCurve",
    "relative_rates",
    "uniform",
]
