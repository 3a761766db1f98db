"""The limit on the requests in a batch: corner C to the token, and the polygon (arXiv:2504.07347v3, 6)."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from llmgym import baselines
from llmgym.core.errors import UnservableWarning
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.evaluation.simulate import simulate
from llmgym.reporting.palette import style
from llmgym.reproduce.items import (
    CONFIDENCE,
    Check,
    Data,
    Effort,
    Item,
    Picture,
    equal,
    near,
    record,
)
from llmgym.scenario import library
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload
from llmgym.theory.region import stability_polygon

CORNER_RUNS = {
    "sarathi-128": 50_140,
    "orca-128": 98_219,
    "sarathi-1024": 103_187,
    "vllm-128": 382_720,
    "faster_transformer-128": 382_720,
}
"""For each policy and token budget, the unprocessed tokens after 140 s."""


def _corner(row: str) -> Data:
    policy, _, budget = row.rpartition("-")
    scenario = library.scenario("corner-c", token_budget=int(budget))
    with warnings.catch_warnings():  # whole prompts above the budget never run, which is the point
        warnings.simplefilter("ignore", UnservableWarning)
        run = simulate(scenario, policy, duration_s=140, record=False)
    path = run.trajectory.iloc[:: max(len(run.trajectory) // 300, 1)]
    last = run.batches.tail(500)
    held = set(zip(last.prefill_tokens.tolist(), last.decode_tokens.tolist(), strict=True))
    return {
        "backlog_tokens": int(run.summary["backlog_tokens"]),
        "batches": len(run.batches),
        "last_batches": sorted(held)[:9],
        "time_s": [*(path.time_ms / 1000), 140.0],
        "path": [*path.backlog_tokens, run.summary["backlog_tokens"]],
    }


def _corner_parts(effort: Effort) -> dict[str, Any]:
    return {row: partial(_corner, row) for row in CORNER_RUNS}


def _judge_corner(data: Data) -> list[Check]:
    checks = [
        equal(f"{row}: unprocessed tokens at 140 s", tokens, data[row]["backlog_tokens"])
        for row, tokens in CORNER_RUNS.items()
    ]
    locked = " ".join(f"{p}+{d}" for p, d in data["sarathi-128"]["last_batches"])
    checks.append(equal("sarathi-128: its last 500 batches, prefill + decode", "29+99", locked))
    for name in ("faster_transformer", "vllm"):
        checks.append(equal(f"{name}: batches, prompts whole", 0, data[f"{name}-128"]["batches"]))
    return checks


def _draw_corner(data: Data) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for row in CORNER_RUNS:
        policy, _, budget = row.rpartition("-")
        look, frozen = style(policy), policy == "vllm"  # FasterTransformer lies exactly on it
        axis.plot(
            data[row]["time_s"], np.array(data[row]["path"]) / 1000, color=look.colour,
            ls="-" if frozen else "--" if budget == "1024" else look.line,
            lw=5 if frozen else 1.6, alpha=0.5 if frozen else 1, label=f"{policy}, budget {budget}",
        )  # fmt: skip
    axis.set_xlabel("time (s)")
    axis.set_ylabel("unprocessed tokens (thousands)")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


corner_c = Item(
    "corner-c",
    "Corner C: only Sarathi-Serve with one tile is stable",
    "arXiv:2504.07347v3, section 6.2 and Figure 14; figures at 140 s derived",
    _corner_parts,
    _judge_corner,
    (
        Picture(
            "corner-c",
            "Corner C: one request of 290 prompt and 990 output tokens every 467.5 ms, at most 100 "
            "requests a batch. vLLM and FasterTransformer never form a batch and share a line.",
            _draw_corner,
        ),
    ),
)

ENGINE = Engine(CODELLAMA_34B_A100, 1024, max_num_seqs=100)
POLYGON = stability_polygon(ENGINE)
CORNERS = {
    "A": (3.4707, 0.0),
    "B": (3.1352, 0.3355),
    "C": (0.6203, 2.1176),
    "D": (0.0, 2.1390),
}
EDGES = ("AB", "BC", "CD")
LONG = 12_800
"""Tokens of a request on BC: corner B needs one prompt that brings 925 tokens to a batch."""

BEST: dict[str, tuple[str, dict[str, Any], int]] = {
    "AB": ("sarathi", {}, 1280),
    "BC-0.3": ("sarathi", {"token_budget": 384}, LONG),
    "BC-0.7": ("max_pressure", {}, LONG),
    "CD": ("sarathi", {"token_budget": 128}, 1280),
}
"""Policies that carry the points of an edge: name, settings, mean tokens of a request."""

INSIDE = 0.98
SHOWN = (0.95, 1.05)


def point(edge: str, share: float) -> np.ndarray:
    """A point of an edge, ``share`` of the way to its second corner: tokens/ms (prefill, decode)."""
    n = EDGES.index(edge)
    first, second = POLYGON.vertices[n : n + 2]
    return np.asarray((1 - share) * first + share * second)


def arrivals(rates: np.ndarray, request_tokens: int) -> Scenario:
    """Geometric requests of ``request_tokens`` tokens on average that arrive with these rates."""
    prefill, decode = rates / rates.sum() * request_tokens
    rate = Poisson(1000 * rates.sum() / request_tokens)
    return Scenario((ENGINE,), (Workload(rate, Geometric(prefill), Geometric(decode)),))


def _edge(effort: Effort, edge: str, share: float) -> Data:
    """What the best policy reaches on the ray through a point of an edge, as a factor of the point."""
    name, settings, tokens = BEST.get(f"{edge}-{share:g}") or BEST[edge]
    scenario = arrivals(point(edge, share), tokens)
    estimate = estimate_capacity(
        scenario, baselines.make(name, **settings), "saturation", requests=effort.pick(600, 200),
        seed=effort.seed, confidence=CONFIDENCE,
    )  # fmt: skip
    return {
        "policy": name,
        "settings": settings,
        "point": point(edge, share).tolist(),
        "vertices": POLYGON.vertices.tolist(),
        "factor": {
            k: v / scenario.arrival_rate_per_s if isinstance(v, float) else v
            for k, v in record(estimate).items()
        },
    }


def _edge_parts(effort: Effort) -> dict[str, Any]:
    shares = effort.pick((0.3, 0.7), (0.3,))
    return {f"{e}-{share:g}": partial(_edge, effort, e, share) for e in EDGES for share in shares}


def _judge_polygon(data: Data) -> list[Check]:
    vertices = next(iter(data.values()))["vertices"]
    checks = [
        near(f"corner {name}, {phase} tokens/ms", expected, found, 5e-5)
        for (name, corner), vertex in zip(CORNERS.items(), vertices, strict=True)
        for phase, expected, found in zip(("prefill", "decode"), corner, vertex, strict=True)
    ]
    for part, found in data.items():
        factor = found["factor"]
        f, low, high = (factor[k] for k in ("requests_per_s", "low", "high"))
        passed = f >= INSIDE and low <= 1.0
        checks.append(
            Check(
                f"{part}: {found['policy']} on the ray through the edge, as a factor",
                1.0, f, "pass" if passed else "fail",
                f"carries {INSIDE:g}, and 1 is not below the {100 * CONFIDENCE:g} % interval",
                low, high,
            )
        )  # fmt: skip
    return checks


def _draw_polygon(data: Data) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6.4, 5), layout="constrained")
    vertices = np.array([(0, 0), *next(iter(data.values()))["vertices"]])
    axis.fill(*vertices.T, color="#0072B2", alpha=0.12)
    axis.plot(*np.vstack([vertices, vertices[:1]]).T, color="black", lw=1.2)
    for name, corner in zip(CORNERS, vertices[1:], strict=True):
        aside = (10, 2) if name == "A" else (5, 8)
        axis.annotate(name, corner, xytext=aside, textcoords="offset points", weight="bold")
    for found in data.values():
        at, factor = np.array(found["point"]), found["factor"]
        axis.plot(*np.outer(at, (0.85, 1.15)), color="grey", lw=0.8, zorder=1)
        tint = style(found["policy"]).colour
        axis.plot(*np.outer(at, (factor["low"], factor["high"])), color=tint, lw=5, alpha=0.5)
        axis.plot(*(factor["requests_per_s"] * at), "|", color=tint, ms=9, mew=2)
        for scale in SHOWN:
            mark = "o" if factor["low"] > scale else "x" if factor["high"] < scale else "$?$"
            axis.plot(*(scale * at), mark, color="black", ms=6)
    shown = dict.fromkeys(found["policy"] for found in data.values())
    handles = [
        plt.Line2D([], [], color=style(n).colour, lw=4, label=f"capacity of {n}") for n in shown
    ]
    for mark, told in (("o", "carried"), ("x", "not carried")):
        handles.append(plt.Line2D([], [], color="black", marker=mark, ls="", label=told))
    axis.legend(handles=handles, frameon=False, loc="upper right")
    axis.set_xlabel("prefill tokens arriving per ms")
    axis.set_ylabel("decode tokens arriving per ms")
    axis.set_xlim(0, 3.9)
    axis.set_ylim(0, 2.5)
    return figure


polygon = Item(
    "polygon",
    "The stability region under a limit on the batch is a polygon",
    "arXiv:2504.07347v3, section 6 (corner C); polygon derived",
    _edge_parts,
    _judge_polygon,
    (
        Picture(
            "polygon",
            "The stability region for at most 100 requests a batch. Bars: the capacity of a policy on a "
            "ray, with its 99.9 % interval; points at 0.95 and 1.05 of the edge are inside and outside "
            "of it. BC is reached in the limit of long prompts.",
            _draw_polygon,
        ),
    ),
)
