"""Rows and pictures of a benchmark, made from its raw results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from llmgym.core.files import write
from llmgym.core.pictures import bytes_of
from llmgym.core.reading import as_written
from llmgym.core.text import drawn
from llmgym.evaluation.benchmark import Benchmark, slug
from llmgym.reporting import charts
from llmgym.reporting.benchmark_tables import label, tables
from llmgym.reporting.table import csv_text


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


def picture(benchmark: Benchmark, results: dict[str, Any]) -> plt.Figure:
    """Capacities, requests in system over time, and mean and p99 latency against load."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    _capacities(axes[0, 0], benchmark, results)
    _trajectories(axes[0, 1], benchmark, results)
    _against_load(axes[1, 0], benchmark, results, "e2e_ms", "mean", "mean E2E latency (s)")
    _against_load(axes[1, 1], benchmark, results, "ttft_ms", "p99", "p99 TTFT (s)")
    figure.suptitle(f"{drawn(benchmark.scenario.name)}: scheduling policies against the limit")
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
    """The points of each policy in order of load: load or throughput, latency in s, whether stable."""
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
    """Write results.csv, benchmark.png and benchmark.svg; their paths.

    Args:
        benchmark: what was measured.
        results: of ``llmgym.evaluation.benchmark.run``, by name.
        out: the folder, made where it does not exist.

    Raises:
        LLMGymError: a file cannot be written.
    """
    paths = [out / "results.csv", out / "benchmark.png", out / "benchmark.svg"]
    with as_written(out / "raw"):
        text = csv_text(rows(benchmark, results))
        for table in tables(benchmark, results):
            table.to_text()
        figure = picture(benchmark, results)
        write(paths[0], text)
        save_picture(figure, paths[1:])
    return paths


def save_picture(figure: plt.Figure, paths: list[Path]) -> None:
    """Write a figure to files of any format; the same figure gives the same bytes."""
    try:
        for path in paths:
            write(path, bytes_of(figure, path.suffix[1:], dpi=110))
    finally:
        plt.close(figure)
