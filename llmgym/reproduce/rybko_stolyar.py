"""The Rybko-Stolyar network (arXiv:2504.07347v3, section 5.4): two priorities, and where one is unstable.

Fluid limit of the bad priority: while n jobs of one type wait at their first engine and the other
engine is free, they move on at once and keep it busy for n/(mu - lambda), mu = 768/544 a time unit; the
other type gathers lambda*n/(mu - lambda) jobs meanwhile. So every peak is lambda/(mu - lambda) times the
one before: 4.14 at rho = 0.9, and 1 at lambda = mu/2, rho = 0.559.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import find_peaks

from llmgym.evaluation.simulate import Run, simulate
from llmgym.evaluation.stability import slope_of_second_half
from llmgym.reproduce.items import (
    Check,
    Data,
    Effort,
    Item,
    Picture,
    at_least,
    between,
    equal,
    near,
    sampled,
)
from llmgym.scenario import library
from llmgym.theory.capacity import at_load
from llmgym.theory.queueing_networks import virtual_station

NETWORKS = {"exit": "rybko-stolyar", "entry": "rybko-stolyar-reversed"}
"""Which class is put first: the one that exits there (bad), or the one that enters (good)."""

RHO = 0.9
BATCH_TOKENS, JOB_TOKENS, EXIT_TOKENS = 768, 608, 544
HORIZON_MS, QUICK_HORIZON_MS = 4500, 2700
LARGE = 30_000
"""Tokens above which a peak is no longer noise."""

CYCLE = 0.2
"""A peak is that of a cycle where the level falls by more than this part of its height on either side."""

SWEEP = (0.46, 0.50, 0.53, 0.56, 0.59, 0.62, 0.65)
SIDES = (0.50, 0.62)
BURST, WINDOWS = 200, 5
SLOTS = 2048


def growth_of_peaks(rho: float) -> float:
    """Each peak of the fluid limit over the one before: lambda/(mu - lambda)."""
    rate, exits = rho * BATCH_TOKENS / JOB_TOKENS, BATCH_TOKENS / EXIT_TOKENS
    return rate / (exits - rate)


def tokens_over_time(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Time in ms and tokens left in the whole network, (steps, envs)."""
    return run.raw["start"] * run.tick_ms, run.raw["backlog"].astype(float)


def _at_rho(effort: Effort, priority: str) -> Data:
    slots = effort.pick(8192, 4096) if priority == "exit" else SLOTS  # it must hold every job
    base = replace(library.scenario(NETWORKS[priority]), slots=slots)
    scenario, horizon_ms = at_load(base, RHO), effort.pick(HORIZON_MS, QUICK_HORIZON_MS)
    run = simulate(
        scenario, "priority", duration_s=horizon_ms / 1000, num_envs=effort.pick(8, 4),
        seed=effort.seed, record=False,
    )  # fmt: skip
    time, tokens = tokens_over_time(run)
    peaks: list[list[float]] = []
    growth: list[float] = []
    for n in range(run.num_envs):
        _, found = find_peaks(tokens[:, n], height=LARGE, prominence=0)
        deep = found["prominences"] > CYCLE * found["peak_heights"]
        peaks.append(found["peak_heights"][deep].tolist())
        growth.append(slope_of_second_half(time[:, n], tokens[:, n], horizon_ms)[0])
    every = max(len(time) // 600, 1)
    return {
        "peaks": peaks,
        "largest": tokens.max(axis=0).tolist(),
        "mean": float(tokens[len(tokens) // 2 :].mean()),
        "growth_tokens_per_ms": growth,
        "dropped": run.summary["dropped"],
        "time_ms": time[::every, 0].tolist(),
        "tokens": tokens[::every, 0].tolist(),
    }


def _sweep(effort: Effort, rhos: tuple[float, ...]) -> Data:
    """From 200 jobs of each type: the peak of the last second over that of the first, for each seed."""
    base = replace(library.scenario("rybko-stolyar"), slots=SLOTS)
    critical = virtual_station(base)
    assert critical is not None
    found: Data = {"critical_rho": critical.critical_load, "dropped": 0, "ratio": {}}
    for rho in rhos:
        run = simulate(
            at_load(base, rho), "priority", duration_s=WINDOWS, burst=BURST,
            num_envs=4, seed=effort.seed, record=False,
        )  # fmt: skip
        time, tokens = tokens_over_time(run)
        window = time // 1000
        first, last = (np.where(window == n, tokens, 0).max(axis=0) for n in (0, WINDOWS - 1))
        found["dropped"] += run.summary["dropped"]
        found["ratio"][f"{rho:g}"] = (last / first).tolist()
    return found


def _parts(effort: Effort) -> dict[str, Any]:
    rhos = effort.pick(SWEEP, SIDES)
    both = {priority: partial(_at_rho, effort, priority) for priority in NETWORKS}
    return both | {"sweep": partial(_sweep, effort, rhos)}


def cycles(peaks: list[float]) -> list[float]:
    """The highest peak of each cycle; a peak over twice the highest of a cycle begins the next one."""
    highest: list[float] = []
    for peak in peaks:
        if highest and peak <= 2 * highest[-1]:
            highest[-1] = max(peak, highest[-1])
        else:
            highest.append(peak)
    return highest


def _judge(data: Data) -> list[Check]:
    bad, good, sweep = data["exit"], data["entry"], data["sweep"]
    ratios = [np.log(b / a) for p in bad["peaks"] for a, b in pairwise(cycles(p))]
    grown = float(np.exp(np.mean(ratios))) if ratios else 0.0
    expected = growth_of_peaks(RHO)
    return [
        equal("jobs dropped", 0, bad["dropped"] + good["dropped"] + sweep["dropped"]),
        between(f"exit first, rho {RHO:g}: each large peak over the one before (fluid "
                f"{expected:.2f})", 3, 5, grown),
        at_least("exit first: least of the largest peaks, tokens", 85_000, min(bad["largest"])),
        between("entry first: tokens left, mean", 0, 20_000, good["mean"]),
        sampled("entry first: growth, tokens/ms", 0.0, good["growth_tokens_per_ms"]),
        near("virtual station: critical rho", 0.559, sweep["critical_rho"], 0.0005),
        between(f"exit first, rho {SIDES[0]:g}: peak after 5 s over the first, all seeds", 0, 0.25,
                max(sweep["ratio"][f"{SIDES[0]:g}"])),
        at_least(f"exit first, rho {SIDES[1]:g}: the same, all seeds", 1.5,
                 min(sweep["ratio"][f"{SIDES[1]:g}"])),
    ]  # fmt: skip


def _draw(data: Data) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    looks = (("exit", "exits", "#D55E00", "-"), ("entry", "enters", "#0072B2", "--"))
    for priority, told, tint, line in looks:
        found = data[priority]
        left.plot(
            found["time_ms"], np.maximum(found["tokens"], 1), color=tint, ls=line, lw=1.3,
            label=f"first the class that {told}",
        )  # fmt: skip
    left.set_yscale("log")
    left.set_ylim(1e3, 5e6)
    left.set_xlabel("time (batches)")
    left.set_ylabel("tokens left in the network")
    left.legend(frameon=False, loc="upper left")
    left.set_title(f"rho = {RHO:g}", fontsize=10)
    ratio = data["sweep"]["ratio"]
    rhos = sorted(ratio, key=float)
    for rho in rhos:
        right.plot([float(rho)] * len(ratio[rho]), ratio[rho], ".", color="#D55E00", alpha=0.4)
    middle = [float(np.median(ratio[rho])) for rho in rhos]
    right.plot(
        [float(r) for r in rhos], middle, "-o", color="#D55E00", ms=4, label="median of seeds"
    )
    critical = data["sweep"]["critical_rho"]
    right.axvline(critical, color="black", ls="--", lw=1)
    right.axhline(1.0, color="grey", lw=0.8)
    right.annotate(
        f"virtual station:\nrho = {critical:.3f}", (critical, 0.03), xycoords=("data", "axes fraction"),
        xytext=(4, 0), textcoords="offset points", fontsize=8,
    )  # fmt: skip
    right.set_yscale("log")
    right.set_xlabel("rho")
    right.set_ylabel("peak in the 5th second over the first")
    right.legend(frameon=False, loc="upper left")
    right.set_title("first the class that exits, from a backlog of 200 jobs a type", fontsize=10)
    return figure


rybko_stolyar = Item(
    "rybko-stolyar",
    "With cyclic routing a work-conserving priority can be unstable",
    "arXiv:2504.07347v3, section 5.4; threshold and growth derived",
    _parts,
    _judge,
    (
        Picture(
            "rybko-stolyar",
            "The Rybko-Stolyar network: tokens left under both priorities at rho = 0.9, and how the "
            "bad one turns from stable to unstable at the load of its virtual station.",
            _draw,
        ),
    ),
)
