"""The HTML page of a benchmark: any scenario, any policies, in one file that opens offline."""

from __future__ import annotations

from typing import Any

from llmgym.core.files import to_json
from llmgym.evaluation.benchmark import Benchmark, slug
from llmgym.reporting import benchmark_report as report
from llmgym.reporting.html import Page, inline_svg


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
    _capacities(shown, benchmark, results)
    _latencies(shown, benchmark, results)
    shown.heading("Configuration")
    shown.listing(to_json({k: v for k, v in benchmark.config().items() if k != "scenario"}))
    shown.listing(benchmark.config()["scenario"])
    return shown.html()


def _capacities(shown: Page, benchmark: Benchmark, results: dict[str, Any]) -> None:
    shown.heading("Capacity and stability")
    limit, rows = results["limit"]["requests_per_s"], []
    for name in benchmark.policies:
        found = results[f"capacity-{slug(name)}"]
        verdicts = [results[f"stability-{slug(name)}-{x:g}"]["verdict"] for x in benchmark.loads]
        value = found["requests_per_s"]
        interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
        share = f"{100 * value / limit:.1f} %"
        rows.append(
            (report.label(name), f"{value:.3f}", interval, share, found["method"], *verdicts)
        )
    loads = [f"load {x:g}" for x in benchmark.loads]
    shown.table(("policy", "requests/s", "interval", "of the limit", "method", *loads), rows)


def _latencies(shown: Page, benchmark: Benchmark, results: dict[str, Any]) -> None:
    shown.heading(
        "Latency",
        "Of finished requests. Those of an unstable policy grow with the length of the run.",
    )
    rows: list[tuple[str, ...]] = []
    for load in benchmark.loads:
        rows.append((f"load {load:g}",))
        for name in benchmark.policies:
            s = results[f"latency-{slug(name)}-{load:g}"]["summary"]
            verdict = results[f"stability-{slug(name)}-{load:g}"]["verdict"]
            cells = (
                report.number(s["mean_in_system"], 1),
                report.number(s["ttft_ms"]["mean"], 2, 1000),
                report.number(s["ttft_ms"]["p99"], 2, 1000),
                report.number(s["tpot_ms"]["mean"], 1),
                report.number(s["e2e_ms"]["mean"], 2, 1000),
                report.number(s["e2e_ms"]["p99"], 2, 1000),
                f"{s['dropped']}",
            )
            rows.append((report.label(name), verdict, *cells))
    headings = "policy|verdict|in system|TTFT s|p99|TPOT ms|E2E s|p99|dropped"
    shown.table(headings.split("|"), rows)
