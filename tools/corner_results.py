"""Make docs/results/corner-c: a trained policy just inside corner C of the stability region.

    python tools/corner_results.py [FILE]

FILE is the checkpoint, by default the policy that ships. Verdicts and growth rates of the policy and of
Sarathi-Serve with several token budgets, under Poisson arrivals at 0.98 of the corner. Rows that the file
already holds are not measured again.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from results_tool import RESULTS, read, row, table

import llmgym
from llmgym.core.files import write

FOLDER = RESULTS / "corner-c"
SCENARIO, AGENT = "corner-c-random", "ppo-corner-c"
BUDGETS = (128, 256, 384, 512, 640, 768, 1024)
NAMES = (AGENT, *(f"sarathi:token_budget={b}" for b in BUDGETS))


def judged(policy: str) -> dict[str, Any]:
    """The verdict on a policy, and how fast its backlog grows."""
    return asdict(llmgym.stability(SCENARIO, policy, replications=8, seed=1000))


def cells(name: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    cold = f"{found['growth_tokens_per_ms']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    hot = f"{found['hot_growth_tokens_per_ms']:.3f}"
    return [name, found["verdict"], cold, hot, str(found["dropped"])]


def same_numbers(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two policies agree in everything that was measured."""
    return all(one[k] == other[k] for k in one if k != "took_s")


def page() -> str:
    """docs/results/corner-c/README.md."""
    scenario = llmgym.scenario(SCENARIO)
    found = read(FOLDER / "stability.json")
    rows = [cells(name, found[name]) for name in NAMES]
    alike = [n for n in NAMES if n != AGENT and same_numbers(found[n], found[AGENT])]
    same = [f"`{AGENT}` gives exactly the same numbers as {', '.join(alike)}."] if alike else []
    return "\n".join(
        [
            "# Just inside corner C",
            "",
            "`python tools/corner_results.py` writes every file here. Scenario "
            f"`{SCENARIO}`: {scenario.description}",
            "",
            f"`{AGENT}` was trained at loads of 0.90, 0.96 and 1.00 of the capacity. The table shows how",
            "fast the unprocessed tokens grow, in tokens per ms with a 95 % interval over 8 replications,",
            "from an empty engine and from a backlog.",
            "",
            *table("policy | verdict | growth from empty | from a backlog | dropped", rows),
            "",
            *same,
            "",
        ]
    )


def main() -> None:
    """Measure the missing rows, then write the page."""
    file = sys.argv[1] if len(sys.argv) > 1 else AGENT
    for name in NAMES:
        policy = file if name == AGENT else name
        row(FOLDER / "stability.json", name, lambda policy=policy: judged(policy))
    write(FOLDER / "README.md", page())


if __name__ == "__main__":
    main()
