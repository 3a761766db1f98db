"""How far a policy is from the optimum of the decode-first problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmgym.agents.dynamic_programming import solve
from llmgym.agents.optimum import Optimum
from llmgym.agents.trials import Figures, measure_policy
from llmgym.core.checks import as_list, check_kind, check_seed
from llmgym.core.errors import LLMGymError
from llmgym.evaluation import policies
from llmgym.evaluation.limits import check_duration, check_envs
from llmgym.evaluation.policies import PolicyLike
from llmgym.evaluation.statistics import mean_interval
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load


@dataclass(frozen=True)
class OptimalityGap:
    """How far a policy is from the best of the decode-first class; latencies in seconds.

    Triples are a mean with its 95 % interval over environments.

    Attributes:
        policy: its label.
        e2e_s: mean E2E latency of the policy, by Little's law: unfinished requests count.
        low: lower end of the bracket: what ``solve`` finds. ``exact`` says whether that is a bound for
            the scenario itself (see Optimum).
        high: upper end: the simulated latency of the solution's own policy.
        gap: e2e_s / low - 1.
        behind: e2e_s / high - 1, environment by environment on the same requests; below 0 where the
            policy beats that of the solution.
        late, good: shares of the finished requests beyond the TTFT target, and within both targets.
    """

    policy: str
    e2e_s: tuple[float, float, float]
    low: float
    high: tuple[float, float, float]
    gap: tuple[float, float, float]
    behind: tuple[float, float, float]
    late: float
    good: float
    exact: bool


def optimality_gap(
    scenario: Scenario | str,
    policy: PolicyLike,
    load: float | None = None,
    optimum: Optimum | None = None,
    num_envs: int = 32,
    duration_s: float = 600.0,
    warmup_s: float = 60.0,
    seed: int = 0,
) -> OptimalityGap:
    """Compare a policy with the optimum of the decode-first problem, on the same requests.

    Args:
        scenario: a Scenario or the name of one, within the assumptions of ``solve``.
        policy: a name, a policy object or a function.
        load: fraction of the LP capacity; None: the scenario's own rate.
        optimum: of the scenario at that load; None: ``solve`` it.
        num_envs, seed: of the simulations; environment n of all policies sees the same requests.
        duration_s, warmup_s: simulated seconds measured, and left out before them.

    Raises LLMGymError where ``solve`` does, for an optimum of another rate, and where requests were
    dropped at a full table.
    """
    settings = (num_envs, duration_s, warmup_s, seed)
    return optimality_gaps(scenario, [policy], load, optimum, *settings)[0]


def optimality_gaps(
    scenario: Scenario | str,
    compared: Sequence[PolicyLike],
    load: float | None = None,
    optimum: Optimum | None = None,
    num_envs: int = 32,
    duration_s: float = 600.0,
    warmup_s: float = 60.0,
    seed: int = 0,
) -> list[OptimalityGap]:
    """``optimality_gap`` of several policies; the optimum is solved and simulated once.

    Args:
        compared: the policies.
        scenario, load, optimum, num_envs, duration_s, warmup_s, seed: as of ``optimality_gap``.
    """
    scenario = at_load(scenario, load)
    num_envs, seed = check_envs("num_envs", num_envs, low=2), check_seed(seed)
    duration_s = check_duration("duration_s", duration_s, scenario)
    warmup_s = check_duration("warmup_s", warmup_s, scenario, zero=True)
    compared = as_list("compared", compared, what="policies")
    chosen = [policies.resolve(policy) for policy in compared]
    if optimum is not None:
        check_kind("optimum", optimum, Optimum)
    optimum = solve(scenario) if optimum is None else optimum
    if not np.isclose(optimum.problem.rate, scenario.arrival_rate_per_s, rtol=1e-6):
        raise LLMGymError(
            f"The optimum is that of {optimum.problem.rate:g} requests/s, the scenario has "
            f"{scenario.arrival_rate_per_s:g}; solve it again."
        )
    settings = {"warmup_s": warmup_s, "duration_s": duration_s, "seed": seed}
    best = _measured(scenario, optimum.policy, num_envs, settings)
    gaps = []
    for policy, one in zip(compared, chosen, strict=True):
        same = one == optimum.policy
        found = best if same else _measured(scenario, one, num_envs, settings)
        e2e = mean_interval(found.e2e_s[0])
        gap = OptimalityGap(
            policy=policies.name_of(policy),
            e2e_s=e2e,
            low=optimum.low,
            high=mean_interval(best.e2e_s[0]),
            gap=(e2e[0] / optimum.low - 1, e2e[1] / optimum.low - 1, e2e[2] / optimum.low - 1),
            behind=mean_interval(found.e2e_s[0] / best.e2e_s[0] - 1),
            late=float(found.late.mean()),
            good=float(found.good.mean()),
            exact=optimum.exact,
        )
        gaps.append(gap)
    return gaps


def _measured(scenario: Scenario, policy: Any, num_envs: int, settings: dict[str, Any]) -> Figures:
    figures = measure_policy(scenario, policy, num_envs, **settings)
    if figures.dropped.any():
        raise LLMGymError(
            f"{policies.name_of(policy)} let the request table overflow ({figures.dropped.sum()} "
            "requests dropped), so that its latency means nothing; use more slots or a lower load."
        )
    return figures
