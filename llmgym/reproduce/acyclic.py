"""Load balancing and acyclic networks: the boundary is where the busiest engine is full."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt

from llmgym.evaluation.capacity import estimate_capacity
from llmgym.reporting.palette import style
from llmgym.reproduce.items import (
    CONFIDENCE,
    Check,
    Data,
    Effort,
    Item,
    Picture,
    equal,
    estimated,
    near,
    record,
)
from llmgym.scenario import library
from llmgym.theory.capacity import capacity

ACYCLIC = ("pipeline-dag", "diamond-dag", "fork-join")

REQUESTS = {"fork-join": 600}
"""Jobs that each part of a run waits for; forked calls arrive one at a time, which is slow."""


def _measured(effort: Effort, name: str) -> Data:
    """The limit of a network and its bottleneck, and what Sarathi-Serve on every engine carries."""
    scenario = library.scenario(name)
    limit = capacity(scenario)
    estimate = estimate_capacity(
        scenario,
        "sarathi",
        replications=8,
        requests=REQUESTS.get(name, 2000),
        seed=effort.seed,
        confidence=CONFIDENCE,
    )
    busiest = max(limit.engines, key=lambda engine: engine.load)
    loads = {engine.name: engine.load / limit.load_factor for engine in limit.engines}
    return record(estimate) | {
        "limit": limit.requests_per_s,
        "bottleneck": limit.bottleneck,
        "busiest": busiest.name,
        "loads_at_the_limit": loads,
    }


def _balancing(effort: Effort) -> dict[str, Any]:
    return {"load-balanced": partial(_measured, effort, "load-balanced")}


def _judge_balancing(data: Data) -> list[Check]:
    found = data["load-balanced"]
    return [
        near("boundary for two engines, requests/s", 33.43, found["limit"], 0.005),
        estimated("what they carry behind the router, requests/s", found["limit"], found),
    ]


load_balancing = Item(
    "load-balancing",
    "Two engines behind a router carry twice as much",
    "arXiv:2504.07347v3, Proposition 3",
    _balancing,
    _judge_balancing,
)


def _acyclic(effort: Effort) -> dict[str, Any]:
    return {n: partial(_measured, effort, n) for n in effort.pick(ACYCLIC, ACYCLIC[:1])}


def _judge_acyclic(data: Data) -> list[Check]:
    checks = []
    for name, found in data.items():
        busiest = found["loads_at_the_limit"][found["busiest"]]
        checks += [
            near(f"{name}: load of {found['busiest']} at the limit", 1.0, busiest, 1e-9),
            equal(f"{name}: the engine that is full there", found["bottleneck"], found["busiest"]),
            estimated(f"{name}: what it carries, jobs/s", found["limit"], found),
        ]
    return checks


def _draw(data: Data) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6.4, 2.4), layout="constrained")
    look = style("sarathi")
    for n, found in enumerate(data.values()):
        share, low, high = (found[k] / found["limit"] for k in ("requests_per_s", "low", "high"))
        axis.errorbar(
            share,
            n,
            xerr=[[share - low], [high - share]],
            fmt=look.marker,
            color=look.colour,
            capsize=4,
        )
        axis.annotate(
            f"{found['requests_per_s']:.2f} of {found['limit']:.2f} jobs/s, {found['busiest']} is full",
            (share, n), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8,
        )  # fmt: skip
    axis.axvline(1.0, color="black", ls="--", lw=1)
    axis.set_yticks(range(len(data)), list(data))
    axis.set_ylim(-0.5, len(data) - 0.2)
    axis.set_xlim(0.96, 1.04)
    axis.set_xlabel(
        "measured capacity of sarathi on every engine, over the load at which one is full"
    )
    return figure


acyclic = Item(
    "acyclic-networks",
    "DAG and fork-join: the busiest engine is the boundary",
    "arXiv:2504.07347v3, section 5",
    _acyclic,
    _judge_acyclic,
    (
        Picture(
            "acyclic-networks",
            "Acyclic networks of engines carry jobs until their busiest engine is full (bars: 99.9 % "
            "intervals).",
            _draw,
        ),
    ),
)
