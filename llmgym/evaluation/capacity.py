"""The load that a policy can carry, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from llmgym.core.checks import check_callable, check_name, check_seed
from llmgym.core.errors import LLMGymError, answers_other_names, check_number
from llmgym.core.precision import in_32_bits
from llmgym.engine import simulator
from llmgym.evaluation import policies
from llmgym.evaluation import rollout as rollouts
from llmgym.evaluation.limits import check_envs, check_work
from llmgym.evaluation.stability import MOST_SLOTS, hot_backlog, trend
from llmgym.evaluation.statistics import mean_interval
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import capacity, mean_work
from llmgym.theory.queueing_networks import is_cyclic

OVERLOAD = 1.4
"""Load that is offered to saturate a policy."""

SLIGHT = 0.05
"""Share by which a network is overloaded: little, so that its engines do not starve one another."""

MOST_REQUESTS = 10_000_000
"""Most arrivals per replication that are measured."""

WARM_SHARE = 0.4
"""Share of a saturated run that is left out as warm-up."""


@dataclass(frozen=True)
class CapacityEstimate:
    """Measured capacity: requests per second with an interval, and how it was measured."""

    requests_per_s: float
    low: float
    high: float
    method: str
    replications: int


@in_32_bits
@answers_other_names
def estimate_capacity(
    scenario: Scenario | str,
    policy: policies.PolicyLike,
    method: str | None = None,
    replications: int | None = None,
    requests: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
    confidence: float = 0.95,
) -> CapacityEstimate:
    """The largest arrival rate that the policy carries, scaling the scenario's own arrivals.

    ``"saturation"``: offer 1.4 times the LP capacity on top of a full table, and divide the tokens
    served by the mean tokens of a request; in a table that stays full this is the rate of departures,
    with less noise. Valid where more waiting requests never slow a policy down; such a policy says so
    (``saturates``).
    ``"overload"``: the same for a network whose routing has no cycle: offer a little too much to an
    empty network, and look at the engines whose queues grow. The tokens that such an engine serves,
    divided by what a mean job brings it, are its rate; the smallest counts.
    ``"bisection"``: for all others, find the rate at which an engine that starts from a backlog serves
    exactly what arrives, with common random numbers. Service is averaged over the second half of each
    run, so a policy that slows down with more waiting requests is measured at its slowest.
    Every interval is widened by one full batch, the grain of the count.

    Args:
        scenario: an endless one, or its name.
        policy: as in ``llmgym.simulate``.
        method: one of the three; None: by the policy and the scenario.
        replications: 8 for saturation, 4 for overload, 16 for bisection by default.
        requests: arrivals (of a network: jobs) per replication that are measured; 6,000, 2,000, and
            300 by default.
        seed: of the arrivals.
        progress: called with the fraction that is done.
        confidence: of the interval.

    Raises LLMGymError on bad arguments, and for a replay.
    """
    scenario = as_scenario(scenario)
    if scenario.demand.end_s is not None:
        raise LLMGymError("Capacity is about an endless stream of arrivals; a replay is finite.")
    chosen = policies.resolve(policy)
    if method is None:
        method = _usual(scenario, chosen)
    check_name("method", method, METHODS)
    measure, usual_replications, usual_requests = METHODS[method]
    replications = usual_replications if replications is None else replications
    requests = usual_requests if requests is None else requests
    replications, seed = check_envs("replications", replications, low=2), check_seed(seed)
    requests = check_number("requests", requests, low=10, high=MOST_REQUESTS, integer=True)
    confidence = check_number("confidence", confidence, above=0, high=0.99999)
    check_callable("progress", progress)
    check_work(scenario, replications)
    per_replication = measure(
        scenario, chosen, replications, requests, seed, progress or (lambda fraction: None)
    )
    mean, low, high = mean_interval(per_replication, confidence)
    grain = mean * scenario.engine.token_budget / (requests * mean_work(scenario))
    return CapacityEstimate(mean, max(low - grain, 0.0), high + grain, method, replications)


def _usual(scenario: Scenario, policy: policies.Policy) -> str:
    if not getattr(policy, "saturates", False):
        return "bisection"
    if not scenario.is_network:
        return "saturation"
    return "bisection" if is_cyclic(scenario) else "overload"


def _saturated(
    scenario: Scenario,
    policy: policies.Policy,
    replications: int,
    requests: int,
    seed: int,
    progress: Callable[[float], None],
) -> np.ndarray:
    """Requests' worth of tokens served per second under overload, one value per replication."""
    # A full table must fill every batch: n decodes a step end n/m_d requests, whose successors bring
    # n*m_p/m_d prompt tokens. Four times as many, as requests of equal length move in waves.
    share = scenario.mean_decode / mean_work(scenario)
    slots = int(np.clip(4 * scenario.engine.token_budget * share, 128, MOST_SLOTS))
    limit = capacity(scenario).requests_per_s
    scenario = replace(scenario.at_rate(OVERLOAD * limit), slots=slots)
    physics, key = simulator.lower(scenario, burst=slots), rollouts.keys(seed, replications)
    horizon = round((requests / limit + slots / limit) / (1 - WARM_SHARE) * 1000 / scenario.tick_ms)

    def served(state: Any, tokens: np.ndarray) -> np.ndarray:
        if scenario.engine.kv_cache is not None:  # tokens may have been computed more than once
            return np.asarray(state.totals.completed, float)
        return np.asarray(tokens / mean_work(scenario))

    before, after = _levels(physics, policy, key, horizon, served, progress)
    seconds = (after[1] - before[1]) * scenario.tick_ms / 1000
    return np.asarray((after[0] - before[0]) / seconds)


def _levels(
    physics: Any,
    policy: policies.Policy,
    key: jax.Array,
    horizon: int,
    look: Callable[[Any, np.ndarray], Any],
    progress: Callable[[float], None],
) -> list[tuple[Any, np.ndarray]]:
    """What ``look`` sees after the warm-up and at the horizon, and the ticks at both.

    It is given the state and the tokens served so far, of a network those of each engine.
    """
    carry, found, tokens = rollouts.begin(physics, policy, key), [], np.zeros(())
    for stop in (round(WARM_SHARE * horizon), horizon):
        for after, steps in rollouts.rollout(physics, policy, carry, key, stop):
            carry, state = after, after.state
            tokens = tokens + np.sum(steps.prefill_tokens + steps.decode_tokens, axis=0)
            progress(float(state.clock.to_numpy().min()) / horizon)
        found.append((look(state, tokens), state.clock.to_numpy()))
    return found


def _overloaded(
    scenario: Scenario,
    policy: policies.Policy,
    replications: int,
    requests: int,
    seed: int,
    progress: Callable[[float], None],
) -> np.ndarray:
    """Jobs' worth of tokens per second of the slowest engine that cannot keep up, one per replication."""
    fills = sum(e.replicas * e.token_budget for e in scenario.engines)
    slots = int(np.clip(fills / 2 + 0.1 * requests, 128, MOST_SLOTS))
    limit, most = capacity(scenario).requests_per_s, 4
    for attempt in range(most):
        rate = (1 + SLIGHT) * limit
        offered = replace(scenario.at_rate(rate), slots=slots)
        found, dropped = _slowest(
            offered, policy, rollouts.keys(seed, replications), requests,
            lambda share, attempt=attempt: progress((attempt + share) / most),  # type: ignore[misc]
        )  # fmt: skip
        if dropped and slots < MOST_SLOTS:
            slots = min(2 * slots, MOST_SLOTS)
        elif found.mean() < (1 - SLIGHT) * limit:
            limit = float(found.mean())  # far below the plan, so the load offered was far too high
        else:
            break
    return found


def _slowest(
    scenario: Scenario,
    policy: policies.Policy,
    key: jax.Array,
    requests: int,
    progress: Callable[[float], None],
) -> tuple[np.ndarray, bool]:
    """Jobs' worth of tokens per second of the slowest engine whose queue grows; whether jobs were lost."""
    group = np.repeat(np.arange(len(scenario.engines)), [e.replicas for e in scenario.engines])
    loads = capacity(scenario).engines
    per_job = np.array([e.prefill_tokens + e.decode_tokens for e in loads])
    rate = scenario.arrival_rate_per_s
    horizon = round(requests / rate / (1 - WARM_SHARE) * 1000 / scenario.tick_ms)

    def look(state: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Tokens that each engine has served, those left at it, and whether jobs were dropped."""
        left = np.asarray(state.table.prefill + state.table.decode, np.int64).sum(axis=0)
        lost = bool(np.asarray(state.totals.dropped).any())
        return tokens, left[: len(group)], lost

    (before, start), (after, end) = _levels(
        simulator.lower(scenario), policy, key, horizon, look, progress
    )
    seconds = (end - start) * scenario.tick_ms / 1000
    gone, growth = (_by_group(after[n] - before[n], group) for n in (0, 1))
    used = per_job > 0
    grows = used & (growth.mean(axis=1) > SLIGHT / 4 * gone.mean(axis=1))
    counted = grows if grows.any() else used
    rates = gone[counted] / per_job[counted, None] / seconds
    return np.asarray(rates[rates.mean(axis=1).argmin()]), after[2]


def _by_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sums over the replicas of each engine (axis 0)."""
    return np.array([values[group == g].sum(axis=0) for g in range(group[-1] + 1)])


def _bisected(
    scenario: Scenario,
    policy: policies.Policy,
    replications: int,
    requests: int,
    seed: int,
    progress: Callable[[float], None],
    rounds: int = 8,
) -> np.ndarray:
    """The rate at which service equals arrivals, one value per replication."""
    hot = hot_backlog(scenario)
    limit, tokens = capacity(scenario).requests_per_s, mean_work(scenario)
    room = 2 * hot * len(scenario.job_types) if scenario.is_network else 4 * hot
    scenario = replace(scenario, slots=max(scenario.slots, min(room, MOST_SLOTS)))
    low, high, rate = 0.0, limit, 0.75 * limit
    rates: list[float] = []
    served: list[np.ndarray] = []
    for n in range(rounds):
        # The first half, left out, is long enough to process the prompts of the whole backlog twice;
        # the second holds twice the requests asked for.
        horizon_s = 4 * hot * len(scenario.job_types) / limit + 2 * requests / rate
        run = trend(scenario.at_rate(rate), policy, horizon_s, replications, seed, burst=hot)
        rates.append(rate)
        served.append(run.served * 1000 / tokens)
        mean = float(served[-1].mean())
        low, high = (rate, high) if mean >= rate else (low, rate)
        progress((n + 1) / rounds)
        if high - low < 0.002 * limit or abs(mean - rate) < 0.0005 * rate:
            break
        # Where service does not depend on the arrivals its rate is the answer; else halve.
        rate = mean if low < mean < high else (low + high) / 2
        if n >= rounds // 2:
            rate = (low + high) / 2
    return _crossings(np.array(rates), np.array(served))


def _crossings(rates: np.ndarray, served: np.ndarray) -> np.ndarray:
    """Where each replication's service meets the arrivals: a line through its two nearest rates."""
    gap = np.abs(served.mean(axis=1) - rates)
    first, *others = np.argsort(gap)[:2]
    if not others or gap[first] < 0.0005 * rates[first]:
        return served[first]
    second = others[0]
    excess_1, excess_2 = rates[first] - served[first], rates[second] - served[second]
    share = np.clip(excess_1 / np.where(excess_1 == excess_2, np.inf, excess_1 - excess_2), -1, 1)
    return np.asarray(rates[first] + share * (rates[second] - rates[first]))


METHODS = {
    "saturation": (_saturated, 8, 6000),
    "overload": (_overloaded, 4, 2000),
    "bisection": (_bisected, 16, 300),
}
