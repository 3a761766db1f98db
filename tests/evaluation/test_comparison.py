"""Statistics over runs and tasks, against SciPy and by hand."""

import numpy as np
import pytest
from scipy import stats

from llmgym import LLMGymError
from llmgym.evaluation import comparison
from llmgym.evaluation.statistics import latency_summary, mean_interval


def test_interquartile_mean() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 8))
    assert comparison.iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    # Of six scores the middle three count: the second and fifth by half.
    assert comparison.iqm(np.array([[-100.0, 1, 2, 3, 4, 900]])) == pytest.approx(
        (0.5 * 1 + 2 + 3 + 0.5 * 4) / 3
    )


def test_bootstrap_draws_runs_within_a_task() -> None:
    """Tasks with one level each have no spread, however far apart they are."""
    constant = np.tile([0.0, 10.0, 1000.0], (6, 1))
    low, high = comparison.stratified_bootstrap(constant, resamples=100)
    assert low == high == comparison.iqm(constant)


def test_bootstrap_interval_covers_the_mean() -> None:
    random = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        scores = random.normal(size=(20, 3))
        low, high = comparison.stratified_bootstrap(scores, np.mean, resamples=200, seed=seed)
        inside += low <= 0 <= high
    assert 176 <= inside <= 198  # 95 % of 200, less the bias of percentiles


def test_bootstrap_of_several_numbers() -> None:
    scores = np.random.default_rng(2).normal(size=(6, 3))
    low, high = comparison.stratified_bootstrap(scores, lambda x: x.mean(axis=0), resamples=100)
    assert low.shape == high.shape == (3,)
    assert np.all(low < scores.mean(axis=0)) and np.all(scores.mean(axis=0) < high)
    with pytest.raises(LLMGymError, match="seed must be at most"):
        comparison.stratified_bootstrap(scores, seed=2**63)


def test_performance_profile() -> None:
    scores = np.array([[0.1, 0.2], [0.3, -0.1]])
    found = comparison.performance_profile(scores, np.array([-1.0, 0.0, 0.2, 1.0]))
    assert found.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_probability_of_improvement() -> None:
    better = comparison.probability_of_improvement
    mine, theirs = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0]])
    assert better(mine, theirs) == pytest.approx((0.5 + 0.5) / 2)
    assert better(mine, theirs) + better(theirs, mine) == pytest.approx(1.0)
    assert better(mine, mine - 10) == 1.0


def test_both_algorithms_need_the_same_tasks() -> None:
    with pytest.raises(LLMGymError, match="scores has 2 of them, others 3"):
        comparison.probability_of_improvement(np.ones((5, 2)), np.ones((4, 3)))


@pytest.mark.parametrize("given", [{}, {"confidence": 0.9}])
def test_mean_interval_is_students(given: dict[str, float]) -> None:
    values = np.array([1.0, 2.0, 4.0])
    share = given.get("confidence", 0.95)
    low, high = stats.t.interval(share, 2, loc=values.mean(), scale=stats.sem(values))
    expected = pytest.approx((values.mean(), low, high))
    assert mean_interval(values, **given) == expected
    assert mean_interval(np.append(values, np.nan), **given) == expected
    assert mean_interval(np.array([7.0])) == pytest.approx((7, np.nan, np.nan), nan_ok=True)


def test_latencies_are_pooled_and_their_interval_is_over_environments() -> None:
    values, env = np.array([1.0, 2.0, 9.0]), np.array([0, 0, 2])
    found = latency_summary(values, env, 3)  # the second environment has none
    assert found["mean"] == 4.0 and found["p50"] == 2.0
    assert found["p90"] == pytest.approx(2 + 0.8 * 7) and found["p99"] == pytest.approx(
        2 + 0.98 * 7
    )
    assert (found["low"], found["high"]) == mean_interval(np.array([1.5, 9.0]))[1:]
    alone = latency_summary(values, np.zeros(3), 1)
    assert alone["mean"] == 4.0 and np.isnan(alone["low"])
    assert np.isnan(list(latency_summary(np.array([]), np.array([]), 3).values())).all()
    for wrong in ([0, 0, 3], [0, 0, -1], [0, 0]):
        with pytest.raises(LLMGymError, match="which of the 3 environments"):
            latency_summary(values, np.array(wrong), 3)
