"""Means with intervals, and latency summaries."""

from __future__ import annotations

import numpy as np
from scipy import stats

from llmgym.core.checks import check_numbers
from llmgym.core.errors import LLMGymError, check_number


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student-t interval (mean, low, high) of independent replications.

    NaN values are left out; the interval is NaN where fewer than two are left.
    """
    confidence = check_number("confidence", confidence, above=0, high=1)
    values = check_numbers("values", values)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return float("nan"), float("nan"), float("nan")
    mean = float(values.mean())
    if values.size == 1:
        return mean, float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, values.size - 1) * stats.sem(values)
    return mean, mean - float(half), mean + float(half)


def latency_summary(values: np.ndarray, env: np.ndarray, num_envs: int) -> dict[str, float]:
    """Mean, median, p90 and p99 of pooled latencies, with the interval of the mean over environments.

    Args:
        values: latencies (requests,) in any unit.
        env: environment (requests,) of each, from 0.
        num_envs: environments in all; those without a value are left out of the interval.

    Returns:
        mean, p50, p90, p99, and low and high, the 95 % interval; all NaN where there are no values.
    """
    values, number = check_numbers("values", values, axes=1), check_numbers("env", env, axes=1)
    num_envs = check_number("num_envs", num_envs, low=1, high=2**24, integer=True)
    if values.size != number.size or not ((number >= 0) & (number < num_envs)).all():
        raise LLMGymError(
            f"env must say for each of the {values.size} values which of the {num_envs} environments "
            "it is from, counted from 0."
        )
    env = number.astype(np.int64)
    if values.size == 0:
        return dict.fromkeys(("mean", "p50", "p90", "p99", "low", "high"), float("nan"))
    counts = np.bincount(env, minlength=num_envs)
    sums = np.bincount(env, weights=values, minlength=num_envs)
    means = np.divide(sums, counts, out=np.full(num_envs, np.nan), where=counts > 0)
    _, low, high = mean_interval(means)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "mean": float(values.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "low": low,
        "high": high,
    }
