"""Is a policy stable at a load? Three verdicts, and the growth that they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from llmgym.core.checks import check_callable, check_seed
from llmgym.core.errors import LLMGymError, answers_other_names
from llmgym.core.precision import in_32_bits
from llmgym.engine import simulator
from llmgym.evaluation import policies
from llmgym.evaluation import rollout as rollouts
from llmgym.evaluation.limits import check_duration, check_envs, check_work
from llmgym.evaluation.statistics import mean_interval
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load, mean_work

TOLERANCE = 0.005
"""Growth below this fraction of the arriving tokens counts as none."""

MOST_DOUBLINGS = 3
MOST_SLOTS = 8192


@dataclass(frozen=True)
class Stability:
    """A verdict on stability.

    Attributes:
        verdict: ``"stable"``, ``"unstable"`` or ``"undecided"``.
        growth_tokens_per_ms: growth of unprocessed tokens over the second half of the horizon, from an
            empty start, mean over replications; ``low`` and ``high`` its 95 % interval.
        hot_growth_tokens_per_ms: arriving minus served tokens from a start with a backlog of
            ``hot_requests``; ``hot_low`` and ``hot_high`` its 95 % interval.
        horizon_s: simulated seconds; replications: how many; dropped: requests that found the table full.
        reason: in words.
    """

    verdict: str
    growth_tokens_per_ms: float
    low: float
    high: float
    hot_growth_tokens_per_ms: float
    hot_low: float
    hot_high: float
    hot_requests: int
    horizon_s: float
    replications: int
    dropped: int
    reason: str


@dataclass(frozen=True)
class Trend:
    """What a set of replications did over the second half of their windows, one value for each.

    The window of a replication ends at the horizon, at its first dropped request, or when a hot start
    has drained to a quarter of its backlog.
    """

    growth: np.ndarray  # slope of the unprocessed tokens, tokens/ms (least squares)
    served: np.ndarray  # tokens/ms
    dropped: int


@in_32_bits
def trend(
    scenario: Scenario,
    policy: policies.Policy,
    horizon_s: float,
    replications: int,
    seed: int = 0,
    burst: int = 0,
) -> Trend:
    """Growth and service of ``policy`` from an empty start, or from a backlog.

    Common random numbers: the same seed gives the same requests for every policy; at another load only
    their spacing differs.

    Args:
        scenario: at the arrival rate that is tried.
        policy: as ``policies.resolve`` returns it.
        horizon_s: simulated seconds.
        replications: environments.
        seed: of the arrivals.
        burst: requests of each job type that are there at time 0; 0: an empty start.
    """
    physics = simulator.lower(scenario, burst)
    key = rollouts.keys(seed, replications)
    horizon = round(horizon_s * 1000 / scenario.tick_ms)
    columns: dict[str, list[np.ndarray]] = {"time": [], "backlog": [], "dropped": [], "served": []}
    start = rollouts.begin(physics, policy, key)
    for _, steps in rollouts.rollout(physics, policy, start, key, horizon):
        columns["time"].append(steps.start.to_numpy())
        columns["backlog"].append(steps.backlog.to_numpy().astype(float))
        columns["dropped"].append(np.asarray(steps.dropped))
        served = np.asarray(steps.prefill_tokens + steps.decode_tokens)
        served = served if served.ndim == 2 else served.sum(axis=1)
        # Tokens done for good: those to compute again do not count, those found in the cache do.
        columns["served"].append(served - np.asarray(steps.lost - steps.found))
    time, backlog, dropped, served = (np.concatenate(c) for c in columns.values())
    # Up to the decision, as the other columns.
    served = np.cumsum(served, axis=0, dtype=float) - served
    rows = []
    for time_i, backlog_i, dropped_i, served_i in zip(
        time.T, backlog.T, dropped.T, served.T, strict=True
    ):
        end = _window_end(time_i, backlog_i, dropped_i, float(horizon), burst > 0)
        slope, at = slope_of_second_half(time_i, backlog_i, end)
        rate = (served_i[at[-1]] - served_i[at[0]]) / max(time_i[at[-1]] - time_i[at[0]], 1)
        rows.append((slope / scenario.tick_ms, rate / scenario.tick_ms))
    growth, rates = np.array(rows).T
    return Trend(growth, rates, int(dropped[-1].sum()))


def slope_of_second_half(
    time: np.ndarray, level: np.ndarray, end: float
) -> tuple[float, np.ndarray]:
    """Least-squares slope of a level over the second half of [0, end], on an even grid of 400 points.

    Args:
        time: (steps,) when each value of the level begins, in any unit, not decreasing.
        level: (steps,), constant from each time to the next.
        end: in the unit of ``time``.

    Returns:
        The slope, per unit of time, and the index (400,) of the step that holds each grid point.
    """
    grid = np.linspace(end / 2, end, 400)
    at = np.searchsorted(time, grid, side="right") - 1
    return float(np.polyfit(grid - grid.mean(), level[at], 1)[0]), at


def _window_end(
    time: np.ndarray, backlog: np.ndarray, dropped: np.ndarray, horizon: float, hot: bool
) -> float:
    over = dropped > 0
    if hot:
        over = over | (backlog < backlog[0] / 4)
    end = min(float(time[over.argmax()]), horizon) if over.any() else horizon
    return max(
        end, 2.0
    )  # a table that is full at once leaves no window, but no division by 0 either


@in_32_bits
@answers_other_names
def stability(
    scenario: Scenario | str,
    policy: policies.PolicyLike,
    load: float | None = None,
    replications: int = 8,
    horizon_s: float | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Stability:
    """Whether the backlog under ``policy`` stays bounded.

    Two starts are watched. From a backlog of ``hot_requests`` the drift is arriving minus served tokens;
    from an empty start it is the slope of the unprocessed tokens. Stable: the backlog drains (the 95 %
    interval of the drift lies below 0) and the empty start does not grow by more than TOLERANCE of the
    arriving tokens. Unstable: the empty start grows by more than that and the backlog does not drain,
    or both starts grow. In between the horizon doubles, at most three times; a table that fills is
    enlarged, and where it still drops requests before a trend is clear the verdict is refused
    (``"undecided"``), since a full table looks like stability.

    Args:
        scenario: an endless one, or its name.
        policy: as in ``llmgym.simulate``.
        load: fraction of the LP capacity; None: the scenario's own arrival rate.
        replications: environments of each start, at least 2.
        horizon_s: first horizon; by default the time of 2,000 arrivals, or of four times the
            backlog of the hot start if that is longer.
        seed: of the arrivals.
        progress: called with a description of each horizon that is tried.

    Raises LLMGymError on bad arguments, and for a replay, which is finite.
    """
    scenario = at_load(scenario, load)
    if scenario.demand.end_s is not None:
        raise LLMGymError("Stability is about an endless stream of arrivals; a replay is finite.")
    replications, seed = check_envs("replications", replications, low=2), check_seed(seed)
    check_callable("progress", progress)
    chosen = policies.resolve(policy)
    arriving = scenario.arrival_rate_per_s * mean_work(scenario) / 1000
    hot = hot_backlog(scenario)
    if horizon_s is None:
        arrivals = max(2000, 4 * hot * len(scenario.job_types))
        horizon_s = arrivals / scenario.arrival_rate_per_s
    horizon_s = check_duration("horizon_s", horizon_s, scenario)
    scenario = replace(scenario, slots=max(scenario.slots, min(2 * hot, MOST_SLOTS)))
    check_work(scenario, replications, horizon_s)
    for _ in range(MOST_DOUBLINGS + 1):
        if progress is not None:
            progress(f"{horizon_s:.0f} s of simulated time, {scenario.slots} slots")
        cold = trend(scenario, chosen, horizon_s, replications, seed)
        warm = trend(scenario, chosen, horizon_s, replications, seed, burst=hot)
        verdict, reason = _judge(cold, warm, arriving)
        result = _result(verdict, reason, cold, warm, arriving, hot, horizon_s)
        if verdict != "undecided":
            return result
        horizon_s *= 2
        if (cold.dropped or warm.dropped) and scenario.slots < MOST_SLOTS:
            scenario = replace(scenario, slots=min(2 * scenario.slots, MOST_SLOTS))
    return result


def hot_backlog(scenario: Scenario) -> int:
    """Requests of each job type that a hot start begins with: enough to fill a batch with decodes.

    At most 512: beyond that a larger table costs more than it shows.
    """
    enough = scenario.engine.token_budget / len(scenario.job_types)
    return int(np.clip(enough, 64, 512))


def _judge(cold: Trend, hot: Trend, arriving: float) -> tuple[str, str]:
    _, cold_low, _ = mean_interval(cold.growth)
    _, drift_low, drift_high = mean_interval(arriving - hot.served)
    grows, drains = cold_low > TOLERANCE * arriving, drift_high < 0
    if (grows or (cold_low > 0 and drift_low > 0)) and not drains:
        return "unstable", "the backlog grows from an empty start and does not drain"
    if cold.dropped or hot.dropped:
        return "undecided", "the request table filled up before a trend was clear"
    if drains and not grows:
        return "stable", "a backlog drains, and an empty start does not grow"
    if drains:
        return "undecided", "a backlog drains, but an empty start still fills up"
    if drift_low > 0:
        return "undecided", "a backlog grows, but an empty start does not yet"
    return "undecided", "a backlog neither grows nor drains clearly"


def _result(
    verdict: str,
    reason: str,
    cold: Trend,
    hot: Trend,
    arriving: float,
    hot_requests: int,
    horizon_s: float,
) -> Stability:
    drift, drift_low, drift_high = mean_interval(arriving - hot.served)
    mean, low, high = mean_interval(cold.growth)
    return Stability(
        verdict=verdict,
        growth_tokens_per_ms=mean,
        low=low,
        high=high,
        hot_growth_tokens_per_ms=drift,
        hot_low=drift_low,
        hot_high=drift_high,
        hot_requests=hot_requests,
        horizon_s=horizon_s,
        replications=cold.growth.size,
        dropped=cold.dropped + hot.dropped,
        reason=reason,
    )
