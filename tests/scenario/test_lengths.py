"""Token lengths: laws, means, bounds and bad arguments."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from llmgym.core.errors import LLMGymError
from llmgym.scenario.lengths import (
    LENGTHS,
    MAX_TOKENS,
    Empirical,
    Fixed,
    Geometric,
    Length,
    LogNormal,
    Poisson,
    Uniform,
)
from llmgym.scenario.stage import IndependentLengths, Paired, Stage

SAMPLE = 400_000

LAWS: list[Length] = [
    Fixed(0),
    Fixed(129),
    Geometric(1.0),
    Geometric(1.5),
    Geometric(112.0),
    Geometric(5000.0),
    Uniform(0, 5),
    Uniform(1, 1),
    Uniform(100, 1500),
    Poisson(0.1),
    Poisson(32.0),
    Poisson(512.0),
    LogNormal(1.0, 0.5),
    LogNormal(3.0, 2.0),
    LogNormal(129.0, 0.7),
    LogNormal(1000.0, 3.0),
    Empirical([5, 5]),
    Empirical([0, 1]),
    Empirical([1, 2, 3, 50, 1000]),
    Empirical([0.0, 0.2, 0.9, 7.7, 8.1]),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_draws_have_the_mean_and_stay_in_bounds(law: Length) -> None:
    draws = law.draw(SAMPLE, seed=3)
    assert draws.dtype == np.int32
    assert draws.min() >= 0
    assert draws.max() <= min(law.maximum, MAX_TOKENS)
    error = draws.std() / np.sqrt(SAMPLE)
    assert abs(draws.mean() - law.mean) <= 5 * error + 1e-9


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_draws_depend_on_the_seed_alone(law: Length) -> None:
    np.testing.assert_array_equal(law.draw(100, seed=1), law.draw(100, seed=1))
    assert LENGTHS[law.kind] is type(law)


def chi_square(draws: np.ndarray, probabilities: np.ndarray, low: int) -> float:
    """p-value of the draws against ``probabilities`` of low, low + 1, ..., the rest in a last cell."""
    cells = np.bincount(draws - low, minlength=probabilities.size)
    assert draws.min() >= low
    counts = np.append(cells[: probabilities.size], cells[probabilities.size :].sum())
    expected = np.append(probabilities, 1 - probabilities.sum()) * draws.size
    merged = expected > 10  # cells too small for the test count as one
    counts = np.append(counts[merged], counts[~merged].sum())
    expected = np.append(expected[merged], expected[~merged].sum())
    keep = expected > 1e-6
    assert counts[~keep].sum() == 0
    return float(stats.chisquare(counts[keep], expected[keep]).pvalue)


def poisson_at_least_one(mean: float) -> np.ndarray:
    """Probabilities of 1, 2, ...: a draw of 0 counts as 1."""
    pmf = stats.poisson(mean).pmf(np.arange(int(mean + 12 * np.sqrt(mean) + 20)))
    pmf[1] += pmf[0]
    return pmf[1:]


@pytest.mark.parametrize(
    ("law", "pmf", "low"),
    [
        (Geometric(3.0), stats.geom(1 / 3).pmf(np.arange(1, 60)), 1),
        (Geometric(112.0), stats.geom(1 / 112).pmf(np.arange(1, 1500)), 1),
        (Uniform(0, 5), np.full(6, 1 / 6), 0),
        (Uniform(7, 106), np.full(100, 1 / 100), 7),
        (Poisson(0.1), poisson_at_least_one(0.1), 1),
        (Poisson(32.0), poisson_at_least_one(32.0), 1),
        (Poisson(512.0), poisson_at_least_one(512.0), 1),
        (Empirical([0, 1, 3]), np.array([1 / 4, 1 / 4 + 1 / 8, 1 / 4, 1 / 8]), 0),
    ],
    ids=lambda value: str(value) if isinstance(value, Length) else "",
)
def test_frequencies_are_those_of_the_law(law: Length, pmf: np.ndarray, low: int) -> None:
    assert chi_square(law.draw(SAMPLE, seed=11), pmf, low) > 1e-4


def test_a_wrong_law_is_noticed() -> None:
    pmf = stats.geom(1 / 3).pmf(np.arange(1, 60))
    assert chi_square(Geometric(3.03).draw(SAMPLE, seed=11), pmf, 1) < 1e-4


@pytest.mark.parametrize("cv", [0.2, 1.0, 3.0])
def test_lognormal_has_its_variation_before_rounding(cv: float) -> None:
    draws = LogNormal(2000.0, cv).draw(SAMPLE, seed=5)
    sigma = np.sqrt(np.log1p(cv**2))
    law = stats.lognorm(s=sigma, scale=2000 / np.sqrt(1 + cv**2))
    for level in np.rint(law.ppf([0.01, 0.1, 0.5, 0.9, 0.99, 0.999])):
        share, expected = (draws <= level).mean(), law.cdf(level + 0.5)
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / SAMPLE)


@pytest.mark.parametrize("cv", [0.05, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("mean", [1.0, 2.5, 129.0, 4000.0])
def test_lognormal_mean_is_the_sum_over_all_lengths(mean: float, cv: float) -> None:
    sigma = np.sqrt(np.log1p(cv**2))
    law = stats.lognorm(s=sigma, scale=mean / np.sqrt(1 + cv**2))
    n = np.arange(1, MAX_TOKENS + 1)
    edges = law.cdf(np.append(n[:-1] + 0.5, np.inf))  # all that is longer is cut to MAX_TOKENS
    expected = float(n @ np.diff(edges, prepend=0.0))
    assert LogNormal(mean, cv).mean == pytest.approx(expected, rel=2e-4)


def test_empirical_mean_is_the_integral_over_all_levels() -> None:
    quantiles = [0.0, 0.2, 0.9, 7.7, 8.1, 3000.0]
    levels = (np.arange(2_000_000) + 0.5) / 2_000_000
    values = np.interp(levels * 5, np.arange(6), quantiles)
    assert Empirical(quantiles).mean == pytest.approx(np.rint(values).mean(), rel=1e-3)


def test_empirical_summarises_samples() -> None:
    samples = np.random.default_rng(0).lognormal(5, 1, 20_000).round()
    law = Empirical.from_samples(samples)
    assert law.maximum == samples.max()
    assert law.mean == pytest.approx(samples.mean(), rel=0.05)
    draws = law.draw(SAMPLE)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(draws, q) == pytest.approx(np.quantile(samples, q), rel=0.05)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_extreme_uniform_numbers_give_lengths_in_bounds(law: Length) -> None:
    u = jnp.array([2.0**-24, 0.5, 1 - 2.0**-24], jnp.float32)
    draws = np.asarray(law.sampler().sample(u))
    assert (np.diff(draws) * np.sign(draws[2] - draws[0]) >= 0).all()  # monotone, up or down
    assert draws.min() >= 0
    # Six standard deviations of a lognormal are the most that a float32 reaches.
    assert draws.max() <= min(law.maximum, law.mean * 1e4 + 1)


def test_paired_lengths_are_drawn_together() -> None:
    pairs = Paired([1, 2, 3, 0], [30, 20, 10, 5])
    words = np.random.default_rng(0).integers(0, 2**32, (2, SAMPLE), dtype=np.uint32)
    index = jnp.zeros(SAMPLE, jnp.int32)
    prefill, decode = Stage(paired=pairs).sampler()(index, jnp.asarray(words))
    rows = {(1, 30): 0, (2, 20): 1, (3, 10): 2, (0, 5): 3}
    drawn = list(zip(np.asarray(prefill).tolist(), np.asarray(decode).tolist(), strict=True))
    assert set(drawn) == set(rows)
    counts = np.bincount([rows[pair] for pair in drawn])
    assert stats.chisquare(counts).pvalue > 1e-4
    assert Stage(paired=pairs).mean_prefill == 1.5
    assert Stage(paired=pairs).longest_prompt == 3


def test_independent_lengths_are_not_correlated_and_never_both_zero() -> None:
    sampler = Stage(Uniform(0, 3), Uniform(0, 3)).sampler()
    assert isinstance(sampler, IndependentLengths)
    words = np.random.default_rng(0).integers(0, 2**32, (2, SAMPLE), dtype=np.uint32)
    prefill, decode = map(np.asarray, sampler(jnp.zeros(SAMPLE, jnp.int32), jnp.asarray(words)))
    assert (prefill + decode > 0).all()
    frequencies = np.bincount(4 * prefill + decode, minlength=16) / SAMPLE
    expected = np.full(16, 1 / 16)
    expected[0], expected[4] = 0, 2 / 16  # a draw of nothing becomes one prompt token
    np.testing.assert_allclose(frequencies, expected, atol=5 * np.sqrt(0.1 / SAMPLE))


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fixed(-1), "tokens must be at least 0"),
        (lambda: Fixed(2.5), "whole number"),
        (lambda: Fixed(NAN), "finite"),
        (lambda: Fixed(2**21), "at most"),
        (lambda: Fixed("ten"), "must be a number"),
        (lambda: Geometric(0.5), "mean_tokens must be at least 1"),
        (lambda: Geometric(NAN), "finite"),
        (lambda: Geometric(1e9), "at most"),
        (lambda: Uniform(5, 3), "low <= high"),
        (lambda: Uniform(-1, 3), "low must be at least 0"),
        (lambda: Uniform(1, 2.5), "whole number"),
        (lambda: Uniform(np.int64(5), np.int64(3)), "low <= high"),
        (lambda: LogNormal(0.0, 1.0), "mean_tokens must be at least 1"),
        (lambda: LogNormal(10.0, 0.0), "cv must be greater than 0"),
        (lambda: LogNormal(10.0, -1.0), "cv must be greater than 0"),
        (lambda: LogNormal(10.0, NAN), "cv must be finite"),
        (lambda: Poisson(0.0), "mean_tokens must be greater than 0"),
        (lambda: Poisson(-3.0), "mean_tokens must be greater than 0"),
        (lambda: Poisson(1e6), "mean_tokens must be at most"),
        (lambda: Empirical([]), "at least two quantiles"),
        (lambda: Empirical([4]), "at least two quantiles"),
        (lambda: Empirical([4, 3]), "must not decrease"),
        (lambda: Empirical([1, NAN]), r"quantiles\[1\] must be finite"),
        (lambda: Empirical([-1, 3]), r"quantiles\[0\] must be at least 0"),
        (lambda: Empirical(["a", "b"]), "quantiles"),
        (lambda: Empirical(5), "quantiles"),
        (lambda: Empirical([[1, 2], [3, 4]]), "quantiles"),
        (lambda: Empirical.from_samples([]), "sample"),
        (lambda: Stage(Empirical([0, 0]), Fixed(0)), "nothing to serve"),
    ],
)
def test_bad_lengths_are_refused(make: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        make()
