"""The HTML page of a benchmark: any scenario, any policies, in one file that opens offline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmgym.core.files import to_json
from llmgym.evaluation.benchmark import Benchmark
from llmgym.reporting import benchmark_report as report
from llmgym.reporting import benchmark_tables as tables
from llmgym.reporting.html import Page, inline_svg
from llmgym.reporting.table import Table


def page(benchmark: Benchmark, results: dict[str, Any]) -> str:
    """Pictures, tables and configuration of a benchmark as one self-contained HTML file."""
    scenario, limit = benchmark.scenario, results["limit"]
    shown = Page(
        f"llmgym: policies on {scenario.name}",
        f"No policy exceeds {limit['requests_per_s']:.3f} requests/s ({limit['tokens_per_ms']:.3f} "
        f"tokens/ms). {benchmark.replications} replications of {benchmark.arrivals:,} requests, seed "
        f"{benchmark.seed}. {scenario.description}",
    )
    pictures = (
        (
            "benchmark",
            report.picture(benchmark, results),
            "Capacity with 95 % intervals, requests in the system over time, and latency against load.",
        ),
        (
            "throughput-latency",
            report.plane(benchmark, results),
            "Throughput against latency where a policy is stable; dashed: the limit.",
        ),
    )
    for name, figure, caption in pictures:
        shown.picture(inline_svg(figure, name), name, caption)
        report.plt.close(figure)
    shown.heading("Capacity and stability")
    shown.table(_bare(tables.capacity_table(benchmark, results, marks=False)))
    shown.heading(
        "Latency",
        "Of finished requests. Those of an unstable policy grow with the length of the run.",
    )
    shown.table(_bare(tables.latency_table(benchmark, results, marks=False)))
    shown.heading("Configuration")
    shown.listing(to_json({k: v for k, v in benchmark.config().items() if k != "scenario"}))
    shown.listing(benchmark.config()["scenario"])
    return shown.html()


def _bare(table: Table) -> Table:
    """A table without its title and notes, which the page states itself."""
    return replace(table, title="", notes=())
