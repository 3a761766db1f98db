"""Comparing algorithms over several runs and tasks: arXiv:2108.13264 (Agarwal et al., 2021).

Scores stand in arrays (runs, tasks), a run being a training seed or a replication; more is better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmgym.core.checks import MOST_REQUESTS, check_callable, check_numbers, check_seed
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.user_code import ask

Statistic = Callable[[np.ndarray], float | np.ndarray]


def iqm(scores: np.ndarray) -> float:
    """Interquartile mean: the mean of the middle half of all scores, over runs and tasks.

    Where their number is not a multiple of 4, the two at the edges count in part.
    """
    ordered = np.sort(_scores("scores", scores), axis=None)
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
    scores = _scores("scores", scores, axes=2)
    runs, tasks = scores.shape
    resamples = check_number(
        "resamples", resamples, low=1, high=MOST_REQUESTS / scores.size, integer=True
    )
    confidence = check_number("confidence", confidence, above=0, high=1)
    if check_callable("statistic", statistic) is None:
        raise LLMGymError("statistic must be a function of the scores, got None.")
    seed = check_seed(seed, 2**63 - 1)
    random = np.random.default_rng(seed)
    picks = random.integers(runs, size=(resamples, runs, tasks))
    drawn = (np.take_along_axis(scores, pick, axis=0) for pick in picks)
    found = [ask("The statistic", statistic, sample) for sample in drawn]
    tail = (1 - confidence) / 2
    low, high = np.quantile(_scores("what the statistic gives", found), [tail, 1 - tail], axis=0)
    return low, high


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the scores, over runs and tasks, that lie above each threshold."""
    flat = _scores("scores", scores).reshape(-1, 1)
    return np.asarray((flat > check_numbers("thresholds", thresholds)).mean(axis=0))


def probability_of_improvement(scores: np.ndarray, others: np.ndarray) -> float:
    """How often a run beats one of the other algorithm, ties counted half; mean over the tasks."""
    scores, others = _scores("scores", scores, axes=2), _scores("others", others, axes=2)
    if scores.shape[1] != others.shape[1]:
        raise LLMGymError(
            f"Both need the same tasks: scores has {scores.shape[1]} of them, others {others.shape[1]}."
        )
    x, y = scores[:, None], others[None]
    better = np.where(x == y, 0.5, x > y)
    return float(np.where(np.isnan(x) | np.isnan(y), np.nan, better).mean(axis=(0, 1)).mean())


def _scores(name: str, values: Any, axes: int | None = None) -> np.ndarray:
    """One score or more; NaN stays NaN. Raises LLMGymError for anything else."""
    found = check_numbers(name, values, axes)
    if found.size == 0:
        raise LLMGymError(f"{name} must hold one number or more, and is empty.")
    return found
