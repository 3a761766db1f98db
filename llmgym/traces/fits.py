"""Scenarios fitted to a trace: its arrivals as a process, its lengths as quantile tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from llmgym.core.checks import check_kind, check_numbers, check_text
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.arrivals import MMPP, Arrivals, GammaRenewal, RateCurve, relative_rates
from llmgym.scenario.lengths import Empirical
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import TARGETS
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType
from llmgym.theory.capacity import capacity

POINTS = 129
"""Points of a quantile table."""


def fit_quantiles(tokens: Sequence[int] | np.ndarray, points: int = POINTS) -> Empirical:
    """The quantile table nearest to the sorted sample (least squares, not decreasing).

    It keeps the sample's mean. A table of plain quantiles does not: its last piece, straight up to
    the maximum, lifts the mean output of the Azure code trace from 27.9 to 32.4 tokens at 129 points.

    Raises LLMGymError where there are fewer lengths than points.
    """
    points = check_number("points", points, low=2, high=4097, integer=True)
    sample = np.sort(check_numbers("tokens", tokens, axes=1))
    if sample.size < points:
        raise LLMGymError(
            f"A table of {points} quantiles needs as many requests, got {sample.size}; use fewer points."
        )
    position = (np.arange(sample.size) + 0.5) / sample.size * (points - 1)
    hats = np.maximum(1 - np.abs(position[:, None] - np.arange(points)), 0)
    # Unknowns are the first value above the minimum and the rises from there: none is negative. The
    # Cholesky factor of the normal equations is as small as the table, whatever the sample.
    rises_of = hats @ np.tril(np.ones((points, points)))
    factor = np.linalg.cholesky(rises_of.T @ rises_of)
    rises, _ = nnls(factor.T, np.linalg.solve(factor, rises_of.T @ (sample - sample[0])))
    return Empirical((sample[0] + np.cumsum(rises)).round(1).tolist())


def fit_scenario(
    trace: Replay,
    arrivals: Arrivals,
    engine: Scenario,
    name: str,
    what: str = "Summary of a trace",
    source: str = "",
    points: int = POINTS,
) -> Scenario:
    """The scenario of an engine with the arrivals and the lengths of a trace.

    Args:
        trace: gives the lengths, and targets where it has them.
        arrivals: fitted to the trace (``llmgym.traces.arrival_fits``).
        engine: the scenario whose engine, slots and clock are taken.
        name: of the new scenario.
        what: how the description begins.
        source: where lengths, arrivals and engine are from.
        points: of the tables of quantiles.

    Raises LLMGymError for a network, or where the trace is too short.
    """
    for label, given, kind in (
        ("trace", trace, Replay),
        ("arrivals", arrivals, Arrivals),
        ("engine", engine, Scenario),
    ):
        check_kind(label, given, kind)
    what = check_text("what", what)
    if engine.is_network:
        raise LLMGymError(
            f"Scenario {engine.name!r} is a network; a trace is served by one engine."
        )
    prefill, decode = (
        fit_quantiles(t, points) for t in (trace.prefill_tokens, trace.decode_tokens)
    )
    targets = {name: getattr(trace, name) for name in TARGETS}
    job = JobType(arrivals, (Stage(prefill, decode, engine=engine.engine.name),), **targets)
    fitted = replace(engine, workload=(job,), name=name, source=source)
    return replace(fitted, description=_description(trace, fitted, what))


def _description(trace: Replay, fitted: Scenario, what: str) -> str:
    rank = ""
    if min(map(np.ptp, (trace.prefill_tokens, trace.decode_tokens))) > 0:  # else there is none
        found = spearmanr(trace.prefill_tokens, trace.decode_tokens).statistic
        rank = f" (rank correlation in the trace: {found:.2f})"
    span = trace.arrival_s[-1] - trace.arrival_s[0]
    limit = capacity(fitted)
    asked = fitted.arrival_rate_per_s * (fitted.mean_prefill + fitted.mean_decode)
    load = limit.load_factor
    serves = limit.tokens_per_ms * 1000
    return (
        f"{what}: {len(trace)} requests in {span:.0f} s. Prompts and outputs come from quantile tables "
        "that keep the means of the trace and shorten its few longest requests; they are drawn "
        f"independently{rank}. "
        f"{describe(fitted.job_types[0].arrivals)}{_pace(trace, fitted)} Replay the trace for its true "
        "pattern. It asks for "
        f"{asked:.0f} tokens/s, this engine serves at most {serves:.0f}: "
        + (f"a load of {load:.2f}." if load < 1 else "choose a load below 1.")
    )


def describe(arrivals: Arrivals) -> str:
    """A fitted arrival process in a sentence or two."""
    check_kind("arrivals", arrivals, Arrivals)
    rate = arrivals.rate_per_s
    if isinstance(arrivals, MMPP):
        lull, burst = rate * relative_rates(arrivals.weights, arrivals.sojourn_s)
        return (
            f"Arrivals come in bursts of {arrivals.sojourn_s[1]:.3g} s on average at {burst:.3g} "
            f"requests/s and lulls of {arrivals.sojourn_s[0]:.3g} s at {lull:.2g}: a Markov-modulated "
            "Poisson process with the trace's CV of gaps and nearly its dispersion of counts."
        )
    if isinstance(arrivals, GammaRenewal):
        return "Arrivals are a Gamma renewal process with the trace's CV of gaps."
    if isinstance(arrivals, RateCurve):
        width = arrivals.period_s / len(arrivals.weights)
        bursts = "" if arrivals.burst_weights is None else " Bursts and lulls come on top."
        return (
            f"Arrivals are Poisson along the trace's rate curve, {len(arrivals.weights)} bins of "
            f"{width:.4g} s that repeat.{bursts}"
        )
    return "Arrivals are Poisson."


def _pace(trace: Replay, fitted: Scenario) -> str:
    """What to say where arrivals do not have the rate of the trace."""
    factor = fitted.arrival_rate_per_s / trace.rate_per_s
    if abs(factor - 1) < 0.02:
        return ""
    change = "slowed down" if factor < 1 else "sped up"
    return f" They are {change} to {fitted.arrival_rate_per_s:.3g} requests/s."
