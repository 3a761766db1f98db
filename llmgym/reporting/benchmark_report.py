"""Tables and pictures of a benchmark, made from its raw results alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from llmgym.core.files import write
from llmgym.evaluation.benchmark import Benchmark, slug
from llmgym.reporting import charts
from llmgym.reporting.service_tables import percent

MARKS = {"stable": "●", "unstable": "✗", "undecided": "?"}


def rows(benchmark: Benchmark, results: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record for each policy and load: the content of ``results.csv``."""
    limit = results["limit"]["requests_per_s"]
    records = []
    for name in benchmark.policies:
        estimate = results[f"capacity-{slug(name)}"]
        for load in benchmark.loads:
            verdict = results[f"stability-{slug(name)}-{load:g}"]
            summary = results[f"latency-{slug(name)}-{load:g}"]["summary"]
            record = {
                "policy": name,
                "load": load,
                "arrival_rate_per_s": load * limit,
                "limit_requests_per_s": limit,
                "capacity_requests_per_s": estimate["requests_per_s"],
                "capacity_low": estimate["low"],
                "capacity_high": estimate["high"],
                "capacity_method": estimate["method"],
                "verdict": verdict["verdict"],
                "growth_tokens_per_ms": verdict["growth_tokens_per_ms"],
                "growth_low": verdict["low"],
                "growth_high": verdict["high"],
            }
            for key in ("requests_per_s", "mean_in_system", "dropped", "unfinished"):
                record[key] = summary[key]
            if "slo" in summary:
                record |= {k: summary[k] for k in ("goodput_per_s", "slo_attainment")}
                for job_class, level in summary["slo"].items():
                    record[f"slo_attainment_{job_class}"] = level["attainment"]
            for latency in ("ttft_ms", "tpot_ms", "e2e_ms"):
                for part, value in summary[latency].items():
                    record[f"{latency}_{part}"] = value
            records.append(record)
    return records


def label(name: str) -> str:
    """A policy's name as tables and pictures show it; a star: prompts are split at the budget."""
    _, colon, function = name.partition(".py:")
    if colon:
        return function
    if name.endswith(".npz"):
        return Path(name).stem
    return name.replace(":prompts=split", "*").replace("faster_transformer", "FasterTransf.")


def simple_table(title: str, headings: str, caption: str | None = None) -> Table:
    """A table with ``|`` between its headings, all but the first column right-aligned."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, heading in enumerate(headings.split("|")):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    return table


def tables(benchmark: Benchmark, results: dict[str, Any]) -> Group:
    """Capacities and verdicts, latencies, and goodput where there are targets; 80 columns."""
    limit = results["limit"]["requests_per_s"]
    first = simple_table(
        f"{benchmark.scenario.name}: capacity, and stability at loads of the limit",
        "policy|requests/s|+-|of limit|method|" + "|".join(f"{x:g}" for x in benchmark.loads),
        f"limit {limit:.3f} requests/s ({results['limit']['tokens_per_ms']:.3f} tokens/ms);"
        " ● stable  ✗ unstable  ? undecided  * prompts split",
    )
    for name in benchmark.policies:
        estimate = results[f"capacity-{slug(name)}"]
        verdicts = (results[f"stability-{slug(name)}-{x:g}"]["verdict"] for x in benchmark.loads)
        first.add_row(
            label(name),
            f"{estimate['requests_per_s']:.3f}",
            f"{(estimate['high'] - estimate['low']) / 2:.3f}",
            f"{100 * estimate['requests_per_s'] / limit:.1f} %",
            estimate["method"],
            *(MARKS[v] for v in verdicts),
        )
    latencies = _latency_table(benchmark, results)
    judged = [r for n, r in results.items() if n.startswith("latency-") and "slo" in r["summary"]]
    return Group(first, latencies, *([_goodput_table(benchmark, results)] if judged else []))


def _goodput_table(benchmark: Benchmark, results: dict[str, Any]) -> Table:
    table = simple_table(
        "Goodput per second, and share within targets",
        "policy|" + "|".join(f"load {load:g}" for load in benchmark.loads),
        "of requests that met the targets of their class, by weight",
    )
    for name in benchmark.policies:
        found = [results[f"latency-{slug(name)}-{x:g}"]["summary"] for x in benchmark.loads]
        cells = (f"{s['goodput_per_s']:.2f} {percent(s['slo_attainment']):>7}" for s in found)
        table.add_row(label(name), *cells)
    return table


def _latency_table(benchmark: Benchmark, results: dict[str, Any]) -> Table:
    table = simple_table(
        "Latencies of finished requests, mean and 99th percentile",
        "policy||in sys.|TTFT s|p99|TPOT ms|E2E s|p99|left|dropped",
        "in sys.: time average; left: unfinished per run. The latencies of an unstable row grow with"
        " the length of the run, and end where the table is full and drops requests.",
    )
    for load in benchmark.loads:
        table.add_row(f"[bold]load {load:g}[/bold]")
        for name in benchmark.policies:
            verdict = results[f"stability-{slug(name)}-{load:g}"]["verdict"]
            s = results[f"latency-{slug(name)}-{load:g}"]["summary"]
            table.add_row(
                f" {label(name)}",
                MARKS[verdict],
                number(s["mean_in_system"], 1),
                number(s["ttft_ms"]["mean"], 2, 1000),
                number(s["ttft_ms"]["p99"], 2, 1000),
                number(s["tpot_ms"]["mean"], 1),
                number(s["e2e_ms"]["mean"], 2, 1000),
                number(s["e2e_ms"]["p99"], 2, 1000),
                number(s["unfinished"], 0),
                f"{s['dropped']}",
                end_section=name == benchmark.policies[-1],
            )
    return table


def number(value: float | None, digits: int, unit: float = 1.0) -> str:
    """A latency or count as tables show it: few digits, a dash where there is none."""
    if value is None:
        return "-"
    value /= unit
    return f"{value:.{0 if abs(value) >= 100 else digits}f}"


def picture(benchmark: Benchmark, results: dict[str, Any]) -> plt.Figure:
    """Capacities, requests in system over time, and mean and p99 latency against load."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    _capacities(axes[0, 0], benchmark, results)
    _trajectories(axes[0, 1], benchmark, results)
    _against_load(axes[1, 0], benchmark, results, "e2e_ms", "mean", "mean E2E latency (s)")
    _against_load(axes[1, 1], benchmark, results, "ttft_ms", "p99", "p99 TTFT (s)")
    figure.suptitle(f"{benchmark.scenario.name}: scheduling policies against the limit")
    handles = charts.handles(benchmark.policies, label)
    figure.legend(handles=handles, loc="outside lower center", ncol=4, frameon=False)
    return figure


def _capacities(axis: plt.Axes, benchmark: Benchmark, results: dict[str, Any]) -> None:
    limit = results["limit"]["requests_per_s"]
    estimates = {name: results[f"capacity-{slug(name)}"] for name in benchmark.policies}
    charts.capacity_bars(axis, estimates, limit, label)
    axis.set_title(f"Capacity (requests/s); dashed: no policy exceeds {limit:.2f}", fontsize=10)


def _trajectories(axis: plt.Axes, benchmark: Benchmark, results: dict[str, Any]) -> None:
    load = min(benchmark.loads, key=lambda x: abs(x - 0.8))
    found = {name: results[f"latency-{slug(name)}-{load:g}"] for name in benchmark.policies}
    paths = {n: f["trajectory"] for n, f in found.items()}
    charts.over_time(axis, {n: (p["time_s"], p["in_system"]) for n, p in paths.items()})
    slots = benchmark.scenario.slots
    if any(f["summary"]["dropped"] for f in found.values()):
        axis.axhline(slots, color="grey", ls=":", lw=1)
        axis.annotate(
            "table full: arrivals are dropped",
            (1, slots),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color="grey",
            fontsize=8,
        )
    axis.set_yscale("symlog", linthresh=10)
    axis.set_ylim(0, 2 * slots)
    axis.set_xlabel("time (s)")
    axis.set_title(f"Requests in system at load {load:g}", fontsize=10)


def _against_load(
    axis: plt.Axes,
    benchmark: Benchmark,
    results: dict[str, Any],
    latency: str,
    part: str,
    title: str,
) -> None:
    charts.curves(axis, _points(benchmark, results, "load", latency, part), label)
    charts.log_scale(axis)
    axis.set_xlabel("load (fraction of the limit)")
    axis.set_title(f"{title}; crosses: not stable, grow with the run", fontsize=10)


def plane(benchmark: Benchmark, results: dict[str, Any]) -> plt.Figure:
    """Throughput against mean and p99 latency; only where a policy is stable."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained", sharex=True)
    for axis, (latency, part) in zip(axes, (("e2e_ms", "mean"), ("ttft_ms", "p99")), strict=True):
        points = _points(benchmark, results, "requests_per_s", latency, part)
        stable = {n: [p for p in several if p.stable] for n, several in points.items()}
        charts.curves(axis, {n: several for n, several in stable.items() if several}, label)
        axis.axvline(results["limit"]["requests_per_s"], color="black", ls="--", lw=1)
        charts.log_scale(axis)
        axis.set_xlabel("throughput (requests/s)")
        axis.set_ylabel(f"{part} {latency.removesuffix('_ms').upper()} (s)")
    handles = charts.handles(benchmark.policies, label)
    figure.legend(handles=handles, loc="outside lower center", ncol=4, frameon=False)
    return figure


def _points(
    benchmark: Benchmark, results: dict[str, Any], x: str, latency: str, part: str
) -> dict[str, list[charts.Point]]:
    """For each policy its points in order of load: load or throughput, latency in s, stable or not."""
    found: dict[str, list[charts.Point]] = {}
    for name in benchmark.policies:
        for load in sorted(benchmark.loads):
            verdict = results[f"stability-{slug(name)}-{load:g}"]["verdict"]
            summary = results[f"latency-{slug(name)}-{load:g}"]["summary"]
            value = summary[latency][part]
            if value is not None:
                at = load if x == "load" else summary[x]
                point = charts.Point(at, value / 1000, verdict == "stable")
                found.setdefault(name, []).append(point)
    return found


def publish(benchmark: Benchmark, results: dict[str, Any], out: Path) -> list[Path]:
    """Write results.csv, benchmark.png and benchmark.svg into ``out``; their paths."""
    records = rows(benchmark, results)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    paths = [out / "results.csv", out / "benchmark.png", out / "benchmark.svg"]
    write(paths[0], text.getvalue())
    save_picture(picture(benchmark, results), paths[1:])
    return paths


def save_picture(figure: plt.Figure, paths: list[Path]) -> None:
    """Write a figure to files of any format; the same figure gives the same bytes."""
    for path in paths:
        data = io.BytesIO()
        # Without a date and with fixed ids the same results give the same file.
        with plt.rc_context({"svg.hashsalt": "llmgym"}):
            metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
            figure.savefig(data, format=path.suffix[1:], dpi=110, metadata=metadata)
        write(path, data.getvalue())
    plt.close(figure)
