"""Make docs/results/optimum: the optimum of the decode-first problem, the tuned tile index, caps.

    python tools/optimum_results.py [--only search|latency|learned|exact|capped|page]

Every number comes from a seeded run. Rows that a file already holds are not measured again, so a run that
was stopped continues; delete the folder to start over.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from results_tool import RESULTS, read, row, table

import llmgym
from llmgym import Geometric, Scenario, baselines
from llmgym.agents.dynamic_programming import solve
from llmgym.agents.index_search import Settings, search
from llmgym.agents.optimality import optimality_gaps
from llmgym.baselines.index import PARAMETERS, Index
from llmgym.core.files import write
from llmgym.evaluation.evaluate import feasible

FOLDER = RESULTS / "optimum"
RATES = (10.0, 12.0, 13.0)
SEARCH_RATES = (10.0, 12.0, 13.0)
BUDGETS = (128, 256, 384, 512, 640, 768, 1024)
"""Of Sarathi-Serve, re-tuned for each load."""

CAPS = (100, 160, 200)
CAPPED_BUDGETS = (128, 256, 384, 512)
SIMULATION = {"num_envs": 32, "duration_s": 800.0, "warmup_s": 100.0, "seed": 7}
LEARNED = "ppo-latency"
LAWS = {"fixed": 112, "geometric": Geometric(112.0)}


def latency(rate: float, law: str = "fixed") -> Scenario:
    """The scenario ``latency`` at a rate, with fixed or geometric outputs."""
    return llmgym.scenario("latency", arrival_rate_per_s=rate, decode_tokens=LAWS[law])


def tuned() -> Index:
    """The index that one search over several loads finds."""

    def make() -> dict[str, Any]:
        scenario = latency(12.0)
        limit = llmgym.capacity(scenario).requests_per_s
        settings = Settings(population=24, elites=5, generations=10, num_envs=8, duration_s=150.0)
        found = search(
            scenario, [r / limit for r in SEARCH_RATES], settings, path=FOLDER / "search.json"
        )
        return {"parameters": parameters(found.policy), "figures": found.figures}

    return Index(**row(FOLDER / "index.json", "latency", make)["parameters"])


def parameters(rule: Index) -> dict[str, float]:
    """The numbers of a rule by name."""
    return {name: getattr(rule, name) for name in PARAMETERS}


def compare(rate: float, law: str) -> dict[str, Any]:
    """Bounds on the optimum at a rate, and policies on the same requests."""
    scenario = latency(rate, law)
    budgets = feasible(scenario, BUDGETS, 1.02 * rate)
    scenario = scenario.override(token_budget=512)
    found = solve(scenario, tolerance=1e-4)
    rules: dict[str, Any] = {
        "dynamic_program": found.policy,
        "index, tuned": tuned(),
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


def learned(rate: float, law: str) -> dict[str, Any]:
    """The learned policy on the same requests as those of ``compare``."""
    scenario = latency(rate, law)
    found = solve(scenario, tolerance=1e-4)
    gap = optimality_gaps(scenario, [LEARNED], None, found, **SIMULATION)[0]
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
    scenario = llmgym.scenario("capped", max_num_seqs=seats, slots=320)
    start = Index(prefill_weight=0.75, age_weight=0.0)
    settings = Settings(
        objective="throughput", population=31, elites=5, generations=8, num_envs=4,
        warmup_s=60.0, duration_s=180.0, check_envs=8,
    )  # fmt: skip
    found = search(scenario, settings=settings, start=start, spread={"prefill_weight": 0.1})

    def served(policy: Any) -> tuple[float, float, float]:
        estimate = llmgym.estimate_capacity(scenario, policy, requests=2000, replications=4)
        return estimate.requests_per_s, estimate.low, estimate.high

    sarathi = {b: served(baselines.make("sarathi", token_budget=b)) for b in CAPPED_BUDGETS}
    return {
        "limit_per_s": llmgym.capacity(scenario).requests_per_s,
        "parameters": parameters(found.policy),
        "from_empty": found.figures[0]["requests_per_s"],
        "from_full": served(found.policy),
        "sarathi": sarathi,
    }


def interval(triple: list[float], digits: int = 2) -> str:
    """Mean [low, high]."""
    mean, low, high = (f"{x:.{digits}f}" for x in triple)
    return f"{mean} [{low}, {high}]"


def latency_rows(law: str) -> list[list[str]]:
    """One row for each rate: the optimum, and mean latencies with how far they are above it."""
    rows = []
    for rate, found in read(FOLDER / f"{law}.json").items():
        policies = found["policies"] | read(FOLDER / "learned.json")[f"{law} {rate}"]["policies"]
        sarathi = {n: p for n, p in policies.items() if n.startswith("sarathi")}
        best = min(sarathi, key=lambda n: sarathi[n]["e2e_s"][0])
        chosen = [policies[n] for n in ("dynamic_program", LEARNED, "index, tuned", "index")]
        chosen += [sarathi[best], sarathi["sarathi 512"]]
        cells = [f"{p['e2e_s'][0]:.2f} ({100 * p['gap'][0]:+.1f} %)" for p in chosen]
        cells[0] = interval(policies["dynamic_program"]["e2e_s"])
        cells[4] += f", {best.removeprefix('sarathi ')}"
        rows.append([rate, f"{found['low_s']:.3f}", *cells])
    return rows


def service_rows(law: str) -> list[list[str]]:
    """Shares of good requests and of late first tokens."""
    rows = []
    for rate, found in read(FOLDER / f"{law}.json").items():
        names = ("dynamic_program", "index, tuned", "sarathi 256", "sarathi 512")
        known = [found["policies"].get(name) for name in names]
        cells = [
            "-" if p is None else f"{100 * p['good']:.1f} / {100 * p['late']:.1f}" for p in known
        ]
        rows.append([rate, *cells])
    return rows


def capped_rows() -> list[list[str]]:
    """One row for each cap."""
    rows = []
    for seats, found in read(FOLDER / "capped.json").items():
        limit, mine = found["limit_per_s"], found["from_empty"]
        best = max(found["sarathi"], key=lambda b: found["sarathi"][b][0])
        sarathi = found["sarathi"][best][0]
        rows.append(
            [
                seats,
                f"{limit:.2f}",
                f"{sarathi:.2f} ({best})",
                f"{found['parameters']['prefill_weight']:g}",
                interval(mine),
                f"{100 * mine[0] / limit:.1f} %",
                f"{found['from_full'][0]:.2f}",
                f"{100 * (mine[0] / sarathi - 1):+.1f} %",
            ]
        )
    return rows


HEAD = (
    f"requests/s | optimum s | its policy | {LEARNED} | index, tuned | index | best Sarathi-Serve | "
    "Sarathi-Serve 512"
)


def page() -> str:
    """docs/results/optimum/README.md."""
    found = read(FOLDER / "index.json")["latency"]
    numbers = ",".join(f"{k}={v:g}" for k, v in found["parameters"].items())
    exact_rows = [
        [
            rate,
            f"{r['low_s']:.4f} .. {r['high_s']:.4f}",
            f"{r['states']:,}",
            f"{r['truncation']:.0e}",
        ]
        for rate, r in read(FOLDER / "exact.json").items()
    ]
    lines = [
        "# The optimum of the decode-first class, and the tuned tile index",
        "",
        "`python tools/optimum_results.py` writes every file here. Scenario `latency`: prompts of 129 and",
        "outputs of 112 tokens, Poisson arrivals, 4 tiles of 128. Mean E2E latency by Little's law,",
        f"{SIMULATION['num_envs']} environments of {SIMULATION['duration_s']:g} s, 95 % intervals over",
        "environments; in brackets how far it is above the optimum.",
        "",
        "The optimum is exact for **geometric outputs** of mean 112: the prompt tokens and the decodes that",
        "wait are then all that matters. For **fixed outputs** of 112 tokens it is the optimum of that other",
        "problem, not a proven bound: fixed outputs end in the waves in which they began, and every policy",
        "here is slower on them. The upper end of the bracket is the simulated latency of its own policy.",
        "All runs begin empty, so near the limit of 13.87 requests/s they all read a little low.",
        "",
        "## Geometric outputs",
        "",
        *table(HEAD, latency_rows("geometric")),
        "",
        "The optimum with every prompt token counted (above: 16 states per prompt), without simulation:",
        "",
        *table("requests/s | optimum s | states | cost of truncation", exact_rows),
        "",
        "## Fixed outputs",
        "",
        *table(HEAD, latency_rows("fixed")),
        "",
        "Share of the requests within both targets (first token in 1 s, 100 ms per token) / share with a",
        "late first token, in percent:",
        "",
        *table(
            "requests/s | optimum's policy | index, tuned | Sarathi-Serve 256 | Sarathi-Serve 512",
            service_rows("fixed"),
        ),
        "",
        f"The tuned index is one rule for all rates, `index:{numbers}`, from a search over "
        f"{', '.join(f'{r:g}' for r in SEARCH_RATES)} requests/s that took {found['took_s']:.0f} s.",
        "",
        "## A cap on resident requests",
        "",
        "Requests served per second when 1.4 times the limit arrives, fixed lengths. `w0` is the weight of a",
        "prompt token (all others 0, power 1), found for each cap by a search from w0 = 0.75. From a table",
        "that starts full of equal requests they move in waves; from an empty one they do not.",
        "",
        *table(
            "cap | LP limit | best Sarathi-Serve (budget) | w0 | index | of the limit | from a full table"
            " | above Sarathi-Serve",
            capped_rows(),
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """All parts, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", choices=("search", "latency", "learned", "exact", "capped", "page")
    )
    only = parser.parse_args().only
    if only in (None, "search"):
        tuned()
    if only in (None, "latency"):
        for law in LAWS:
            for rate in RATES:
                row(
                    FOLDER / f"{law}.json",
                    f"{rate:g}",
                    lambda rate=rate, law=law: compare(rate, law),
                )
    if only in (None, "learned"):
        for law in LAWS:
            for rate in RATES:
                row(
                    FOLDER / "learned.json",
                    f"{law} {rate:g}",
                    lambda rate=rate, law=law: learned(rate, law),
                )
    if only in (None, "exact"):
        for rate in (10.0, 11.0, 12.0):
            row(FOLDER / "exact.json", f"{rate:g}", lambda rate=rate: exact(rate))
    if only in (None, "capped"):
        for seats in CAPS:
            row(FOLDER / "capped.json", str(seats), lambda seats=seats: capped(seats))
    if only in (None, "page"):
        write(FOLDER / "README.md", page())


if __name__ == "__main__":
    main()
