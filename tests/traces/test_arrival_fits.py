"""Patterns of arrivals: what tells them apart, and processes fitted to them."""

from __future__ import annotations

import numpy as np
import pytest

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import MMPP, Poisson, RateCurve
from llmgym.scenario.replay import Replay
from llmgym.traces.arrival_fits import FITS, compare_fits, fit_arrivals
from llmgym.traces.burstiness import burstiness, mmpp_shape, sample_times, spread, time_step
from llmgym.traces.readers import read_trace

BURSTS = MMPP(8.0, weights=(0.05, 1.0), sojourn_s=(20.0, 5.0))


@pytest.fixture(scope="module")
def bursts() -> np.ndarray:
    """Six runs of BURSTS of an hour each."""
    return sample_times(BURSTS, 30_000, runs=6, seed=1)


def along(weights: list[float], period_s: float, rate_per_s: float, periods: float) -> np.ndarray:
    """Poisson arrivals along a rate curve, drawn bin by bin."""
    rng, width = np.random.default_rng(5), period_s / len(weights)
    times = []
    for n in range(round(periods * len(weights))):
        rate = rate_per_s * weights[n % len(weights)] / np.mean(weights)
        times.append((n + rng.random(rng.poisson(rate * width))) * width)
    return np.sort(np.concatenate(times))


def test_burstiness_of_known_patterns() -> None:
    regular = burstiness(np.arange(1200) * 0.5 + 7)
    assert (regular.rate_per_s, regular.gap_cv) == (2.0, 0.0)
    assert regular.dispersion == {1.0: 0.0, 10.0: 0.0}  # of 60 s there are too few windows
    fives = burstiness(np.repeat(np.arange(700) * 1.0, 5))  # five at once, every second
    assert fives.gap_cv == pytest.approx(2.0, rel=1e-2)
    assert fives.dispersion[1.0] == 0
    alternating = np.concatenate([np.arange(10) / 10 + 2 * n for n in range(100)])
    assert burstiness(alternating).dispersion[1.0] == pytest.approx(5.0, rel=0.01)  # 10, 0, 10, ...
    assert burstiness(alternating).shape.tolist() == pytest.approx([1.5, 5, 0], abs=0.01)


def test_the_formulas_of_the_mmpp(bursts: np.ndarray) -> None:
    shape = mmpp_shape(BURSTS, (1.0, 10.0, 60.0))
    found = np.array([burstiness(run).shape for run in bursts])
    error = found.std(axis=0) / np.sqrt(5)
    # A finite run misses some of the dispersion: of 60 windows about one part in 60.
    assert (np.abs(found.mean(axis=0) / shape - 1) < 0.03 + 4 * error / shape).all()
    # Off half of the time it is a renewal process: in the long run its dispersion is its CV squared.
    cv, limit = mmpp_shape(MMPP(3.0, (0, 1), (7, 2)), (1e9,))
    assert limit == pytest.approx(cv**2)
    assert mmpp_shape(MMPP(3.0, (1, 1), (7, 2)), (1.0, 9.0)) == pytest.approx([1, 1, 1])


def test_bursts_are_found_again(bursts: np.ndarray) -> None:
    fits = [fit_arrivals(run, "bursts") for run in bursts]
    measured = [burstiness(run) for run in bursts]
    for fit, seen in zip(fits, measured, strict=True):
        assert fit.rate_per_s == pytest.approx(seen.rate_per_s, rel=1e-3)
        assert mmpp_shape(fit, ())[0] == pytest.approx(seen.gap_cv, rel=0.05)
    scales = (1.0, 10.0, 60.0)
    shapes = np.median([mmpp_shape(fit, scales) for fit in fits], axis=0)
    assert shapes == pytest.approx(mmpp_shape(BURSTS, scales), rel=0.2)
    assert np.median([fit.sojourn_s for fit in fits], axis=0) == pytest.approx((20, 5), rel=0.25)
    assert np.median([fit.weights[0] for fit in fits]) == pytest.approx(0.05, abs=0.03)


def test_a_curve_is_found_again() -> None:
    weights = [0.4, 1.0, 2.0, 0.6]
    found = fit_arrivals(along(weights, 3600, 4, 1), "day")
    assert isinstance(found, RateCurve)
    assert found.period_s == pytest.approx(3600, rel=1e-3)
    assert len(found.weights) % 4 == 0
    fine = np.reshape(found.weights, (4, -1)).mean(axis=1)
    assert fine == pytest.approx(weights, rel=0.1)
    level = fit_arrivals(along([1.0], 3600, 4, 1), "day")
    assert len(level.weights) < 6  # as many bins as the data bear


def test_days_are_laid_on_one_another() -> None:
    weights = [0.1] * 8 + [1.0] * 10 + [0.5] * 6
    times = along(weights, 86_400, 0.1, 2.5)
    found = fit_arrivals(times[times > 0], "day")
    assert found.period_s == 86_400
    at_hour = np.interp(
        np.arange(24) + 0.5,
        24 * (np.arange(len(found.weights)) + 0.5) / len(found.weights),
        found.weights,
    )
    assert at_hour[[3, 12, 21]] == pytest.approx(np.array([0.1, 1, 0.5]) * 24 / 13.8, rel=0.15)
    assert found.rate_per_s == pytest.approx(0.1, rel=0.03)


def test_bursts_on_a_curve_are_told_from_the_curve(bursts: np.ndarray) -> None:
    # Time runs half as fast, then one and a half times as fast: the bursts come along.
    span = bursts[0, -1]
    stretched = np.interp(bursts[0], [0, span / 4, span], [0, span / 2, span])
    found = fit_arrivals(stretched, "bursty-day")
    assert found.burst_weights[0] < 0.2
    assert found.burst_sojourn_s == pytest.approx((20, 5), rel=0.5)


def test_the_simplest_of_the_good_fits_comes_first(bursts: np.ndarray) -> None:
    found = compare_fits(bursts[0], ("poisson", "bursts"))
    first, second = found.fits
    assert (first.kind, first.constants, second.kind) == ("bursts", 4, "poisson")
    assert first.error < 0.2 < second.error
    assert all(first.low.shape <= first.mean.shape) and all(first.mean.shape <= first.high.shape)
    assert found.trace.shape == pytest.approx(burstiness(bursts[0]).shape)
    times = sample_times(Poisson(8.0), 30_000)[0]
    assert compare_fits(times, ("bursts", "poisson")).fits[0].kind == "poisson"
    record = found.record()["fits"][0]["arrivals"]
    assert (record["kind"], record["weights"]) == ("mmpp", first.arrivals.weights)


def test_coarse_time_stamps_are_spread() -> None:
    times = np.sort(np.random.default_rng(0).uniform(0, 600, 3000))
    coarse = np.floor(times / 3) * 3
    assert time_step(times) == 0
    assert time_step(coarse) == 3
    assert burstiness(coarse).gap_cv > 3
    again = burstiness(spread(coarse))
    assert again.gap_cv == pytest.approx(1, rel=0.05)
    assert again.dispersion[1.0] == pytest.approx(1, abs=0.2)
    assert np.array_equal(np.floor(spread(coarse) / 3) * 3, coarse - coarse[0])
    assert fit_arrivals(coarse, "gamma").cv == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("file", "kind", "error"),
    [
        ("code", "bursts", 0.12),
        pytest.param("code", "gamma", 1.0, marks=pytest.mark.slow),
        ("conv", "day", 0.12),
    ],
)
def test_published_traces(shared_data, file: str, kind: str, error: float) -> None:
    """A Gamma process has rate and CV of the code trace, and five times its dispersion at 1 s."""
    trace = read_trace(shared_data / "traces" / f"AzureLLMInferenceTrace_{file}.csv")
    found = compare_fits(trace, (kind,))
    (fit,) = found.fits
    assert fit.mean.rate_per_s == pytest.approx(found.trace.rate_per_s, rel=0.15)
    assert fit.mean.gap_cv == pytest.approx(found.trace.gap_cv, rel=0.1)
    if kind == "gamma":
        assert fit.mean.dispersion[1.0] > 4 * found.trace.dispersion[1.0]
    else:
        assert fit.error < error


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.arange(49.0), "at least 50 requests, got 49; replay the trace"),
        (np.zeros(60), "at one instant"),
        (np.arange(60.0)[::-1], "sort the requests"),
        ([*range(60), np.nan], "finite and in order"),
    ],
)
def test_bad_times(kind: str, times: object, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        fit_arrivals(times, kind)


def test_unknown_kinds() -> None:
    with pytest.raises(
        LLMGymError, match=r"Unknown kind of arrivals 'burst'. Did you mean 'bursts'"
    ):
        fit_arrivals(Replay(np.arange(60.0), [1] * 60, [1] * 60), "burst")
    with pytest.raises(LLMGymError, match="Known: bursts, bursty-day, day, gamma, poisson"):
        compare_fits(np.arange(60.0), ("weibull",))
