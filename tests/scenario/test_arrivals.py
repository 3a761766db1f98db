"""Arrival processes: laws, rates, exact clocks, and bad arguments."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator, stream
from llmgym.scenario.arrivals import (
    ARRIVALS,
    MMPP,
    Arrivals,
    Deterministic,
    GammaRenewal,
    Poisson,
    RateCurve,
    uniform,
)
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.gap_samplers import Gap
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Stage
from llmgym.scenario.workload import JobType, Workload

TICKS_PER_S = 100_000.0
SAMPLE = 200_000


@partial(jax.jit, static_argnames="count")
def _gaps(sampler: Any, key: jax.Array, count: int) -> Gap:
    """The gap before arrival 0 and those after the next ones (count + 1, ...)."""
    before = jnp.full(key.shape[1:], -1, jnp.int32)
    first, memory = sampler.first(stream.words(key, 0, before, 1)[0])
    index = jnp.arange(count, dtype=jnp.int32).reshape((-1,) + (1,) * before.ndim)
    words = stream.words(key, 0, jnp.broadcast_to(index, (count, *before.shape)), 2)[0]
    gaps, _ = sampler.gaps(memory, jnp.zeros_like(before), words)
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, gaps)


def gaps(process: Arrivals, count: int = SAMPLE, seed: int = 0) -> np.ndarray:
    """Consecutive gaps in ticks, as the engine draws them."""
    key = jnp.array([seed, 12345], jnp.uint32)
    return _gaps(process.sampler(TICKS_PER_S), key, count).to_numpy()


def near(sample: np.ndarray, mean: float, deviation: float) -> None:
    """The mean of independent values is within five standard errors."""
    error = deviation / np.sqrt(sample.size)
    assert abs(sample.mean() - mean) < 5 * error


def fractions_beyond(sample: np.ndarray, law: Any) -> None:
    """At nine levels the share of gaps beyond is that of the law, within five standard errors."""
    levels = law.ppf(np.linspace(0.1, 0.999, 9))
    for level in np.rint(levels[levels > 50]) + 0.5:  # below, whole ticks are too coarse
        share, expected = (sample > level).mean(), law.sf(level)
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / sample.size)


@pytest.mark.parametrize("rate", [0.7, 13.871, 400.0])
def test_poisson_gaps_are_exponential(rate: float) -> None:
    mean = TICKS_PER_S / rate
    sample = gaps(Poisson(rate))
    near(sample, mean, mean)
    fractions_beyond(sample, stats.expon(scale=mean))
    assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 5 / np.sqrt(SAMPLE)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0, 13.0])
def test_gamma_gaps_have_their_mean_and_variation(cv: float) -> None:
    mean = TICKS_PER_S / 20
    sample = gaps(GammaRenewal(20.0, cv))
    near(sample, mean, cv * mean)
    fractions_beyond(sample, stats.gamma(cv**-2, scale=mean * cv**2))
    # Relative variance of the squared deviation of a Gamma variable: 2 + 6 cv^2.
    squares = np.square(sample - mean)
    assert abs(squares.mean() / (cv * mean) ** 2 - 1) < 5 * np.sqrt((2 + 6 * cv**2) / SAMPLE)


def test_gamma_at_variation_one_is_poisson() -> None:
    law = stats.expon(scale=TICKS_PER_S / 5)
    fractions_beyond(gaps(GammaRenewal(5.0, 1.0)), law)


def interval_times(interval: Fraction, count: int) -> list[int]:
    """Whole ticks of the multiples of an interval."""
    return [int((n + 1) * interval) for n in range(count)]


@pytest.mark.parametrize(
    ("rate", "interval"),
    [
        (1 / 0.4675, Fraction(46_750)),  # corner C: one request every 467.5 ms
        (13.871, Fraction(100_000_000, 13_871)),
        (1.0, Fraction(100_000)),
        (0.001, Fraction(100_000_000)),
        (3.0, Fraction(100_000, 3)),
        (250_000.0, Fraction(2, 5)),  # more than one request a tick
    ],
)
def test_deterministic_arrivals_do_not_drift(rate: float, interval: Fraction) -> None:
    count = 100_000
    times = np.cumsum(gaps(Deterministic(rate), count - 1))
    expected = np.array(interval_times(interval, count))
    if interval.denominator == 1:
        np.testing.assert_array_equal(times, expected)
    # The interval is kept to a fraction of 2**-32 ticks: one tick off at most, however long it lasts.
    assert np.abs(times - expected).max() <= 1


BURSTY = MMPP(30.0, weights=(1.0, 6.0), sojourn_s=(2.0, 0.5))


def mmpp_rates(process: MMPP) -> tuple[np.ndarray, np.ndarray]:
    """Arrival rates and stationary probabilities of the two states."""
    weights, sojourn = np.array(process.weights), np.array(process.sojourn_s)
    stationary = sojourn / sojourn.sum()
    return process.rate_per_s * weights / (weights @ stationary), stationary


@pytest.mark.parametrize("process", [BURSTY, MMPP(40.0, (0.0, 1.0), (1.0, 1.0))], ids=str)
def test_mmpp_has_its_long_run_rate_and_dispersion(process: MMPP) -> None:
    key = jnp.asarray(np.random.default_rng(4).integers(0, 2**32, (2, 16)), jnp.uint32)
    drawn = _gaps(process.sampler(TICKS_PER_S), key, 25_000).to_numpy()
    times = np.cumsum(drawn, axis=0) / TICKS_PER_S
    rates, stationary = mmpp_rates(process)
    leave, window = (1 / np.array(process.sojourn_s)).sum(), 10.0

    def variance(seconds: float) -> float:
        """Of the number of requests in a time: the Poisson part, and that of the changing rate."""
        rest = leave * seconds - 1 + np.exp(-leave * seconds)
        switching = 2 * stationary.prod() * np.diff(rates)[0] ** 2 / leave**2 * rest
        return float(process.rate_per_s * seconds + switching)

    edges = np.arange(0, times[-1].min(), window)
    counts = np.stack([np.histogram(column, edges)[0] for column in times.T])
    seconds = edges[-1]
    error = np.sqrt(variance(seconds) / counts.shape[0])
    assert abs(counts.sum(axis=1).mean() - process.rate_per_s * seconds) < 5 * error
    relative = counts.var() / variance(window)
    assert abs(relative - 1) < 5 * np.sqrt(2 / counts.size)


def test_mmpp_begins_in_its_stationary_state() -> None:
    key = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, (2, 40_000)), jnp.uint32)
    first = _gaps(BURSTY.sampler(TICKS_PER_S), key, 1).to_numpy()[0]
    rates, stationary = mmpp_rates(BURSTY)
    window = 0.002 * TICKS_PER_S  # hardly any change of state inside: a mixture of exponentials
    expected = 1 - stationary @ np.exp(-rates * 0.002)
    share = (first <= window).mean()
    assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / first.size)


CURVE = RateCurve(50.0, (1.0, 0.0, 3.0, 4.0), period_s=2.0)


def curve_times(process: RateCurve, count: int) -> np.ndarray:
    """Arrival times in ticks of 16 independent runs (count, 16)."""
    key = jnp.asarray(np.random.default_rng(7).integers(0, 2**32, (2, 16)), jnp.uint32)
    drawn = _gaps(process.sampler(TICKS_PER_S), key, count).to_numpy()
    return np.cumsum(drawn, axis=0)


def test_a_rate_curve_has_its_rate_in_every_bin() -> None:
    times = curve_times(CURVE, 20_000)
    periods = times[-1].min() // 200_000
    phase = times[times < periods * 200_000] % 200_000
    counts = np.bincount(phase // 50_000, minlength=4)
    expected = 16 * periods * 0.5 * 50 * np.array([0.5, 0, 1.5, 2])
    assert counts[1] == 0
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    inside = phase[phase >= 150_000] - 150_000  # uniform in a bin
    near(inside, 25_000, 50_000 / np.sqrt(12))
    # Poisson: variance of the counts of a period is their mean.
    per_period = [np.bincount(run[run < periods * 200_000] // 200_000) for run in times.T]
    counts = np.concatenate(per_period)
    assert abs(counts.var() / counts.mean() - 1) < 5 * np.sqrt(2 / counts.size)


def test_a_day_is_kept_to_the_tick() -> None:
    # 8.64e9 ticks do not fit in 31 bits: times go in steps of five ticks, and bins stay where they are.
    day = RateCurve(400 / 86_400, (*[1.0] * 8, *[0.0] * 2, *[1.0] * 14))
    times = curve_times(day, 6000)
    hour = times % 8_640_000_000 // 360_000_000
    assert (np.diff(times, axis=0) % 5 == 0).all()
    assert times[-1].min() > 13 * 8_640_000_000
    assert set(np.unique(hour)) == {*range(8), *range(10, 24)}


def test_a_rate_curve_of_one_bin_is_poisson() -> None:
    sample = gaps(RateCurve(13.871, (2.0,), 0.1), 50_000)
    fractions_beyond(sample, stats.expon(scale=TICKS_PER_S / 13.871))
    assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 5 / np.sqrt(50_000)


def test_bursts_on_a_rate_curve_are_those_of_the_mmpp() -> None:
    bursts = {"burst_weights": BURSTY.weights, "burst_sojourn_s": BURSTY.sojourn_s}
    times = curve_times(RateCurve(30.0, (1.0, 1.0, 1.0), 7.0, **bursts), 20_000) / TICKS_PER_S
    rates, stationary = mmpp_rates(BURSTY)
    leave, window = (1 / np.array(BURSTY.sojourn_s)).sum(), 1.0
    rest = leave * window - 1 + np.exp(-leave * window)
    variance = 30 * window + 2 * stationary.prod() * np.diff(rates)[0] ** 2 / leave**2 * rest
    edges = np.arange(0, times[-1].min(), window)
    counts = np.stack([np.histogram(column, edges)[0] for column in times.T])
    assert counts.mean() == pytest.approx(30, rel=0.03)
    assert counts.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(
    "process", [Poisson(9.0), GammaRenewal(9.0, 2.0), BURSTY, CURVE], ids=lambda p: p.kind
)
def test_seeds_change_the_arrivals_and_nothing_else_does(process: Arrivals) -> None:
    one = gaps(process, 500, seed=1)
    np.testing.assert_array_equal(one, gaps(process, 500, seed=1))
    assert (one != gaps(process, 500, seed=2)).mean() > 0.9
    np.testing.assert_array_equal(one[:300], gaps(process, 299, seed=1))


def test_uniform_numbers_stay_inside_the_open_interval() -> None:
    u = np.asarray(uniform(jnp.array([0, 1, 2**31, 2**32 - 1], jnp.uint32)))
    assert u.min() > 0
    assert u.max() < 1
    assert u[2] == pytest.approx(0.5, abs=1e-6)
    every = np.asarray(uniform(jnp.arange(0, 2**32, 2**12 + 1, dtype=jnp.uint32)))
    assert every.mean() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(
    "process",
    [
        Poisson(2.0),
        Deterministic(2.0),
        GammaRenewal(2.0, 4.0),
        MMPP(2.0, (1, 5), (3, 1)),
        RateCurve(2.0, (1, 5), 3600.0, (0, 1), (50, 10)),
    ],
    ids=lambda p: p.kind,
)
def test_at_rate_changes_the_rate_alone(process: Arrivals) -> None:
    faster = process.at_rate(7.0)
    assert faster.rate_per_s == 7.0
    assert faster == replace(process, rate_per_s=7.0)
    assert ARRIVALS[process.kind] is type(process)


def test_a_replay_is_stretched_to_a_rate() -> None:
    replay = Replay([1.0, 2.0, 5.0], [1, 2, 3], [3, 2, 1])
    assert replay.rate_per_s == pytest.approx(0.5)
    faster = replay.at_rate(2.0)
    assert faster.rate_per_s == pytest.approx(2.0)
    np.testing.assert_allclose(faster.arrival_s, [0.25, 0.5, 1.25])
    np.testing.assert_array_equal(faster.prefill_tokens, [1, 2, 3])


NAN = float("nan")


@pytest.mark.parametrize("bad", [0, -1.0, NAN, float("inf"), "fast", None, True])
@pytest.mark.parametrize(
    "make",
    [
        Poisson,
        Deterministic,
        lambda rate: GammaRenewal(rate, 2.0),
        lambda rate: MMPP(rate, (1, 2), (1, 2)),
        lambda rate: Poisson(1.0).at_rate(rate),
    ],
    ids=["poisson", "deterministic", "gamma", "mmpp", "at_rate"],
)
def test_bad_rates_are_refused(make: Any, bad: Any) -> None:
    with pytest.raises(LLMGymError, match="rate_per_s must be"):
        make(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GammaRenewal(1.0, 0.0), "cv must be greater than 0"),
        (lambda: GammaRenewal(1.0, -2.0), "cv must be greater than 0"),
        (lambda: GammaRenewal(1.0, NAN), "cv must be finite"),
        (lambda: GammaRenewal(1.0, 1e9), "cv must be at most"),
        (lambda: MMPP(1.0, (1, 2, 3), (1, 2)), "weights needs two numbers"),
        (lambda: MMPP(1.0, (1, 2), (1,)), "sojourn_s needs two numbers"),
        (lambda: MMPP(1.0, (0, 0), (1, 1)), "both be 0"),
        (lambda: MMPP(1.0, (1, -1), (1, 1)), r"weights\[1\] must be at least 0"),
        (lambda: MMPP(1.0, (1, 1), (0, 1)), r"sojourn_s\[0\] must be greater than 0"),
        (lambda: MMPP(1.0, (1, NAN), (1, 1)), r"weights\[1\] must be finite"),
        (lambda: RateCurve(1.0, ()), "a weight above 0"),
        (lambda: RateCurve(1.0, (0, 0)), "a weight above 0"),
        (lambda: RateCurve(1.0, (1, -1)), r"weights\[1\] must be at least 0"),
        (lambda: RateCurve(1.0, (1,), 0.0), "period_s must be greater than 0"),
        (lambda: RateCurve(1.0, (1,), 1.0, (1, 2)), "both burst_weights and burst_sojourn_s"),
        (lambda: RateCurve(1.0, (1,), 1.0, (0, 0), (1, 1)), "both be 0"),
        (lambda: RateCurve(1.0, (1,), 1.0, (0, 1), (1, 0)), r"burst_sojourn_s\[1\] must be"),
        (lambda: RateCurve(1.0, (1, 1), 1e-5).sampler(1e5), "smaller tick_ms"),
        (lambda: RateCurve(1.0, (1,), 1e9).sampler(1e5), "larger tick_ms, or a shorter period_s"),
        (lambda: Replay([], [], []), "must not be empty"),
        (lambda: Replay([0.0, 2.0, 1.0], [1] * 3, [1] * 3), r"arrival_s\[2\].*sort"),
        (lambda: Replay([0.0, NAN], [1, 1], [1, 1]), r"arrival_s\[1\] is"),
        (lambda: Replay([-1.0], [1], [1]), r"arrival_s\[0\] is"),
        (lambda: Replay([0.0], [1, 2], [1, 2]), "1 entries"),
        (lambda: Replay([0.0, 1.0], [1, 2], [1]), "one each per request"),
        (lambda: Replay([[0.0]], [1], [1]), "flat list"),
        (lambda: Replay([0.0], [[1]], [1]), "flat list"),
        (lambda: Replay(["soon"], [1], [1]), "flat list of seconds"),
        (lambda: Replay([0.0], ["x"], [1]), "must hold numbers"),
        (lambda: Replay([0.0], [-1], [1]), r"prefill_tokens\[0\]"),
        (lambda: Replay([0.0], [1], [2.5]), r"decode_tokens\[0\]"),
        (lambda: Replay([0.0], [NAN], [1]), r"prefill_tokens\[0\]"),
        (lambda: Replay([0.0], [2**21], [1]), "above"),
        (lambda: Replay([0.0, 0.0], [1, 0], [0, 0]), "Request 1 has neither"),
        (lambda: Replay([0.0], [1], [1], ttft_ms=0.0), "ttft_ms must be greater"),
        (lambda: Replay([0.0, 0.0], [1, 1], [1, 1]).at_rate(2.0), "no rate to change"),
        (lambda: Replay([0.0, 1.0], [1, 1], [1, 1]).at_rate(-2.0), "greater than 0"),
        (
            lambda: simulator.lower(
                Scenario.single_engine(Affine(10.0, 0.0), 64, Replay([0.0, 1e11], [1, 1], [1, 1]))
            ),
            "larger tick_ms",
        ),
        (lambda: Paired([], []), "must not be empty"),
        (lambda: Paired([1], [1, 2]), "one each per request"),
        (lambda: Paired([0, 1], [0, 1]), "Request 0 has neither"),
        (lambda: Stage(prefill=3), "either prefill and decode"),
        (lambda: Stage(), "either prefill and decode"),
        (lambda: Stage(0, 0), "nothing to serve"),
        (lambda: Stage("long", 3), "length distribution"),
        (lambda: JobType(Poisson(1.0), ()), "no stage"),
        (lambda: JobType(3.0, (Stage(1, 1),)), "arrival process"),
        (lambda: Workload(Poisson(1.0), 1, 1, tpot_ms=-1), "tpot_ms must be greater"),
    ],
)
def test_bad_workloads_are_refused(make: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        make()
