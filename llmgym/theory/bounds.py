"""Bounds and closed forms: what can be said about throughput without solving or simulating.

Rates of requests are per second, rates of tokens per millisecond.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from llmgym.core.checks import check_kind, check_numbers
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.scenario.batch_time import Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import batch_ms


def rate_bound(
    served_tokens: float | np.ndarray, elapsed_ms: float | np.ndarray, engine: Engine
) -> float | np.ndarray:
    """Slack of the pathwise rate bound in tokens: never negative, whatever the policy.

    Served tokens by time t are at most (b*/t_{b*})*t, with b* <= b_max the batch size of the
    largest b/t_b. Theorem 2 of arXiv:2504.07347v3 states it for b* = b_max. A clock that counts whole
    ticks may fall short by half a tick a batch.

    Args:
        served_tokens: prefill and decode tokens served since time 0.
        elapsed_ms: t, a number or an array of the same shape.
        engine: gives the token budget and the batch times.

    Raises:
        LLMGymError: a value that is negative or not finite, or a batch time that is not positive and finite.
    """
    check_kind("engine", engine, Engine)
    served, elapsed = (
        check_numbers("served_tokens", served_tokens),
        check_numbers("elapsed_ms", elapsed_ms),
    )
    for name, value in (("served_tokens", served), ("elapsed_ms", elapsed)):
        if not np.isfinite(value).all() or (value < 0).any():
            raise LLMGymError(f"{name} must be finite and at least 0.")
    if served.ndim and elapsed.ndim and served.shape != elapsed.shape:
        raise LLMGymError(
            f"served_tokens and elapsed_ms must have the same shape, got {served.shape} and {elapsed.shape}."
        )
    sizes = np.arange(1, engine.token_budget + 1)
    slack = np.max(sizes / batch_ms(engine, sizes)) * elapsed - served
    return slack if np.ndim(slack) else float(slack)


def theorem2_capacity(scenario: Scenario) -> float:
    """lambda* = b_max/t_{b_max}/(m_p + m_d) of Theorem 2, requests per second.

    What every work-conserving K-FCFS policy reaches when nothing limits the number of requests.
    """
    scenario = as_scenario(scenario)
    return 1000.0 * _full_batch_rate(scenario.engine) / _mean_tokens(scenario)


def fluid_growth(scenario: Scenario, rate_per_s: float) -> float:
    """Growth of a work-conserving policy's backlog at ``rate_per_s``, in tokens per millisecond.

    The excess of lambda*(m_p + m_d) over b_max/t_{b_max}, or 0 (fluid limit of Theorem 2).

    Raises:
        LLMGymError: a cap on requests can bind, so that batches are not filled.
    """
    check_number("rate_per_s", rate_per_s, low=0)
    engine = as_scenario(scenario).engine
    if engine.max_num_seqs is not None and (
        engine.seq_limit == "resident" or engine.max_num_seqs <= engine.token_budget
    ):
        raise LLMGymError(
            f"max_num_seqs={engine.max_num_seqs} can keep batches from filling; the fluid growth "
            "of Theorem 2 needs max_num_seqs=None."
        )
    return max(0.0, rate_per_s * _mean_tokens(scenario) / 1000.0 - _full_batch_rate(engine))


def faster_transformer_capacity(prefill: int, decode: int, engine: Engine) -> float:
    """Capacity of FasterTransformer, whole prompts of fixed size, in requests per second.

    It runs in cycles of n = floor(b_max/v_p) prompts, at most k_max, prefilled in one batch and
    then decoded to the end: n/(t_{n*v_p} + v_d*t_n). 0 where a prompt is above the budget.

    Args:
        prefill: v_p, prompt tokens of every request.
        decode: v_d, output tokens of every request.
        engine: gives b_max, k_max (``max_num_seqs``) and the batch times.

    Raises:
        LLMGymError: no tokens at all, numbers that are not whole or negative, or bad batch times.
    """
    check_kind("engine", engine, Engine)
    prefill = check_number("prefill", prefill, low=0, integer=True)
    decode = check_number("decode", decode, low=0, integer=True)
    if prefill + decode == 0:
        raise LLMGymError("A request needs prefill or decode tokens; both are 0.")
    count = engine.token_budget // max(prefill, 1)
    if engine.max_num_seqs is not None:
        count = min(count, engine.max_num_seqs)
    if count == 0:
        return 0.0
    prompts_ms, decode_ms = batch_ms(engine, np.array([max(count * prefill, 1), count]))
    cycle_ms = (prompts_ms if prefill else 0.0) + decode * decode_ms
    return 1000.0 * count / float(cycle_ms)


def resident_cap_rate(cap: float, scenario: Scenario) -> float:
    """Capacity under a cap A on resident requests, staircase batch times, in requests per second.

    n = A/(m_d + 1) requests pass an iteration, in u = (m_p + m_d)*n/b_0 tiles:
    n/(c + a*max(1, u)) while u <= b_max/b_0, above it the rate of full batches. It bounds the LP of
    :func:`llmgym.theory.capacity` with ``seq_limit="resident"`` from above and equals it for
    A <= b_0; more seats than a tile holds can force dearer batches. The scenario's own cap is
    ignored.
    """
    time, per_iteration, tiles = _under_cap(cap, scenario)
    capped = per_iteration / (time.c_ms + time.a_ms * max(1.0, tiles))
    return min(1000.0 * capped, theorem2_capacity(scenario))


class SarathiRate(NamedTuple):
    """A token budget of Sarathi-Serve and the rate it reaches."""

    token_budget: int
    requests_per_s: float


def best_sarathi_under_cap(cap: float, scenario: Scenario) -> SarathiRate:
    """Sarathi-Serve at its best budget under a cap A on resident requests, staircase batch times.

    The largest, over budgets B of whole tiles up to b_max, of min(rate of B, n/(c + a*ceil(u))),
    with n and u as in :func:`resident_cap_rate`, ceil(u) at most the tiles of B. An approximation:
    every iteration is taken to hold the mean load, and fluctuations move the true rate both ways.
    """
    time, per_iteration, tiles = _under_cap(cap, scenario)
    mean_tokens = _mean_tokens(scenario)

    def rate(budget: int) -> float:
        opened = min(math.ceil(tiles), budget // time.tile)
        iteration_ms = time.c_ms + time.a_ms * opened
        full = budget / mean_tokens / float(time.ms(budget))
        return 1000.0 * min(full, per_iteration / iteration_ms)

    budgets = range(time.tile, scenario.engine.token_budget + 1, time.tile)
    best = max(budgets, key=rate)
    return SarathiRate(best, rate(best))


def relaxation_time_s(load: float, capacity_per_s: float) -> float:
    """Relaxation time 1/(sqrt(lambda*) - sqrt(lambda))^2 at lambda = load*lambda*, in seconds.

    That of the M/M/1 queue: how long the system remembers its start. A run must last many times as long.
    """
    load = check_number("load", load, above=0)
    capacity_per_s = check_number("capacity_per_s", capacity_per_s, above=0)
    if load >= 1:
        raise LLMGymError(f"load must be below 1, got {load:g}: a critical queue never relaxes.")
    pace = capacity_per_s * (1.0 - math.sqrt(load)) ** 2
    return 1.0 / pace if pace > 0 else math.inf  # so slow that it is 0 in floating point


def pollaczek_khinchine(arrival_rate_per_s: float, service_ms: float) -> float:
    """Mean number in an M/D/1 system: rho + rho^2/(2*(1 - rho)), infinite from rho = 1 on."""
    arrival_rate_per_s = check_number("arrival_rate_per_s", arrival_rate_per_s, low=0)
    service_ms = check_number("service_ms", service_ms, above=0)
    rho = arrival_rate_per_s * service_ms / 1000.0
    return rho + rho**2 / (2.0 * (1.0 - rho)) if rho < 1 else float("inf")


def _mean_tokens(scenario: Scenario) -> float:
    scenario = as_scenario(scenario)
    if scenario.is_network:
        raise LLMGymError(
            f"This bound is for one engine; {scenario.name!r} is a network: use capacity(scenario)."
        )
    return scenario.mean_prefill + scenario.mean_decode


def _full_batch_rate(engine: Engine) -> float:
    budget = engine.token_budget
    return budget / float(batch_ms(engine, np.array([budget]))[0])


def _under_cap(cap: float, scenario: Scenario) -> tuple[Staircase, float, float]:
    """The staircase, requests per iteration n and tiles per iteration u under a resident cap."""
    cap, scenario = check_number("cap", cap, low=1), as_scenario(scenario)
    time, budget = scenario.engine.batch_time, scenario.engine.token_budget
    if not isinstance(time, Staircase):
        raise LLMGymError(f"The closed form needs a Staircase, got {shown(time)}; use capacity.")
    if budget % time.tile:
        raise LLMGymError(
            f"The closed form needs a token budget of whole tiles, got {budget} with tiles of "
            f"{time.tile}; use capacity."
        )
    per_iteration = cap / (scenario.mean_decode + 1.0)
    return time, per_iteration, _mean_tokens(scenario) * per_iteration / time.tile
