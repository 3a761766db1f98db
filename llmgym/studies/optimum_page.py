"""The page of the study ``optimum``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmgym.reporting.table import Cell, Column, Estimate, Table
from llmgym.studies.optimum_settings import LEARNED, SEARCH_RATES, SIMULATION
from llmgym.studies.study import read

LATENCIES = (
    Column("requests/s"),
    Column("optimum s", ".3f"),
    Column("its policy", ".2f"),
    *(Column(name, ".2f") for name in (LEARNED, "index, tuned", "index")),
    Column("best Sarathi-Serve", ".2f"),
    Column("Sarathi-Serve 512", ".2f"),
)


def latency_table(out: Path, law: str) -> Table:
    """One row for each rate: the optimum, and mean latencies with how far they are above it."""
    rows = []
    for rate, found in read(out / f"{law}.json").items():
        policies = found["policies"] | read(out / "learned.json")[f"{law} {rate}"]["policies"]
        sarathi = {n: p for n, p in policies.items() if n.startswith("sarathi")}
        best = min(sarathi, key=lambda n: sarathi[n]["e2e_s"][0])
        names = (LEARNED, "index, tuned", "index", best, "sarathi 512")
        cells = [_above(policies[name]) for name in names[:3]]
        cells.append(_above(sarathi[best], f", {best.removeprefix('sarathi ')}"))
        cells.append(_above(sarathi["sarathi 512"]))
        own = Estimate(*policies["dynamic_program"]["e2e_s"])
        rows.append((rate, found["low_s"], own, *cells))
    return Table(LATENCIES, tuple(rows))


def _above(found: dict[str, Any], note: str = "") -> Cell:
    """A mean latency, and how far it is above the optimum."""
    return Cell(found["e2e_s"][0], note=f" ({100 * found['gap'][0]:+.1f} %){note}")


def service_table(out: Path, law: str) -> Table:
    """Shares of good requests and of late first tokens."""
    names = ("dynamic_program", "index, tuned", "sarathi 256", "sarathi 512")
    rows = []
    for rate, found in read(out / f"{law}.json").items():
        known = (found["policies"].get(name) for name in names)
        shares = (
            None if p is None else f"{100 * p['good']:.1f} / {100 * p['late']:.1f}" for p in known
        )
        rows.append((rate, *shares))
    heads = ("optimum's policy", "index, tuned", "Sarathi-Serve 256", "Sarathi-Serve 512")
    return Table((Column("requests/s"), *map(Column, heads)), tuple(rows))


def exact_table(out: Path) -> Table:
    """The optimum with every prompt token counted."""
    columns = (
        Column("requests/s"),
        Column("optimum s"),
        Column("states", ","),
        Column("cost of truncation", ".0e"),
    )
    rows = (
        (rate, f"{r['low_s']:.4f} .. {r['high_s']:.4f}", r["states"], r["truncation"])
        for rate, r in read(out / "exact.json").items()
    )
    return Table(columns, tuple(rows))


def capped_table(out: Path) -> Table:
    """One row for each cap."""
    columns = (
        Column("cap"),
        Column("LP limit", ".2f"),
        Column("best Sarathi-Serve (budget)", ".2f"),
        Column("w0", "g"),
        Column("index", ".2f"),
        Column("of the limit", ".1f", " %", 100),
        Column("from a full table", ".2f"),
        Column("above Sarathi-Serve", "+.1f", " %", 100),
    )
    rows = []
    for seats, found in read(out / "capped.json").items():
        limit, mine = found["limit_per_s"], found["from_empty"]
        best = max(found["sarathi"], key=lambda b: found["sarathi"][b][0])
        sarathi = found["sarathi"][best][0]
        rows.append(
            (
                seats,
                limit,
                Cell(sarathi, note=f" ({best})"),
                found["parameters"]["prefill_weight"],
                Estimate(*mine),
                mine[0] / limit,
                found["from_full"][0],
                mine[0] / sarathi - 1,
            )
        )
    return Table(columns, tuple(rows))


def page(out: Path) -> str:
    """README.md of the folder."""
    found = read(out / "index.json")["latency"]
    numbers = ",".join(f"{k}={v:g}" for k, v in found["parameters"].items())
    lines = [
        "# The optimum of the decode-first class, and the tuned tile index",
        "",
        "`llmgym study optimum` writes every file here. Scenario `latency`: prompts of 129 and",
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
        latency_table(out, "geometric").to_markdown(),
        "",
        "The optimum with every prompt token counted (above: 16 states per prompt), without simulation:",
        "",
        exact_table(out).to_markdown(),
        "",
        "## Fixed outputs",
        "",
        latency_table(out, "fixed").to_markdown(),
        "",
        "Share of the requests within both targets (first token in 1 s, 100 ms per token) / share with a",
        "late first token, in percent:",
        "",
        service_table(out, "fixed").to_markdown(),
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
        capped_table(out).to_markdown(),
        "",
    ]
    return "\n".join(lines)
