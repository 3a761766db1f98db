"""The optimum of the decode-first problem, the tuned tile index, and limits on resident requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmgym import baselines
from llmgym.agents.dynamic_programming import solve
from llmgym.agents.index_search import Settings, search
from llmgym.agents.optimality import optimality_gaps
from llmgym.baselines.index import PARAMETERS, Index
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.evaluation.evaluate import feasible
from llmgym.scenario import library
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.scenario import Scenario
from llmgym.studies import study
from llmgym.studies.optimum_page import page
from llmgym.studies.optimum_settings import LEARNED, SEARCH_RATES, SIMULATION
from llmgym.studies.study import Progress, Row, read
from llmgym.theory.capacity import capacity

INDEX = "index.json"
EXACT_RATES = (10.0, 11.0, 12.0)
RATES = (10.0, 12.0, 13.0)
BUDGETS = (128, 256, 384, 512, 640, 768, 1024)
"""Token budgets of Sarathi-Serve, which is tuned again for each load."""

CAPS = (100, 160, 200)
CAPPED_BUDGETS = (128, 256, 384, 512)
LAWS = {"fixed": 112, "geometric": Geometric(112.0)}


@dataclass(frozen=True)
class Optimum:
    """See the module."""

    name: str = "optimum"
    title: str = "the optimum of the decode-first class, the tuned tile index, and caps"
    policy: str = LEARNED

    def measure(self, out: Path, policy: str, progress: Progress) -> None:
        study.measure(list(rows(out, policy)), out, progress)

    def pages(self, out: Path, policy: str) -> dict[str, str]:
        return {"README.md": page(out)}


def rows(out: Path, policy: str) -> Iterator[Row]:
    """All measurements; the search comes first, as others use its result."""
    yield Row(INDEX, "latency", partial(searched, out))
    for law in LAWS:
        for rate in RATES:
            yield Row(f"{law}.json", f"{rate:g}", partial(compare, rate, law, out))
    for law in LAWS:
        for rate in RATES:
            yield Row("learned.json", f"{law} {rate:g}", partial(learned, rate, law, policy))
    for rate in EXACT_RATES:
        yield Row("exact.json", f"{rate:g}", partial(exact, rate))
    for seats in CAPS:
        yield Row("capped.json", str(seats), partial(capped, seats))


def latency(rate: float, law: str = "fixed") -> Scenario:
    """The scenario ``latency`` at a rate, with fixed or geometric outputs."""
    return library.scenario("latency", arrival_rate_per_s=rate, decode_tokens=LAWS[law])


def searched(out: Path) -> dict[str, Any]:
    """The index that one search over several loads finds."""
    scenario = latency(12.0)
    limit = capacity(scenario).requests_per_s
    settings = Settings(population=24, elites=5, generations=10, num_envs=8, duration_s=150.0)
    found = search(scenario, [r / limit for r in SEARCH_RATES], settings, path=out / "search.json")
    return {"parameters": parameters(found.policy), "figures": found.figures}


def tuned(out: Path) -> Index:
    """The index that was found, from its file."""
    return Index(**read(out / INDEX)["latency"]["parameters"])


def parameters(rule: Index) -> dict[str, float]:
    """The numbers of a rule by name."""
    return {name: getattr(rule, name) for name in PARAMETERS}


def compare(rate: float, law: str, out: Path) -> dict[str, Any]:
    """Bounds on the optimum, and policies on the same requests.

    Args:
        rate: requests/s.
        law: of the output lengths, a key of ``LAWS``.
        out: the folder of the study, which holds the tuned index.

    Returns:
        low_s and high_s, the bounds as ``solve`` gives them; truncation, states; and policies, an
        ``OptimalityGap`` of each as a dictionary.
    """
    scenario = latency(rate, law)
    budgets = feasible(scenario, BUDGETS, 1.02 * rate)
    scenario = scenario.override(token_budget=512)
    found = solve(scenario, tolerance=1e-4)
    rules: dict[str, Any] = {
        "dynamic_program": found.policy,
        "index, tuned": tuned(out),
        "index": Index(),
        "greedy_rate": "greedy_rate",
        "tile_align": "tile_align",
    }
    gaps = optimality_gaps(scenario, list(rules.values()), None, found, **SIMULATION)
    policies = {n: asdict(g) for n, g in zip(rules, gaps, strict=True)}
    wide = scenario.override(token_budget=1024)
    for budget in budgets:
        one = baselines.make("sarathi", token_budget=budget)
        here = scenario if budget <= 512 else wide
        gap = optimality_gaps(here, [one], None, found, **SIMULATION)[0]
        policies[f"sarathi {budget}"] = asdict(gap)
    return {
        "low_s": found.low,
        "high_s": found.high,
        "truncation": found.truncation,
        "states": found.problem.shape[0] * found.problem.shape[1],
        "policies": policies,
    }


def learned(rate: float, law: str, policy: str) -> dict[str, Any]:
    """The learned policy on the requests of ``compare``.

    Args:
        rate: requests/s.
        law: of the output lengths, a key of ``LAWS``.
        policy: its name or file.
    """
    scenario = latency(rate, law)
    found = solve(scenario, tolerance=1e-4)
    gap = optimality_gaps(scenario, [policy], None, found, **SIMULATION)[0]
    return {"low_s": found.low, "policies": {LEARNED: asdict(gap)}}


def exact(rate: float) -> dict[str, Any]:
    """The optimum with every prompt token counted."""
    scenario = latency(rate, "geometric")
    found = solve(scenario, residues=None, tolerance=1e-4)
    problem = found.problem
    return {
        "low_s": found.low,
        "high_s": found.high,
        "exact": found.exact,
        "truncation": found.truncation,
        "states": problem.shape[0] * problem.shape[1],
    }


def capped(seats: int) -> dict[str, Any]:
    """Throughput under a cap on residents: the LP, the tuned index, the best Sarathi-Serve."""
    scenario = library.scenario("capped", max_num_seqs=seats, slots=320)
    start = Index(prefill_weight=0.75, age_weight=0.0)
    settings = Settings(
        objective="throughput", population=31, elites=5, generations=8, num_envs=4,
        warmup_s=60.0, duration_s=180.0, check_envs=8,
    )  # fmt: skip
    found = search(scenario, settings=settings, start=start, spread={"prefill_weight": 0.1})

    def served(policy: Any) -> tuple[float, float, float]:
        estimate = estimate_capacity(scenario, policy, requests=2000, replications=4)
        return estimate.requests_per_s, estimate.low, estimate.high

    sarathi = {b: served(baselines.make("sarathi", token_budget=b)) for b in CAPPED_BUDGETS}
    return {
        "limit_per_s": capacity(scenario).requests_per_s,
        "parameters": parameters(found.policy),
        "from_empty": found.figures[0]["requests_per_s"],
        "from_full": served(found.policy),
        "sarathi": sarathi,
    }
