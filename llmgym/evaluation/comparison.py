"""Comparing algorithms over several runs and tasks: arXiv:2108.13264 (Agarwal et al., 2021).

Scores stand in arrays (runs, tasks), a run being a training seed or a replication; more is better.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Statistic = Callable[[np.ndarray], float | np.ndarray]


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean: the mean of the middle half of all scores, over runs and tasks.

    Where their number is not a multiple of 4, the two at the edges count in part.
    """
    ordered = np.sort(np.asarray(scores, float), axis=None)
    edges = np.linspace(0, 1, ordered.size + 1)
    inside = np.clip(edges, 0.25, 0.75)
    weights = np.diff(inside)
    return float(ordered @ weights / weights.sum())


def stratified_bootstrap(
    scores: np.ndarray,
    statistic: Statistic = iqm,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic: runs are drawn again within each task.

    Args:
        scores: (runs, tasks).
        statistic: array like ``scores`` -> a number, or an array.
        resamples: number of bootstrap samples.
        confidence: of the interval, in (0, 1).
        seed: of the draws.

    Returns:
        low and high, each of the shape that ``statistic`` returns.
    """
    scores = np.asarray(scores, float)
    runs, tasks = scores.shape
    random = np.random.default_rng(seed)
    picks = random.integers(runs, size=(resamples, runs, tasks))
    found = np.array([statistic(np.take_along_axis(scores, pick, axis=0)) for pick in picks])
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return low, high


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the scores, over runs and tasks, that lie above each threshold."""
    flat = np.asarray(scores, float).reshape(-1, 1)
    return np.asarray((flat > np.asarray(thresholds)).mean(axis=0))


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """How often a run beats one of the other algorithm, ties counted half; mean over the tasks."""
    x, y = np.asarray(scores, float)[:, None], np.asarray(others, float)[None]
    return float((np.where(x == y, 0.5, x > y)).mean(axis=(0, 1)).mean())
