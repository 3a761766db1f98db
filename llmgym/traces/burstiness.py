"""How requests come: the rate of arrivals, the gaps between them, and their counts in windows of time.

What tells one pattern of arrivals from another, beyond the rate: the coefficient of variation (CV) of
the gaps, and the index of dispersion of counts, the variance over the mean of how many requests come in
windows of a given length. Both are 1 for Poisson arrivals. The CV alone does not tell a burst from a long
gap: how the dispersion grows with the window does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import check_kind, check_numbers, check_seed
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.precision import in_32_bits
from llmgym.scenario.arrivals import MMPP, Arrivals, relative_rates
from llmgym.scenario.gap_samplers import Gap

SCALES_S = (1.0, 10.0, 60.0)
"""Windows, in seconds, in which requests are counted."""

MOST_DRAWN = 2**26
"""Most arrivals that ``sample_times`` draws, in all runs together."""

FEWEST, FEWEST_WINDOWS = 50, 10
"""Requests that it takes to speak of a pattern, and windows of a dispersion."""


@dataclass(frozen=True)
class Burstiness:
    """What is compared: the rate, the CV of the gaps, and the dispersion of counts by window (s).

    A window of which the trace has fewer than ten is left out.
    """

    rate_per_s: float
    gap_cv: float
    dispersion: dict[float, float]

    @property
    def shape(self) -> np.ndarray:
        """The CV and the dispersions, which do not depend on the unit of time."""
        return np.array([self.gap_cv, *self.dispersion.values()])


def burstiness(arrival_s: Sequence[float] | np.ndarray) -> Burstiness:
    """Rate, CV of gaps and dispersion of counts of arrival times in seconds.

    Raises LLMGymError where they are too few, out of order or all the same.
    """
    times = _checked(arrival_s)
    gaps, span, dispersion = np.diff(times), times[-1], {}
    for scale in SCALES_S:
        windows = int(span / scale)
        if windows >= FEWEST_WINDOWS:
            counts = np.bincount((times / scale).astype(int), minlength=windows)[:windows]
            dispersion[scale] = float(counts.var() / counts.mean())
    return Burstiness(float(len(gaps) / span), float(gaps.std() / gaps.mean()), dispersion)


def time_step(arrival_s: Sequence[float] | np.ndarray) -> float:
    """The step in which time stamps come, in seconds; 0 unless one in ten repeats the one before."""
    gaps = np.diff(_checked(arrival_s))
    return float(np.quantile(gaps[gaps > 0], 0.01)) if (gaps == 0).mean() >= 0.1 else 0.0


def spread(arrival_s: Sequence[float] | np.ndarray, seed: int = 0) -> np.ndarray:
    """The times, each moved by a random part of a time step, where time stamps come in steps.

    Stamps may be coarse (3 s in Mooncake); the trace does not say what happens between two of them.
    """
    times = _checked(arrival_s)
    jitter = np.random.default_rng(check_seed(seed)).random(len(times))
    return np.sort(times + time_step(times) * jitter)


def _checked(arrival_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """Arrival times in seconds from the first."""
    times = check_numbers("arrival_s", arrival_s, axes=1)
    if times.size < FEWEST:
        raise LLMGymError(
            f"A pattern of arrivals takes at least {FEWEST} requests, got {times.size}; replay the "
            "trace as it is."
        )
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise LLMGymError("Arrival times must be finite and in order: sort the requests by them.")
    if times[-1] == times[0]:
        raise LLMGymError("All requests arrive at one instant: there is no pattern to fit.")
    return times - times[0]


def mmpp_shape(process: MMPP, scales_s: Sequence[float]) -> np.ndarray:
    """CV of gaps, then dispersions of counts in windows of ``scales_s``, of a stationary MMPP, exactly.

    Source: Heffes and Lucantoni, IEEE JSAC 4(6), 1986; Fischer and Meier-Hellstern, Performance
    Evaluation 18, 1993.
    """
    share = np.array(process.sojourn_s) / np.sum(process.sojourn_s)
    rates = process.rate_per_s * relative_rates(process.weights, process.sojourn_s)
    leave = 1 / np.array(process.sojourn_s)
    # A gap begins in the state that an arrival sees; its k-th moment is k! seen (-D0)^-k 1.
    seen, one = share * rates / process.rate_per_s, np.ones(2)
    inverse = np.linalg.inv(np.diag(rates + leave) - np.fliplr(np.diag(leave)))
    square = 2 * (seen @ inverse @ inverse @ one) / (seen @ inverse @ one) ** 2
    changes = leave.sum() * np.asarray(scales_s, float)
    limit = 2 * share.prod() * (rates[0] - rates[1]) ** 2 / (leave.sum() * process.rate_per_s)
    return np.array([np.sqrt(square - 1), *(1 + limit * (1 + np.expm1(-changes) / changes))])


@in_32_bits
def sample_times(
    process: Arrivals, count: int, runs: int = 1, seed: int = 0, ticks_per_s: float = 1e5
) -> np.ndarray:
    """Arrival times in seconds (runs, count) of independent runs of a process, to look at.

    Args:
        process: the arrivals.
        count: arrivals of each run.
        runs: how many; they differ in their randomness only.
        seed: of all of them.
        ticks_per_s: precision of the times.
    """
    check_kind("process", process, Arrivals)
    runs = check_number("runs", runs, low=1, high=2**20, integer=True)
    count = check_number("count", count, low=2, high=MOST_DRAWN / runs, integer=True)
    ticks_per_s = check_number("ticks_per_s", ticks_per_s, above=0, high=1e9)
    seed = check_seed(seed)
    words = jax.random.bits(jax.random.key(seed), (count, runs), jnp.uint32)
    gaps = _draw(process.sampler(ticks_per_s), words).to_numpy()
    return np.cumsum(gaps, axis=0).T / ticks_per_s


@jax.jit
def _draw(sampler: Any, words: jax.Array) -> Gap:
    first, memory = sampler.first(words[0])
    gaps, _ = sampler.gaps(memory, jnp.zeros(words.shape[1:], jnp.int32), words[1:])
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, gaps)
