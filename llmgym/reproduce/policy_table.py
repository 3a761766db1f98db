"""Every policy on the engine of Figure 1: capacity against the limit, and latency against load."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt

from llmgym import baselines
from llmgym.evaluation import policies as resolving
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.evaluation.simulate import simulate
from llmgym.reporting import charts
from llmgym.reproduce.items import (
    CONFIDENCE,
    Check,
    Data,
    Effort,
    Item,
    Picture,
    estimated,
    learned,
    record,
)
from llmgym.reproduce.theorem_2 import WORK_CONSERVING, paper
from llmgym.scenario.scenario import Scenario
from llmgym.theory.bounds import theorem2_capacity

LOADS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
QUICK_LOADS = (0.5, 0.8)
QUICK = ("vllm", "orca", "sarathi")

GROUPS = {
    "the paper's four": baselines.PAPER,
    "tiles": ("greedy_rate", "tile_align", "flush", "index", "always_full", "rad"),
    "engines in use": ("vllm_v1", "slai", "exclusive_batching", "exclusive_batching_plus", "wait"),
    "order and fairness": ("spf", "srpt", "las", "mlfq", "edf", "vtc"),
}
"""Policies that share a chart; learned ones have one of their own, beside Sarathi-Serve and a rule."""


def engine() -> Scenario:
    """The engine of Figure 1; lengths are known and service is counted, for the policies that need it."""
    return replace(paper(), lengths_known=True, service_weights=(1, 2), slots=512)


def _names(effort: Effort) -> tuple[str, ...]:
    return effort.pick((*baselines.names(), *learned()), (*QUICK, *learned()[:1]))


def _measured(effort: Effort, name: str) -> Data:
    """The capacity of a policy, and its latencies at loads below it."""
    policy, limit = resolving.resolve(name), theorem2_capacity(paper())
    saturates = getattr(policy, "saturates", False)
    estimate = estimate_capacity(
        engine(), policy, replications=effort.pick(8, 4), seed=effort.seed, confidence=CONFIDENCE,
        requests=effort.pick(2000, 600) if saturates else effort.pick(150, 60),
    )  # fmt: skip
    drawn = {n for group in GROUPS.values() for n in group} | set(learned())
    loads = [x for x in effort.pick(LOADS, QUICK_LOADS) if x * limit < estimate.low]
    rows = [_latency(effort, name, load) for load in loads] if name in drawn else []
    return record(estimate) | {"limit": limit, "rows": rows}


def _latency(effort: Effort, name: str, load: float) -> Data:
    rate = load * theorem2_capacity(paper())
    duration_s = effort.pick(3000, 900) / rate
    run = simulate(
        engine().at_rate(rate), name, duration_s=duration_s, warmup_s=duration_s / 3,
        num_envs=effort.pick(8, 4), seed=effort.seed,
    )  # fmt: skip
    kept = ("requests_per_s", "mean_in_system", "dropped", "ttft_ms", "tpot_ms", "e2e_ms")
    return {"load": load} | {k: run.summary[k] for k in kept}


def _parts(effort: Effort) -> dict[str, Any]:
    return {name: partial(_measured, effort, name) for name in _names(effort)}


def _judge(data: Data) -> list[Check]:
    limit = next(iter(data.values()))["limit"]
    checks = [
        estimated(f"{name}: capacity is the limit, requests/s", limit, data[name])
        for name in WORK_CONSERVING
    ]
    above = [name for name, found in data.items() if found["low"] > limit]
    what = f"of {len(data)} policies those whose capacity exceeds the limit"
    checks.append(
        Check(what, "none", ", ".join(above) or "none", "fail" if above else "pass",
              f"{100 * CONFIDENCE:g} % intervals")
    )  # fmt: skip
    share = data["vllm"]["requests_per_s"] / limit
    low, high = (data["vllm"][k] / limit for k in ("low", "high"))
    checks.append(
        Check("vanilla vLLM: share of the limit", 0.76, share,
              "pass" if low - 0.005 <= 0.76 <= high + 0.005 else "fail",
              f"in the {100 * CONFIDENCE:g} % interval", low, high)
    )  # fmt: skip
    return checks


def _draw_capacities(data: Data) -> plt.Figure:
    order = sorted(data, key=lambda name: -data[name]["requests_per_s"])
    limit = data[order[0]]["limit"]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.21 * len(order)), layout="constrained")
    charts.capacity_bars(axis, {name: data[name] for name in order}, limit, fontsize=8)
    axis.set_xlabel(f"capacity (requests/s); dashed: the limit, {limit:.2f}")
    return figure


def _shown(data: Data) -> dict[str, list[str]]:
    """The policies of each chart, as far as they have latencies."""
    trained = [name for name in learned() if name in data]
    groups = GROUPS | ({"learned": ("sarathi", "index", *trained)} if trained else {})
    found = {
        title: [n for n in dict.fromkeys(("sarathi", *names)) if n in data and data[n]["rows"]]
        for title, names in groups.items()
    }
    return {title: names for title, names in found.items() if len(names) > 1}


def _draw_grid(data: Data, x: str, parts: tuple[tuple[str, str, str], ...]) -> plt.Figure:
    """A column for each group of policies, a row for each latency."""
    groups = _shown(data)
    width, count = 2.9, len(groups)
    figure, axes = plt.subplots(
        len(parts), count, figsize=(max(width * count, 5), 2.9 * len(parts) + 0.9), squeeze=False,
        sharex=True, sharey="row", layout="constrained",
    )  # fmt: skip
    for column, (title, names) in enumerate(groups.items()):
        for row, (latency, part, ylabel) in enumerate(parts):
            axis = axes[row, column]
            points = {
                name: [charts.Point(r[x], r[latency][part] / 1000) for r in data[name]["rows"]]
                for name in names
            }
            charts.curves(axis, points)
            charts.log_scale(axis)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(ylabel)
        axes[0, column].set_title(title, fontsize=10)
        last = axes[-1, column]
        last.set_xlabel("load" if x == "load" else "throughput (requests/s)")
        last.legend(
            handles=charts.handles(names), fontsize=7, frameon=False, loc="upper center",
            bbox_to_anchor=(0.5, -0.22),
        )  # fmt: skip
    return figure


def _draw_latency(data: Data) -> plt.Figure:
    mean, tail = (
        ("e2e_ms", "mean", "mean E2E latency (s)"),
        ("e2e_ms", "p99", "p99 E2E latency (s)"),
    )
    return _draw_grid(data, "load", (mean, tail))


def _draw_plane(data: Data) -> plt.Figure:
    return _draw_grid(data, "requests_per_s", (("ttft_ms", "p99", "p99 TTFT (s)"),))


policies = Item(
    "policies",
    "Every policy against the limit",
    "arXiv:2504.07347v3, Table 1; capacities and latencies measured here",
    _parts,
    _judge,
    (
        Picture(
            "capacities",
            "Capacity of every policy that ships on (129, 112)-token requests and a budget of 512, "
            "with 99.9 % intervals; dashed, what no policy exceeds.",
            _draw_capacities,
        ),
        Picture(
            "latency",
            "Mean and 99th percentile of the end-to-end latency against load, the limit being 1. Lines "
            "end where the load reaches what a policy carries. Sarathi-Serve is in every column.",
            _draw_latency,
        ),
        Picture(
            "throughput-latency",
            "Throughput against the 99th percentile of the time to first token.",
            _draw_plane,
        ),
    ),
)
