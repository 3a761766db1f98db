"""Trained policies on problems that they were not trained on.

Other lengths, other engines, other loads, all without retraining, beside Sarathi-Serve with the best of
several token budgets and two tile rules, on the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmgym.evaluation import policies
from llmgym.evaluation.evaluate import feasible, latencies
from llmgym.evaluation.simulate import simulate
from llmgym.reporting.table import Cell, Column, Table
from llmgym.scenario import library
from llmgym.scenario.lengths import Geometric, LogNormal
from llmgym.scenario.scenario import Scenario
from llmgym.studies import study
from llmgym.studies.study import Progress, Row, read
from llmgym.theory.capacity import at_load, capacity

FILE = "transfer.json"
RULES = ("greedy_rate", "index")
BUDGETS = (128, 256, 384, 512, 768, 1024)
"""Token budgets of Sarathi-Serve; of these it gets the ones that carry the load."""

LOADS = (0.7, 0.9)
OUTER_RATES = (4.0, 6.0, 13.5, 13.7)
"""Requests per second in the scenario of the training, outside the loads seen there."""

ARRIVALS, NUM_ENVS = 4_000, 8


def problems() -> dict[str, tuple[Scenario, tuple[float, ...]]]:
    """Scenario and loads by name; all else is as in the scenario ``latency``."""
    home = library.scenario("latency", slots=1024)
    limit = capacity(home).requests_per_s
    others = {
        "100 prompt and 100 output tokens": home.override(prefill_tokens=100, decode_tokens=100),
        "512 prompt and 64 output tokens": home.override(prefill_tokens=512, decode_tokens=64),
        "geometric outputs": home.override(decode_tokens=Geometric(112)),
        "lognormal lengths, CV 1": home.override(
            prefill_tokens=LogNormal(129, 1.0), decode_tokens=LogNormal(112, 1.0)
        ),
        "Azure conversation, quantiles": library.scenario("azure-conversation"),
        "Azure code, quantiles": library.scenario("azure-code"),
        "token budget 1024": home.override(token_budget=1024),
        "Llama-3-70B, no tiles": home.override(batch_time="llama-3-70b"),
        "RTX 4090, Llama-3.1-8B": home.override(batch_time="rtx4090-llama-3.1-8b"),
        "at most 100 residents": home.override(max_num_seqs=100, seq_limit="resident"),
    }
    found: dict[str, tuple[Scenario, tuple[float, ...]]] = {
        name: (s, LOADS) for name, s in others.items()
    }
    found["loads outside of training"] = (home, tuple(r / limit for r in OUTER_RATES))
    return found


def measure(scenario: Scenario, policy: str) -> dict[str, Any]:
    """Latencies of a policy: mean, p99 and goodput over the requests of all environments."""
    duration_s = ARRIVALS / scenario.arrival_rate_per_s
    run = simulate(
        scenario,
        policies.resolve(policy),
        duration_s=duration_s,
        warmup_s=duration_s / 4,
        num_envs=NUM_ENVS,
    )
    found = latencies(run)
    kept = {"e2e_s": found["e2e_s_mean"], "dropped": found["dropped"]}
    return found["pooled"] | kept | {"in_system": found["in_system"]}


def compare(scenario: Scenario, learned: str) -> dict[str, Any]:
    """All policies at the arrival rate of a scenario."""
    budgets = feasible(scenario, BUDGETS, scenario.arrival_rate_per_s)
    found = {f"sarathi {b}": measure(scenario.override(token_budget=b), "sarathi") for b in budgets}
    own = scenario.engine.token_budget
    if own not in budgets:
        found[f"sarathi {own}"] = measure(scenario, "sarathi")
    return found | {name: measure(scenario, name) for name in (*RULES, learned)}


def compare_all(scenario: Scenario, loads: tuple[float, ...], learned: str) -> dict[str, Any]:
    """All policies at each of the loads.

    Args:
        scenario: at any arrival rate.
        loads: fractions of its LP capacity.
        learned: name or file of the learned policy.

    Returns:
        For each load, as text, the latencies of each policy by name.
    """
    return {f"{x:.3f}".rstrip("0"): compare(at_load(scenario, x), learned) for x in loads}


def level(found: dict[str, Any]) -> float:
    """Mean latency, infinite where requests were lost."""
    return float("inf") if sum(found["dropped"]) else float(found["e2e_s_mean"])


@dataclass(frozen=True)
class Transfer:
    """See the module."""

    name: str = "transfer"
    title: str = "trained policies on problems that they were not trained on"
    policy: str = "ppo-latency"

    def measure(self, out: Path, policy: str, progress: Progress) -> None:
        rows = [
            Row(FILE, name, partial(compare_all, scenario, loads, policy))
            for name, (scenario, loads) in problems().items()
        ]
        study.measure(rows, out, progress)

    def pages(self, out: Path, policy: str) -> dict[str, str]:
        return {"README.md": page(read(out / FILE), policy)}


def table(measured: dict[str, Any], learned: str) -> Table:
    """A row for each problem and load."""
    rows = []
    for name, (scenario, _) in problems().items():
        for load, found in measured.get(name, {}).items():
            if load == "took_s":
                continue
            sarathi = {k: v for k, v in found.items() if k.startswith("sarathi")}
            best = min(sarathi, key=lambda k: level(sarathi[k]))
            own = f"sarathi {scenario.engine.token_budget}"
            cells = [
                Cell(level(found[own])),
                Cell(level(found[best]), note=f" ({best.split()[1]})"),
            ]
            for rule in (*RULES, learned):
                gain = 100 * (level(found[rule]) / level(found[best]) - 1)
                cells.append(Cell(level(found[rule]), note=f" ({gain:+.1f} %)"))
            rows.append((name, load, *cells))
    columns = (
        Column("problem", text=True),
        Column("load"),
        Column("Sarathi-Serve", ".2f"),
        Column("with the best budget", ".2f"),
        *(Column(rule, ".2f") for rule in (*RULES, learned)),
    )
    return Table(columns, tuple(rows))


def page(measured: dict[str, Any], learned: str) -> str:
    """README.md of the folder."""
    missing = [name for name in problems() if name not in measured]
    told = [f"Not measured yet: {'; '.join(missing)}.", ""] if missing else []
    return "\n".join(
        [
            "# Trained policies elsewhere",
            "",
            "`llmgym study transfer` writes every file here. Mean E2E latency in seconds, and in",
            "brackets the difference from Sarathi-Serve with the best token budget for the load; inf: the",
            f"request table overflowed. {NUM_ENVS} environments of {ARRIVALS:,} requests each, a quarter of",
            "them warm-up, the same requests for every policy. Nothing was retrained. All runs begin empty,",
            "so close to the limit, and where requests are long, they all read low.",
            "",
            table(measured, learned).to_markdown(),
            "",
            *told,
        ]
    )
