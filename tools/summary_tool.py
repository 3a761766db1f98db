"""The short table of results in README: one figure of each page, from the files of docs/results."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmgym.reporting.palette import TUNED

RESULTS = Path(__file__).parents[1] / "docs" / "results"

LEARNED = ("latency", "kv", "slo")
"""Problems with a folder of ``llmgym evaluate``."""


def learned_rows(problem: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Rate, the published policy with its best budget, and the learned one, from a cold start."""
    with (RESULTS / problem / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["start"] == "cold"]
    found = []
    for rate in dict.fromkeys(row["rate"] for row in rows):
        here = [row for row in rows if row["rate"] == rate]
        best = next(row for row in here if row["policy"].endswith(TUNED))
        mine = next(row for row in here if Path(row["policy"]).name == "agents")
        found.append((rate, best, mine))
    return found


def span(changes: Iterable[float]) -> str:
    """The range of some changes, given as fractions."""
    percents = sorted(round(100 * x, 1) + 0.0 for x in changes)  # + 0.0: no -0.0
    return f"{percents[0]:+.1f} % to {percents[-1]:+.1f} %"


def reproduced() -> str:
    """How many items and checks of the reproduction passed."""
    items = json.loads((RESULTS / "reproduce" / "results.json").read_text())["items"]
    checks = [check["verdict"] for item in items for check in item["checks"]]
    passed = sum(item["verdict"] == "pass" for item in items)
    return f"{passed} of {len(items)} items, {checks.count('pass')} of {len(checks)} checks"


def capacity() -> str:
    """The share of the limit that the policies of the paper carry."""
    with (RESULTS / "paper-figure-1" / "results.csv").open() as file:
        rows = {row["policy"]: row for row in csv.DictReader(file)}
    shares = []
    for name in ("sarathi", "orca", "vllm", "faster_transformer"):
        row = rows[name]
        share = float(row["capacity_requests_per_s"]) / float(row["limit_requests_per_s"])
        shares.append(f"`{name}` {100 * share:.1f} %")
    return ", ".join(shares)


def azure() -> str:
    """Shares of requests within their targets in the hour of conversation."""
    with (RESULTS / "azure-hour" / "conversation" / "results.csv").open() as file:
        shares = {row["policy"]: float(row["slo_attainment"]) for row in csv.DictReader(file)}
    best = max(shares, key=lambda name: shares[name])
    return ", ".join(f"`{name}` {100 * shares[name]:.1f} %" for name in (best, "sarathi", "vllm"))


def learned() -> str:
    """Changes of the latency against the published policy with its best budget, over all rates."""
    gains = {p: [float(mine["gain_tuned"]) for _, _, mine in learned_rows(p)] for p in LEARNED}
    return "; ".join(f"`{problem}` {span(-x for x in found)}" for problem, found in gains.items())


def optimum() -> str:
    """Distances from the optimum for geometric outputs, over all rates."""
    found = json.loads((RESULTS / "optimum" / "geometric.json").read_text())
    trained = json.loads((RESULTS / "optimum" / "learned.json").read_text())
    agent, published = [], []
    for rate, at_rate in found.items():
        policies: dict[str, Any] = at_rate["policies"]
        sarathi = [p for name, p in policies.items() if name.startswith("sarathi")]
        published.append(min(sarathi, key=lambda p: p["e2e_s"][0])["gap"][0])
        agent.append(trained[f"geometric {rate}"]["policies"]["ppo-latency"]["gap"][0])
    near = 100 * max(map(abs, agent))
    return f"`ppo-latency` within {near:.1f} % of it; best Sarathi-Serve {span(published)}"


def speed() -> str:
    """Steps per second of the compiled rollout with many environments."""
    rows = json.loads((RESULTS / "speed" / "speed.json").read_text())
    wanted = ("compiled rollout", 1024, 256, "sarathi")
    row = next(r for r in rows if (r["what"], r["num_envs"], r["slots"], r["policy"]) == wanted)
    return f"{row['steps_per_s']:,.0f}"


def table() -> list[str]:
    """A row for each page."""
    rows = [
        ("Published results that come out again", reproduced(), "llmgym reproduce",
         "[Reproduce the paper](docs/reproduction.md)"),
        ("Capacity, as a share of the limit", capacity(), "make benchmark",
         "[Policies](docs/policies.md)"),
        ("Requests within their targets, one hour of Azure conversation", azure(), "llmgym replay",
         "[Traces and traffic](docs/traffic.md)"),
        ("Mean latency of a learned policy, against the published one with the best token budget",
         learned(), "llmgym evaluate", "[Learned policies](docs/learned-policies.md)"),
        ("Mean latency above the least possible (geometric outputs)", optimum(),
         "llmgym study optimum", "[The optimum](docs/optimum.md)"),
        ("Iterations per second, 1,024 environments on 2 cores", speed(), "llmgym speed",
         "[Speed](docs/speed.md)"),
    ]  # fmt: skip
    lines = ["| figure | measured | command | more |", "|---|---|---|---|"]
    return lines + [f"| {a} | {b} | `{c}` | {d} |" for a, b, c, d in rows]
