"""The tables of a benchmark, for the terminal and for its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmgym.evaluation.benchmark import Benchmark, slug
from llmgym.reporting.table import Cell, Column, Emphasis, Estimate, Section, Table, percent

MARKS = {"stable": "●", "unstable": "✗", "undecided": "?"}
LOOKS: dict[str, Emphasis] = {"stable": "good", "unstable": "bad", "undecided": ""}


def label(name: str) -> str:
    """A policy's name as tables and pictures show it; a star: prompts are split at the budget."""
    _, colon, function = name.partition(".py:")
    if colon:
        return function
    if name.endswith(".npz"):
        return Path(name).stem
    return name.replace(":prompts=split", "*").replace("faster_transformer", "FasterTransf.")


def tables(benchmark: Benchmark, results: dict[str, Any]) -> list[Table]:
    """Capacities and verdicts, latencies, and goodput where there are targets."""
    found = [capacity_table(benchmark, results), latency_table(benchmark, results)]
    judged = any(n.startswith("latency-") and "slo" in r["summary"] for n, r in results.items())
    return [*found, *([goodput_table(benchmark, results)] if judged else [])]


def capacity_table(benchmark: Benchmark, results: dict[str, Any], marks: bool = True) -> Table:
    """Capacities in requests/s, and the verdict at each load.

    Args:
        benchmark: what was measured.
        results: of ``llmgym.evaluation.benchmark.run``, by name.
        marks: verdicts are marks under short headings, as a terminal shows them; else they are words.
    """
    limit = results["limit"]["requests_per_s"]
    columns = (
        Column("policy", text=True),
        Column("requests/s", ".2f" if marks else ".3f", best="high"),
        Column("of the limit", ".1f", " %", 100 / limit),
        Column("method", text=True),
        *(Column(f"{x:g}" if marks else f"load {x:g}") for x in benchmark.loads),
    )
    rows = []
    for name in benchmark.policies:
        found = results[f"capacity-{slug(name)}"]
        value = found["requests_per_s"]
        verdicts = (_verdict(name, load, results, marks) for load in benchmark.loads)
        estimate = Estimate(value, found["low"], found["high"])
        rows.append((label(name), estimate, value, found["method"], *verdicts))
    return Table(
        columns,
        tuple(rows),
        f"{benchmark.scenario.name}: capacity, and stability at loads of the limit",
        (
            f"limit {limit:.3f} requests/s ({results['limit']['tokens_per_ms']:.3f} tokens/ms);"
            " ● stable  ✗ unstable  ? undecided  * prompts split",
        ),
    )


def latency_table(benchmark: Benchmark, results: dict[str, Any], marks: bool = True) -> Table:
    """Latencies of each policy, load by load.

    Args:
        benchmark: what was measured.
        results: of ``llmgym.evaluation.benchmark.run``, by name.
        marks: verdicts are marks; else they are words.
    """
    columns = (
        Column("policy", text=True),
        Column("" if marks else "verdict", key="verdict"),
        Column("in system", _digits(1)),
        Column("TTFT s", _digits(2, 1000)),
        Column("p99", _digits(2, 1000), key="ttft_p99"),
        Column("TPOT ms", _digits(1)),
        Column("E2E s", _digits(2, 1000)),
        Column("p99", _digits(2, 1000), key="e2e_p99"),
        Column("left", _digits(0)),
        Column("dropped"),
    )
    rows: list[Any] = []
    for load in benchmark.loads:
        rows.append(Section(f"load {load:g}"))
        for name in benchmark.policies:
            s = results[f"latency-{slug(name)}-{load:g}"]["summary"]
            rows.append(
                (
                    label(name),
                    _verdict(name, load, results, marks),
                    s["mean_in_system"],
                    s["ttft_ms"]["mean"],
                    s["ttft_ms"]["p99"],
                    s["tpot_ms"]["mean"],
                    s["e2e_ms"]["mean"],
                    s["e2e_ms"]["p99"],
                    s["unfinished"],
                    s["dropped"],
                )
            )
    return Table(
        columns,
        tuple(rows),
        "Latencies of finished requests, mean and 99th percentile",
        (
            "in system: time average; left: unfinished per run. The latencies of an unstable row grow"
            " with the length of the run, and end where the table is full and drops requests.",
        ),
    )


def goodput_table(benchmark: Benchmark, results: dict[str, Any]) -> Table:
    """Goodput at each load, and the share of the requests within their targets."""
    rows = []
    for name in benchmark.policies:
        found = [results[f"latency-{slug(name)}-{x:g}"]["summary"] for x in benchmark.loads]
        cells = (
            Cell(s["goodput_per_s"], note=f" {percent(s['slo_attainment']):>7}") for s in found
        )
        rows.append((label(name), *cells))
    return Table(
        (
            Column("policy", text=True),
            *(Column(f"load {x:g}", ".2f", best="high") for x in benchmark.loads),
        ),
        tuple(rows),
        "Goodput per second, and share within targets",
        ("of requests that met the targets of their class, by weight",),
    )


def _verdict(name: str, load: float, results: dict[str, Any], marks: bool) -> Cell:
    verdict = results[f"stability-{slug(name)}-{load:g}"]["verdict"]
    return Cell(verdict, MARKS[verdict] if marks else None, emphasis=LOOKS[verdict])


def _digits(digits: int, unit: float = 1.0) -> Any:
    """Few digits, and none after the point from 100 on."""

    def shown(value: float) -> str:
        value /= unit
        return f"{value:.{0 if abs(value) >= 100 else digits}f}"

    return shown
