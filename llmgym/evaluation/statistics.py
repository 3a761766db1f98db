"""Means with intervals, and latency summaries."""

from __future__ import annotations

import numpy as np
from scipy import stats


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student-t interval (mean, low, high) of independent replications.

    NaN values are left out; the interval is NaN where fewer than two are left.
    """
    values = np.asarray(values, float)
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
