"""Make docs/results/transfer: trained policies on problems that they were not trained on.

    python tools/transfer_results.py [--policy ppo-latency ...] [--page]

Other lengths, other engines, other loads, all without retraining, beside Sarathi-Serve with the best of
several token budgets and two tile rules, on the same requests. Rows that the file already holds are not
measured again.
"""

from __future__ import annotations

import argparse
from typing import Any

from results_tool import RESULTS, read, row, table

import llmgym
from llmgym import Geometric, LogNormal, Scenario
from llmgym.core.files import write
from llmgym.evaluation import policies
from llmgym.evaluation.evaluate import feasible, latencies
from llmgym.theory.capacity import at_load

FOLDER = RESULTS / "transfer"
RULES = ("greedy_rate", "index")
BUDGETS = (128, 256, 384, 512, 768, 1024)
"""Of Sarathi-Serve, those that carry the load."""

LOADS = (0.7, 0.9)
OUTER_RATES = (4.0, 6.0, 13.5, 13.7)
"""Requests per second in the scenario of the training, outside the loads seen there."""

ARRIVALS, NUM_ENVS = 4_000, 8


def problems() -> dict[str, tuple[Scenario, tuple[float, ...]]]:
    """Scenario and loads by name; all else is as in the scenario ``latency``."""
    home = llmgym.scenario("latency", slots=1024)
    limit = llmgym.capacity(home).requests_per_s
    others = {
        "100 prompt and 100 output tokens": home.override(prefill_tokens=100, decode_tokens=100),
        "512 prompt and 64 output tokens": home.override(prefill_tokens=512, decode_tokens=64),
        "geometric outputs": home.override(decode_tokens=Geometric(112)),
        "lognormal lengths, CV 1": home.override(
            prefill_tokens=LogNormal(129, 1.0), decode_tokens=LogNormal(112, 1.0)
        ),
        "Azure conversation, quantiles": llmgym.scenario("azure-conversation"),
        "Azure code, quantiles": llmgym.scenario("azure-code"),
        "token budget 1024": home.override(token_budget=1024),
        "Llama-3-70B, no tiles": home.override(batch_time="llama-3-70b"),
        "RTX 4090, Llama-3.1-8B": home.override(batch_time="rtx4090-llama-3.1-8b"),
        "at most 100 residents": home.override(max_num_seqs=100, seq_limit="resident"),
    }
    found = {name: (s, LOADS) for name, s in others.items()}
    found["loads outside of training"] = (home, tuple(r / limit for r in OUTER_RATES))
    return found


def measure(scenario: Scenario, policy: str) -> dict[str, Any]:
    """Latencies of a policy: mean, p99 and goodput over the requests of all environments."""
    duration_s = ARRIVALS / scenario.arrival_rate_per_s
    run = llmgym.simulate(
        scenario,
        policies.resolve(policy),
        duration_s=duration_s,
        warmup_s=duration_s / 4,
        num_envs=NUM_ENVS,
    )
    found = latencies(run)
    kept = {"e2e_s": found["e2e_s_mean"], "dropped": found["dropped"]}
    return found["pooled"] | kept | {"in_system": found["in_system"]}


def compare(scenario: Scenario, learned: list[str]) -> dict[str, Any]:
    """All policies at the arrival rate of a scenario."""
    budgets = feasible(scenario, BUDGETS, scenario.arrival_rate_per_s)
    found = {f"sarathi {b}": measure(scenario.override(token_budget=b), "sarathi") for b in budgets}
    own = scenario.engine.token_budget
    if own not in budgets:
        found[f"sarathi {own}"] = measure(scenario, "sarathi")
    return found | {name: measure(scenario, name) for name in (*RULES, *learned)}


def level(found: dict[str, Any]) -> float:
    """Mean latency, infinite where requests were lost."""
    return float("inf") if sum(found["dropped"]) else float(found["e2e_s_mean"])


def page(learned: list[str]) -> str:
    """docs/results/transfer/README.md."""
    rows = []
    for name, (scenario, _) in problems().items():
        for load, found in read(FOLDER / "transfer.json").get(name, {}).items():
            if load == "took_s":
                continue
            sarathi = {k: v for k, v in found.items() if k.startswith("sarathi")}
            best = min(sarathi, key=lambda k: level(sarathi[k]))
            own = f"sarathi {scenario.engine.token_budget}"
            cells = [f"{level(found[own]):.2f}", f"{level(found[best]):.2f} ({best.split()[1]})"]
            for rule in (*RULES, *learned):
                gain = 100 * (level(found[rule]) / level(found[best]) - 1)
                cells.append(f"{level(found[rule]):.2f} ({gain:+.1f} %)")
            rows.append([name, load, *cells])
    rules = " | ".join(f"`{rule}`" for rule in (*RULES, *learned))
    missing = [name for name in problems() if name not in {row[0] for row in rows}]
    told = [f"Not measured yet: {'; '.join(missing)}.", ""] if missing else []
    return "\n".join(
        [
            "# Trained policies elsewhere",
            "",
            "`python tools/transfer_results.py` writes every file here. Mean E2E latency in seconds, and in",
            "brackets the difference from Sarathi-Serve with the best token budget for the load; inf: the",
            f"request table overflowed. {NUM_ENVS} environments of {ARRIVALS:,} requests each, a quarter of",
            "them warm-up, the same requests for every policy. Nothing was retrained. All runs begin empty,",
            "so close to the limit, and where requests are long, they all read low.",
            "",
            *table(f"problem | load | Sarathi-Serve | with the best budget | {rules}", rows),
            "",
            *told,
        ]
    )


def main() -> None:
    """Measure the missing rows, then write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--policy", action="append", help="trained policies, by name or file")
    parser.add_argument(
        "--page", action="store_true", help="write only the page, from the rows that exist"
    )
    given = parser.parse_args()
    learned = given.policy or ["ppo-latency"]
    if given.page:
        return write(FOLDER / "README.md", page(learned))
    for name, (scenario, loads) in problems().items():
        row(
            FOLDER / "transfer.json",
            name,
            lambda s=scenario, loads=loads: {
                f"{x:.3f}".rstrip("0"): compare(at_load(s, x), learned) for x in loads
            },
        )
    return write(FOLDER / "README.md", page(learned))


if __name__ == "__main__":
    main()
