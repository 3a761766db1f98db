"""How many slots a request table needs: so many that a stable policy drops nothing."""

from __future__ import annotations

import numpy as np

from llmgym.core.checks import check_kind
from llmgym.scenario.arrivals import MMPP, GammaRenewal, RateCurve
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import capacity

LEAST, MOST = 64, 4096
STEP = 64
"""Sizes are multiples of it, so that environments of about the same load share compiled programs."""

RARE = 1e-9
"""Probability with which the requests present exceed the table, by the estimate."""


LONGEST_BURST = 9
"""Of the mean length of a burst: about the longest of 8,000."""


def enough_slots(scenario: Scenario) -> int:
    """Slots for an engine at the scenario's load; those of the scenario itself where nothing can be said.

    The sum of two parts. By Little's law lambda * T requests are present if nobody waits, T the time of
    m_d + m_p / b_max + 1 full batches. And those that wait: in heavy traffic the work in a G/G/1 queue
    exceeds that of w requests with probability exp(-2 w (1 - rho) / (c_a^2 + c_s^2)) (Kingman 1962), c_a^2
    and c_s^2 the squared coefficients of variation of the gaps and of the work of a request; for arrivals
    with bursts also what a burst of nine times its mean length, one in 8,000, leaves behind.

    Said of one engine whose arrivals are drawn, at a load below 1. A network, a replay and an overloaded
    engine keep their own.
    """
    check_kind("scenario", scenario, Scenario)
    if scenario.is_network or scenario.demand.end_s is not None:
        return scenario.slots
    found = capacity(scenario)
    rho, rate_per_ms = found.load_factor, scenario.arrival_rate_per_s / 1000
    if rho >= 1:
        return scenario.slots
    budget = scenario.engine.token_budget
    full_ms = float(scenario.engine.batch_time.ms(budget))
    served_ms = full_ms * (scenario.mean_decode + scenario.mean_prefill / budget + 1)
    if scenario.engine.max_num_seqs is not None:  # then a batch is never as long
        served_ms = max(served_ms, scenario.engine.max_num_seqs / (found.requests_per_s / 1000))
    variation = _of_gaps(scenario) + _of_work(scenario)
    waiting = -np.log(RARE) * variation / (2 * (1 - rho))
    needed = rate_per_ms * served_ms + waiting + _of_bursts(scenario, found.requests_per_s)
    return int(np.clip(STEP * np.ceil(needed / STEP), LEAST, MOST))


def _of_gaps(scenario: Scenario) -> float:
    """The largest squared coefficient of variation of the gaps between arrivals; 1 of Poisson streams."""
    streams = [job.arrivals for job in scenario.job_types]
    return max([1.0, *(a.cv**2 for a in streams if isinstance(a, GammaRenewal))])


def _of_work(scenario: Scenario) -> float:
    """The squared coefficient of variation of the tokens of a request, over all classes."""
    rng = np.random.default_rng(0)
    rates = np.array([job.rate_per_s for job in scenario.job_types])
    samples = []
    for sampler in scenario.demand.length_samplers():
        words = rng.integers(0, 2**32, (2, 4096), dtype=np.uint32)
        prompt, output = sampler(np.arange(4096, dtype=np.int32), words)
        samples.append(np.asarray(prompt, float) + np.asarray(output, float))
    share = rates / rates.sum()
    mean = sum(p * s.mean() for p, s in zip(share, samples, strict=True))
    square = sum(p * (s**2).mean() for p, s in zip(share, samples, strict=True))
    return float(square / mean**2 - 1)


def _of_bursts(scenario: Scenario, limit_per_s: float) -> float:
    """Requests that a burst, or the busy part of a curve, brings beyond what can be served."""
    extra = 0.0
    for job in scenario.job_types:
        arrivals = job.arrivals
        others = scenario.arrival_rate_per_s - arrivals.rate_per_s
        if isinstance(arrivals, MMPP):
            share = np.array(arrivals.sojourn_s) / np.sum(arrivals.sojourn_s)
            rates = arrivals.rate_per_s * np.array(arrivals.weights) / (arrivals.weights @ share)
            over = np.maximum(rates + others - limit_per_s, 0) * np.array(arrivals.sojourn_s)
            extra += LONGEST_BURST * float(over.max())
        elif isinstance(arrivals, RateCurve):
            weights = np.array(arrivals.weights)
            rates = arrivals.rate_per_s * weights / weights.mean() + others
            seconds = arrivals.period_s / len(weights)
            extra += float(np.maximum(rates - limit_per_s, 0).sum() * seconds)
    return extra
