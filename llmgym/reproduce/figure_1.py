"""Figure 1 of arXiv:2504.07347v3: two of four policies stay flat, and two diverge."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from llmgym import baselines
from llmgym.evaluation.simulate import simulate
from llmgym.evaluation.stability import slope_of_second_half
from llmgym.reporting.palette import style
from llmgym.reproduce.items import (
    Check,
    Data,
    Effort,
    Item,
    Picture,
    at_least,
    between,
    equal,
    sampled,
)
from llmgym.reproduce.theorem_2 import paper
from llmgym.scenario import library
from llmgym.theory.bounds import faster_transformer_capacity

RATE_PER_S = 11.1
DURATION_S = 1200.0
SLOTS = {"faster_transformer": 16384, "vllm": 4096}
"""A table that holds what the diverging policies gather in 20 minutes."""


def _run(effort: Effort, policy: str) -> Data:
    """Requests in the system over 20 minutes, and their growth over the second half, requests/s."""
    slots, duration_s, replications = SLOTS.get(policy, 1024), DURATION_S, effort.pick(8, 4)
    if policy == "faster_transformer":  # its table is large, and there is no doubt about it
        replications = 2
        slots, duration_s = effort.pick((slots, duration_s), (slots // 2, duration_s / 2))
    scenario = library.scenario("paper-figure-1", arrival_rate_per_s=RATE_PER_S, slots=slots)
    run = simulate(
        scenario, policy, duration_s=duration_s, warmup_s=duration_s / 6, num_envs=replications,
        seed=effort.seed, record=False,
    )  # fmt: skip
    ticks_per_s = 1000 / run.tick_ms
    start, present = run.raw["start"], run.raw["present"]
    growth = [
        slope_of_second_half(start[:, n], present[:, n].astype(float), duration_s * ticks_per_s)[0]
        for n in range(replications)
    ]
    path = run.trajectory[run.trajectory.env == 0]
    path = path.iloc[:: max(len(path) // 400, 1)]
    arrivals = RATE_PER_S * duration_s / 2 * replications
    return {
        # Of a least-squares slope, where what arrives is random and what leaves is not.
        "standard_error": RATE_PER_S * (1.2 / arrivals) ** 0.5,
        "growth_per_s": [g * ticks_per_s for g in growth],
        "mean_in_system": run.summary["mean_in_system"],
        "in_system": run.summary["in_system"],
        "dropped": run.summary["dropped"],
        "time_s": (path.time_ms / 1000).tolist(),
        "path": path.in_system.tolist(),
    }


def _parts(effort: Effort) -> dict[str, Any]:
    return {name: partial(_run, effort, name) for name in baselines.PAPER}


def _judge(data: Data) -> list[Check]:
    checks = []
    for name in ("sarathi", "orca"):
        found = data[name]
        checks.append(between(f"{name}: requests present, mean", 90, 190, found["mean_in_system"]))
        checks.append(sampled(f"{name}: growth, requests/s", 0.0, found["growth_per_s"]))
    for name in ("vllm", "faster_transformer"):
        found = data[name]
        grows = "grows" if min(found["growth_per_s"]) > 0 else "does not grow"
        checks.append(equal(f"{name}: in every replication the number present", "grows", grows))
        # Diverges: far above any plateau that it might have been climbing to (500-650 near 10.4).
        checks.append(at_least(f"{name}: present at the end", 1000, found["in_system"]))
    alone = faster_transformer_capacity(129, 112, paper().engine)
    found = data["faster_transformer"]
    growth, half = np.mean(found["growth_per_s"]), 4 * found["standard_error"]
    rate = RATE_PER_S - alone
    what = "faster_transformer: growth, requests/s, within 4 standard errors of the arrivals"
    checks.append(between(what, rate - half, rate + half, growth))
    dropped = sum(data[name]["dropped"] for name in baselines.PAPER)
    checks.append(equal("requests dropped", 0, dropped))
    return checks


def _draw(data: Data) -> plt.Figure:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharex=True)
    for axis in axes:
        for name in baselines.PAPER:
            look = style(name)
            axis.plot(
                np.array(data[name]["time_s"]) / 60, data[name]["path"], color=look.colour,
                ls=look.line, lw=1.6, label=name,
            )  # fmt: skip
        axis.set_xlim(0, DURATION_S / 60)
        axis.set_xticks(range(0, int(DURATION_S / 60) + 1, 5))
        axis.set_xlabel("time (minutes)")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, 1300)
    axes[0].set_ylabel("requests in the system")
    axes[0].legend(frameon=False)
    axes[1].set_yscale("log")
    axes[1].set_ylim(10)
    axes[1].set_title("the same on a logarithmic scale", fontsize=10)
    return figure


figure_1 = Item(
    "figure-1",
    "Two of four policies stay flat, two diverge",
    "arXiv:2504.07347v3, Figure 1; 11.1 requests/s at a token budget of 512",
    _parts,
    _judge,
    (
        Picture(
            "figure-1",
            "Figure 1: requests in the system under the four policies, (129, 112) tokens, 11.1 "
            "requests/s, 80 % of what the token budget of 512 can serve.",
            _draw,
        ),
    ),
)
