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
from collections.abc import Callable
from pathlib import Path

import summary_tool
from summary_tool import LEARNED, RESULTS, learned_rows

from llmgym.reporting.evaluation_report import change
from llmgym.reporting.palette import TUNED
from llmgym.reproduce.items import Check
from llmgym.reproduce.run import interval, text

ROOT = Path(__file__).parents[1]
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
MARK = {"stable": "stable", "unstable": "**grows**", "undecided": "?"}


def capacity_table(folder: Path) -> list[str]:
    """Capacity, verdict and latency of each policy of a published benchmark."""
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    loads = sorted({float(r["load"]) for r in rows})
    limit = float(rows[0]["limit_requests_per_s"])
    lines = [
        "`make benchmark`: the requests per second that each policy carries, where the limit is "
        f"{limit:.3f}, and its mean E2E latency in seconds at some loads. **grows**: the backlog grows "
        "without end.",
        "",
        "| policy | capacity, requests/s | of the limit | "
        + " | ".join(f"load {x:g}" for x in loads)
        + " |",
        "|---|---|---|" + "---|" * len(loads),
    ]
    for name in dict.fromkeys(r["policy"] for r in rows):
        mine = {float(r["load"]): r for r in rows if r["policy"] == name}
        first = mine[loads[0]]
        value, low, high = (
            float(first[f"capacity_{k}"]) for k in ("requests_per_s", "low", "high")
        )
        cells = [
            f"{float(mine[x]['e2e_ms_mean']) / 1000:.2f}"
            if mine[x]["verdict"] == "stable"
            else MARK[mine[x]["verdict"]]
            for x in loads
        ]
        lines.append(
            f"| `{name}` | {value:.3f} [{low:.3f}, {high:.3f}] | {100 * value / limit:.1f} % | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def speed_table(path: Path) -> list[str]:
    """Steps per second, the rows of `llmgym speed`."""
    rows = json.loads(path.read_text())
    lines = [
        "`llmgym speed --out docs/results/speed`, on 2 cores, medians:",
        "",
        "| | environments | slots | policy | steps/s |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "-" if row["steps_per_s"] is None else f"{row['steps_per_s']:,.0f}"
        lines.append(
            f"| {row['what']} | {row['num_envs']} | {row['slots']} | {row['policy']} | {rate} |"
        )
    return lines


def arrivals_table(folder: Path) -> list[str]:
    """What `llmgym fit-trace --json` said of each trace, and of what it fitted."""
    lines = []
    for name in ("conversation", "code"):
        found = json.loads((folder / name / "arrivals.json").read_text())
        scales = sorted(found["trace"]["dispersion"], key=float)
        if not lines:
            windows = " | ".join(f"in {float(scale):g} s" for scale in scales)
            lines += [f"| | requests/s | CV of gaps | dispersion {windows} | error |"]
            lines += ["|---|---|---|" + "---|" * (len(scales) + 1)]
        rows = [(f"**{name}, the trace**", found["trace"], "")]
        rows += [(f["kind"], f["mean"], f"{f['error']:.2f}") for f in found["fits"]]
        for label, facts, error in rows:
            numbers = [facts["rate_per_s"], facts["gap_cv"]]
            numbers += [facts["dispersion"][scale] for scale in scales]
            cells = " | ".join(f"{x:.3g}" for x in numbers)
            lines.append(f"| {label} | {cells} | {error} |")
    return lines


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
    lines = [
        "`llmgym simulate -s multi-tenant -p POLICY --duration-s 900 --warmup-s 100 --num-envs 8 --json`:",
        "",
        "| policy | goodput/s, weighted | "
        + " | ".join(f"{name}/s (within targets)" for name in classes)
        + " | TTFT p50, s | TPOT p50, ms | service gap |",
        "|---|---|" + "---|" * (len(classes) + 3),
    ]
    for policy, summary in runs.items():
        levels = [summary["slo"][name] for name in classes]
        cells = [f"{s['goodput_per_s']:.2f} ({100 * s['attainment']:.1f} %)" for s in levels]
        latencies = [summary["ttft_ms"]["p50"] / 1000, summary["tpot_ms"]["p50"]]
        cells += [f"{latencies[0]:.2f}", f"{latencies[1]:.1f}"]
        cells += [f"{summary['fairness']['gap']:,}"]
        lines.append(f"| `{policy}` | {summary['goodput_per_s']:.2f} | " + " | ".join(cells) + " |")
    bound = next(iter(runs.values()))["fairness"]["bound"]
    return [*lines, "", f"VTC's bound on the service gap: {bound:,.0f} weighted tokens."]


def learned_table() -> list[str]:
    """Learned policies beside the published one with the best budget, from a cold start."""
    lines = [
        "`llmgym evaluate --repeat docs/results/PROBLEM`: one learned policy for all rates of a problem, "
        "beside the published policy with the token budget that is best for the rate in hindsight; from an "
        "empty engine. The linked pages show hot starts, tails, other policies, and runs without prior and "
        "guard.",
        "",
        "| problem | requests/s | published, best budget | E2E, s | learned (seeds) | change | goodput, "
        "published | learned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for problem in LEARNED:
        for rate, best, mine in learned_rows(problem):
            latencies = [
                f"{float(r['e2e_s_mean']):.2f} [{float(r['e2e_low']):.2f}, {float(r['e2e_high']):.2f}]"
                for r in (best, mine)
            ]
            name = f"{best['policy'].removesuffix(TUNED)}, {float(best['budget']):.0f}"
            lines.append(
                f"| [{problem}](results/{problem}/README.md) | {float(rate):g} | {name} "
                f"| {latencies[0]} | {latencies[1]} ({mine['runs']}) "
                f"| {change(float(mine['gain_tuned']))} | {float(best['goodput']):.3f} "
                f"| {float(mine['goodput']):.3f} |"
            )
    return lines


def table_under(page: Path, heading: str) -> list[str]:
    """The first table below a heading of a page."""
    lines = page.read_text().split(f"## {heading}\n")[1].splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    return lines[start : start + [*(line[:1] == "|" for line in lines[start:]), False].index(False)]


def reproduced_table(path: Path) -> list[str]:
    """What a full run of the reproduction found: of each item its verdict and one of its figures."""
    found = json.loads(path.read_text())
    lines = [
        "`llmgym reproduce --out docs/results/reproduce`; one figure of each item, and its processor time in "
        "seconds:",
        "",
        "| item | figure | expected | measured | checks | verdict | s |",
        "|---|---|" + "---|" * 5,
    ]
    for item in found["items"]:
        checks = item["checks"]
        shown = Check(**next((c for c in checks if c["low"] is not None), checks[0]))
        expected, measured = (text(x).replace("|", "/") for x in (shown.expected, shown.measured))
        passed = sum(c["verdict"] == "pass" for c in checks)
        lines.append(
            f"| `{item['item']}` | {shown.what} | {expected} | {measured} {interval(shown)} "
            f"| {passed} of {len(checks)} | {item['verdict']} | {item['cpu_seconds']:.0f} |"
        )
    return lines


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
    written = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
