"""A trained policy just inside corner C of the stability region.

Verdicts and growth rates of the policy and of Sarathi-Serve with several token budgets, under Poisson
arrivals at 0.98 of the corner.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmgym.evaluation.stability import stability
from llmgym.reporting.table import Column, Estimate, Table
from llmgym.scenario import library
from llmgym.studies.study import Progress, Row, measure, read

SCENARIO, AGENT = "corner-c-random", "ppo-corner-c"
BUDGETS = (128, 256, 384, 512, 640, 768, 1024)
NAMES = (AGENT, *(f"sarathi:token_budget={b}" for b in BUDGETS))
FILE = "stability.json"

COLUMNS = (
    Column("policy", text=True),
    Column("verdict", text=True),
    Column("growth from empty", ".3f"),
    Column("from a backlog", ".3f"),
    Column("dropped"),
)


@dataclass(frozen=True)
class Corner:
    """See the module."""

    name: str = "corner-c"
    title: str = "a trained policy just inside corner C of the stability region"
    policy: str = AGENT

    def measure(self, out: Path, policy: str, progress: Progress) -> None:
        rows = [
            Row(FILE, name, partial(judged, policy if name == AGENT else name)) for name in NAMES
        ]
        measure(rows, out, progress)

    def pages(self, out: Path, policy: str) -> dict[str, str]:
        return {"README.md": page(read(out / FILE))}


def judged(policy: str) -> dict[str, Any]:
    """The verdict on the stability of a policy, and how fast its backlog grows."""
    return asdict(stability(SCENARIO, policy, replications=8, seed=1000))


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two policies agree in everything that was measured."""
    return all(one[k] == other[k] for k in one if k != "took_s")


def table(found: dict[str, Any]) -> Table:
    """A row for each policy that was judged."""
    rows = (
        (
            name,
            row["verdict"],
            Estimate(row["growth_tokens_per_ms"], row["low"], row["high"]),
            row["hot_growth_tokens_per_ms"],
            row["dropped"],
        )
        for name, row in found.items()
    )
    return Table(COLUMNS, tuple(rows))


def page(found: dict[str, Any]) -> str:
    """README.md of the folder."""
    scenario = library.scenario(SCENARIO)
    found = {name: found[name] for name in NAMES}
    alike = [n for n in found if n != AGENT and same_numbers(found[n], found[AGENT])]
    same = [f"`{AGENT}` gives exactly the same numbers as {', '.join(alike)}."] if alike else []
    return "\n".join(
        [
            "# Just inside corner C",
            "",
            "`llmgym study corner-c` writes every file here. Scenario "
            f"`{SCENARIO}`: {scenario.description}",
            "",
            f"`{AGENT}` was trained at loads of 0.85, 0.92 and 0.97 of the capacity. The table shows how",
            "fast the unprocessed tokens grow, in tokens per ms with a 95 % interval over 8 replications,",
            "from an empty engine and from a backlog.",
            "",
            table(found).to_markdown(),
            "",
            *same,
            "",
        ]
    )
