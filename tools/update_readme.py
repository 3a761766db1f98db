"""Write the tables of README and of the pages under docs/ from the files of docs/results.

    python tools/update_readme.py [--check]

A page asks for a table with two comments, ``<!-- table: speed -->`` and ``<!-- /table -->``; what stands
between them is replaced. The page of the Azure hours is written as a whole. With --check nothing is
written; the exit code is 1 if a page does not match the files.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import check_ranges
import clients_tool
import summary_tool
from summary_tool import LEARNED, RESULTS, learned_rows

from llmgym.reporting.evaluation_report import change
from llmgym.reporting.palette import TUNED
from llmgym.reporting.table import Cell, Column, Estimate, Table
from llmgym.reproduce.items import Check
from llmgym.reproduce.run import interval, text

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def capacity_table(folder: Path) -> list[str]:
    """Capacity, verdict and latency of each policy of a published benchmark."""
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    loads = sorted({float(r["load"]) for r in rows})
    limit = float(rows[0]["limit_requests_per_s"])
    columns = (
        Column("policy", text=True, code=True),
        Column("capacity, requests/s", ".3f"),
        Column("of the limit", ".1f", " %", 100 / limit),
        *(Column(f"load {x:g}", ".2f", scale=1 / 1000) for x in loads),
    )
    found = []
    for name in dict.fromkeys(r["policy"] for r in rows):
        mine = {float(r["load"]): r for r in rows if r["policy"] == name}
        ends = (float(mine[loads[0]][f"capacity_{k}"]) for k in ("requests_per_s", "low", "high"))
        estimate = Estimate(*ends)
        found.append((name, estimate, estimate.value, *(latency(mine[x]) for x in loads)))
    return [
        "`make benchmark`: the requests per second that each policy carries, where the limit is "
        f"{limit:.3f}, and its mean E2E latency in seconds at some loads. **grows**: the backlog grows "
        "without end.",
        "",
        *lines_of(columns, found),
    ]


def lines_of(columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A table as lines of Markdown."""
    return Table(tuple(columns), tuple(rows)).to_markdown().splitlines()


def latency(row: dict[str, str]) -> float | Cell:
    """The mean latency at a load, in ms; where the run was not stable, its verdict."""
    if row["verdict"] == "stable":
        return float(row["e2e_ms_mean"])
    grows = row["verdict"] == "unstable"
    return Cell(None, "grows" if grows else "?", emphasis="bad" if grows else "")


def speed_table(path: Path) -> list[str]:
    """Steps per second, the rows of `llmgym speed`."""
    columns = (
        Column("", text=True, key="what"),
        Column("environments", key="num_envs"),
        Column("slots"),
        Column("policy", text=True),
        Column("steps/s", ",.0f", key="steps_per_s"),
    )
    rows = json.loads(path.read_text())
    return [
        "`llmgym speed --out docs/results/speed`, on 2 cores, medians:",
        "",
        *lines_of(columns, (tuple(row[column.name] for column in columns) for row in rows)),
    ]


def arrivals_table(folder: Path) -> list[str]:
    """What `llmgym fit-trace --json` said of each trace, and of what it fitted."""
    traces = {
        name: json.loads((folder / name / "arrivals.json").read_text())
        for name in ("conversation", "code")
    }
    scales = sorted(traces["code"]["trace"]["dispersion"], key=float)
    windows = [f"in {float(scale):g} s" for scale in scales]
    columns = (
        Column("", text=True),
        *(Column(name, ".3g") for name in ("requests/s", "CV of gaps")),
        *(Column(name, ".3g") for name in (f"dispersion {windows[0]}", *windows[1:])),
        Column("error", ".2f", missing=""),
    )
    rows: list[tuple[Any, ...]] = []
    for name, found in traces.items():
        label = Cell(f"{name}, the trace", emphasis="strong")
        parts = [(label, found["trace"], None)]
        parts += [(fit["kind"], fit["mean"], fit["error"]) for fit in found["fits"]]
        for what, facts, error in parts:
            dispersion = (facts["dispersion"][scale] for scale in scales)
            rows.append((what, facts["rate_per_s"], facts["gap_cv"], *dispersion, error))
    return lines_of(columns, rows)


def azure_hour(folder: Path) -> list[str]:
    """The page of the policies on one hour of each Azure trace, and of the arrivals."""
    where = folder.relative_to(ROOT).as_posix()
    lines = ["# One hour of each Azure trace"]
    for name in ("conversation", "code"):
        config = json.loads((folder / name / "config.json").read_text())
        engine = tomllib.loads(config["engine"])
        lines += [
            "",
            f"`llmgym replay {config['trace']['file']} --out {where}/{name}`: one hour at real time on "
            f"the engine of `{engine['name']}`. Targets are TTFT {config['ttft_ms']:g} ms and TPOT "
            f"{config['tpot_ms']:g} ms, those of MLPerf Inference 5.1 for a server of Llama-3.1-8B, applied "
            "here to each request. Latencies are those of finished requests. Left: not finished at the end; "
            f"dropped: found the table of {engine['slots']:,} requests full; CPU s: processor time, "
            "including compilation.",
            "",
        ]
        lines += (folder / name / "results.md").read_text().splitlines()
    lines += [
        "",
        f"`llmgym fit-trace TRACE --json > {where}/.../arrivals.json`: dispersion is the variance of the "
        "number of requests in a window divided by its mean, which is 1 for Poisson arrivals. Figures of "
        "fitted processes are means over replications.",
        "",
    ]
    return [*lines, *arrivals_table(folder), ""]


def azure_best(folder: Path, rows: int = 6) -> list[str]:
    """The policies with the most goodput on the conversation trace."""
    config = json.loads((folder / "conversation" / "config.json").read_text())
    table = (folder / "conversation" / "results.md").read_text().splitlines()
    return [
        f"`llmgym replay {config['trace']['file']}`: one hour of conversation on Llama-3-8B and one A100, "
        f"the {rows} best of all policies; [the others, the code trace, and what is measured]"
        "(results/azure-hour/README.md).",
        "",
        *table[: 2 + rows],
    ]


def service_table(folder: Path) -> list[str]:
    """Goodput, attainment of each class and service gap of each policy, from summaries of runs."""
    paths = sorted(folder.glob("*.json"))
    runs = {path.stem: json.loads(path.read_text()) for path in paths}
    runs = dict(sorted(runs.items(), key=lambda run: -run[1]["goodput_per_s"]))
    classes = list(next(iter(runs.values()))["slo"])
    columns = (
        Column("policy", text=True, code=True),
        Column("goodput/s, weighted", ".2f"),
        *(Column(f"{name}/s (within targets)", ".2f") for name in classes),
        Column("TTFT p50, s", ".2f", scale=1 / 1000),
        Column("TPOT p50, ms", ".1f"),
        Column("service gap", ","),
    )
    rows = []
    for policy, summary in runs.items():
        levels = (summary["slo"][name] for name in classes)
        served = (
            Cell(level["goodput_per_s"], note=f" ({100 * level['attainment']:.1f} %)")
            for level in levels
        )
        latencies = (summary["ttft_ms"]["p50"], summary["tpot_ms"]["p50"])
        gap = summary["fairness"]["gap"]
        rows.append((policy, summary["goodput_per_s"], *served, *latencies, gap))
    bound = next(iter(runs.values()))["fairness"]["bound"]
    return [
        "`llmgym simulate -s multi-tenant -p POLICY --duration-s 900 --warmup-s 100 --num-envs 8 --json`:",
        "",
        *lines_of(columns, rows),
        "",
        f"VTC's bound on the service gap: {bound:,.0f} weighted tokens.",
    ]


def learned_table() -> list[str]:
    """Learned policies beside the published one with the best budget, from a cold start."""
    columns = (
        Column("problem", text=True),
        Column("requests/s", "g"),
        Column("published, best budget", text=True),
        Column("E2E, s", ".2f"),
        Column("learned (seeds)", ".2f"),
        Column("change", change),
        Column("goodput, published", ".3f"),
        Column("learned", ".3f"),
    )
    rows = []
    for problem in LEARNED:
        link = Cell(problem, link=f"results/{problem}/README.md")
        for rate, best, mine in learned_rows(problem):
            published, learned = (
                Estimate(*(float(r[k]) for k in ("e2e_s_mean", "e2e_low", "e2e_high")))
                for r in (best, mine)
            )
            name = f"{best['policy'].removesuffix(TUNED)}, {float(best['budget']):.0f}"
            with_seeds = Cell(learned, note=f" ({mine['runs']})")
            goodput = (float(best["goodput"]), float(mine["goodput"]))
            gain = float(mine["gain_tuned"])
            rows.append((link, float(rate), name, published, with_seeds, gain, *goodput))
    return [
        "`llmgym evaluate --repeat docs/results/PROBLEM`: one learned policy for all rates of a problem, "
        "beside the published policy with the token budget that is best for the rate in hindsight; from an "
        "empty engine. The linked pages show hot starts, tails, other policies, and runs without prior and "
        "guard.",
        "",
        *lines_of(columns, rows),
    ]


def table_under(page: Path, heading: str) -> list[str]:
    """The first table below a heading of a page."""
    lines = page.read_text().split(f"## {heading}\n")[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    return lines[start : start + [*(line[:1] == "|" for line in lines[start:]), False].index(False)]


def reproduced_table(path: Path) -> list[str]:
    """What a full run of the reproduction found: of each item its verdict and one of its figures."""
    found = json.loads(path.read_text())
    columns = (
        Column("item", text=True, code=True),
        *(
            Column(name, text=True)
            for name in ("figure", "expected", "measured", "checks", "verdict")
        ),
        Column("s", ".0f"),
    )
    rows = []
    for item in found["items"]:
        checks = item["checks"]
        shown = Check(**next((c for c in checks if c["low"] is not None), checks[0]))
        expected, measured = (text(x).replace("|", "/") for x in (shown.expected, shown.measured))
        measured = f"{measured} {interval(shown)}".strip()
        passed = f"{sum(c['verdict'] == 'pass' for c in checks)} of {len(checks)}"
        figures = (shown.what, expected, measured)
        rows.append((item["item"], *figures, passed, item["verdict"], item["cpu_seconds"]))
    return [
        "`llmgym reproduce --out docs/results/reproduce`; one figure of each item, and its processor time in "
        "seconds:",
        "",
        *lines_of(columns, rows),
    ]


def optimum_table() -> list[str]:
    """The optimum of the policies that serve decodes first, and latencies above it."""
    return [
        "`llmgym study optimum`: mean E2E latency in seconds for geometric outputs, and in "
        "brackets how far it is above the optimum of the policies that serve decodes first.",
        "",
        *table_under(RESULTS / "optimum" / "README.md", "Geometric outputs"),
    ]


def capped_table() -> list[str]:
    """Throughput under a cap on resident requests."""
    return [
        "`llmgym study optimum`, scenario `capped`: requests per second under a limit on resident "
        "requests; w0 is the one weight of the tile index, found by search.",
        "",
        *table_under(RESULTS / "optimum" / "README.md", "A cap on resident requests"),
    ]


TABLES: dict[str, Callable[[], list[str]]] = {
    "summary": summary_tool.table,
    "reproduced": lambda: reproduced_table(RESULTS / "reproduce" / "results.json"),
    "capacity": lambda: capacity_table(RESULTS / "paper-figure-1"),
    "service": lambda: service_table(RESULTS / "multi-tenant"),
    "speed": lambda: speed_table(RESULTS / "speed" / "speed.json"),
    "azure": lambda: azure_best(RESULTS / "azure-hour"),
    "learned": learned_table,
    "optimum": optimum_table,
    "capped": capped_table,
    "clients": clients_tool.table,
    "ranges": check_ranges.table,
    **{
        f"recipe-{name.replace('/', '-')}": partial(clients_tool.code, name)
        for name in clients_tool.recipes()
    },
}
"""What may stand between the two comments, by name."""


def filled(page: str) -> str:
    """A page with its tables as the files give them now."""

    def fill(match: re.Match[str]) -> str:
        lines = "\n".join(TABLES[match[2]]())
        return f"{match[1]}\n{lines}\n\n{match[3]}"

    return MARKED.sub(fill, page)


def main() -> int:
    """Update the pages, or check them."""
    check = "--check" in sys.argv
    written = [ROOT / "README.md"]
    for folder in (ROOT / "docs", ROOT / "docs" / "guides"):
        written += sorted(folder.glob("*.md"))
    pages = {path: filled(path.read_text()) for path in written}
    pages[RESULTS / "azure-hour" / "README.md"] = "\n".join(azure_hour(RESULTS / "azure-hour"))
    stale = [path for path, new in pages.items() if not path.exists() or path.read_text() != new]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(pages[path])
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
