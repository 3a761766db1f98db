"""Theorem 2 of arXiv:2504.07347v3: growth above the limit, the rate bound, and capacities."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from llmgym import baselines
from llmgym.evaluation import policies
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.evaluation.simulate import simulate
from llmgym.evaluation.stability import slope_of_second_half
from llmgym.reporting.palette import style
from llmgym.reproduce.items import (
    CONFIDENCE,
    Check,
    Data,
    Effort,
    Item,
    Picture,
    at_least,
    estimated,
    learned,
    near,
    record,
)
from llmgym.scenario import library
from llmgym.scenario.scenario import Scenario
from llmgym.theory.bounds import (
    faster_transformer_capacity,
    fluid_growth,
    rate_bound,
    theorem2_capacity,
)
from llmgym.theory.capacity import at_load

LOADS = (0.9, 1.0, 1.1, 1.2, 1.4)
PUBLISHED_GROWTH = {1.1: 0.334, 1.2: 0.669, 1.4: 1.337}
HORIZON_S, REPLICATIONS = 220.0, 16
STANDARD_ERRORS = 4
WORK_CONSERVING = ("sarathi", "orca")


def _growth(effort: Effort, policy: str, load: float) -> Data:
    """Growth of the unprocessed tokens in every replication, and the path of the first."""
    scenario = at_load(replace(library.scenario("theorem-2"), slots=4096), load)
    run = simulate(
        scenario,
        policy,
        duration_s=HORIZON_S,
        num_envs=REPLICATIONS,
        seed=effort.seed,
        record=False,
    )
    end, start, backlog = HORIZON_S * 1000 / run.tick_ms, run.raw["start"], run.raw["backlog"]
    slopes = [slope_of_second_half(start[:, n], backlog[:, n].astype(float), end)[0]
              for n in range(REPLICATIONS)]  # fmt: skip
    path = run.trajectory[run.trajectory.env == 0].iloc[::8]
    return {
        "growth_tokens_per_ms": [slope / run.tick_ms for slope in slopes],
        "fluid_tokens_per_ms": fluid_growth(scenario, scenario.arrival_rate_per_s),
        "time_s": (path.time_ms / 1000).tolist(),
        "backlog_tokens": path.backlog_tokens.tolist(),
    }


def _growth_parts(effort: Effort) -> dict[str, Any]:
    loads = effort.pick(LOADS, (0.9, 1.0, 1.2))
    names = effort.pick(WORK_CONSERVING, WORK_CONSERVING[:1])
    return {f"{p}-{load:g}": partial(_growth, effort, p, load) for p in names for load in loads}


def _judge_growth(data: Data) -> list[Check]:
    checks = []
    for part, found in data.items():
        policy, _, load = part.rpartition("-")
        values, fluid = np.array(found["growth_tokens_per_ms"]), found["fluid_tokens_per_ms"]
        half = STANDARD_ERRORS * values.std(ddof=1) / np.sqrt(values.size)
        mean = float(values.mean())
        checks.append(
            Check(
                f"growth of {policy} at load {load}, tokens/ms",
                round(fluid, 4),
                mean,
                "pass" if abs(mean - fluid) < half else "fail",
                f"within {STANDARD_ERRORS} standard errors",
                mean - half,
                mean + half,
            )
        )
    for x, published in PUBLISHED_GROWTH.items():
        if f"sarathi-{x:g}" in data:
            fluid = data[f"sarathi-{x:g}"]["fluid_tokens_per_ms"]
            checks.append(near(f"fluid line at load {x:g}, tokens/ms", published, fluid, 0.0005))
    return checks


def _draw_growth(data: Data) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    loads = sorted({float(part.rpartition("-")[2]) for part in data})
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(loads)))
    for load, shade in zip(loads, shades, strict=True):
        found = data[f"sarathi-{load:g}"]
        time = np.array(found["time_s"])
        left.plot(time, np.array(found["backlog_tokens"]) / 1000, color=shade, label=f"{load:g}")
        left.plot(time, found["fluid_tokens_per_ms"] * time, "--", color=shade, lw=1)
    left.set_xlim(0, HORIZON_S)
    left.set_ylim(0)
    left.set_xlabel("time (s)")
    left.set_ylabel("unprocessed tokens (thousands)")
    left.legend(title="load", frameon=False)
    left.set_title("one path of sarathi; dashed: fluid limit", fontsize=10)
    top = [(x, data[f"sarathi-{x:g}"]["fluid_tokens_per_ms"]) for x in loads]
    slope = top[-1][1] / (top[-1][0] - 1)
    right.plot([0.85, 1, 1.45], [0, 0, 0.45 * slope], color="black", lw=1, label="fluid limit")
    for shift, policy in zip((-0.006, 0.006), WORK_CONSERVING, strict=True):
        shown = [x for x in loads if f"{policy}-{x:g}" in data]
        if not shown:
            continue
        values = [np.array(data[f"{policy}-{x:g}"]["growth_tokens_per_ms"]) for x in shown]
        error = [STANDARD_ERRORS * v.std(ddof=1) / np.sqrt(v.size) for v in values]
        right.errorbar(
            np.array(shown) + shift, [v.mean() for v in values], error, fmt=style(policy).marker,
            color=style(policy).colour, capsize=3, label=policy,
        )  # fmt: skip
    right.set_xlabel("load (arrival rate over the limit)")
    right.set_ylabel("growth (tokens/ms)")
    right.legend(frameon=False)
    right.set_title("growth over the second half, 4 standard errors", fontsize=10)
    return figure


theorem_2 = Item(
    "theorem-2",
    "Stable below the limit, growing at the fluid rate above it",
    "arXiv:2504.07347v3, Theorem 2; slopes derived",
    _growth_parts,
    _judge_growth,
    (
        Picture(
            "theorem-2",
            "Theorem 2: unprocessed tokens over time, and their growth against the load. Below the "
            "limit a work-conserving policy is stable, above it the backlog grows at the excess.",
            _draw_growth,
        ),
    ),
)


def _bound(effort: Effort, names: tuple[str, ...]) -> Data:
    """Slack of the rate bound in tokens: the least over all replications of a run at load 1.2."""
    base = library.scenario("paper-figure-1", slots=1024)
    scenario = replace(base, lengths_known=True, service_weights=(1, 2))
    slack = {}
    for name in names:
        run = simulate(scenario, name, load=1.2, duration_s=60, num_envs=4, seed=effort.seed,
                       record=False)  # fmt: skip
        served, clock = run.raw["end_served"], run.raw["end_clock"] * run.tick_ms
        slack[name] = float(np.min(rate_bound(served, clock, scenario.engine)))
    return slack


def _bound_parts(effort: Effort) -> dict[str, Any]:
    every = (*baselines.names(), *learned())
    return {"": partial(_bound, effort, effort.pick(every, ("vllm", "sarathi")))}


def _judge_bound(data: Data) -> list[Check]:
    slack = data[""]
    tightest = min(slack, key=slack.__getitem__)
    what = f"least slack of {len(slack)} policies ({tightest}), tokens"
    return [at_least(what, 0.0, slack[tightest])]


rate_bound_item = Item(
    "rate-bound",
    "No policy serves more than b_max/t_b_max",
    "arXiv:2504.07347v3, Theorem 2",
    _bound_parts,
    _judge_bound,
)


def paper() -> Scenario:
    """The engine of Figure 1, (129, 112) tokens, budget 512."""
    found: Scenario = library.scenario("paper-figure-1")
    return found


def _capacity(effort: Effort, policy: str, requests: int) -> Data:
    estimate = estimate_capacity(
        paper(),
        policies.resolve(policy),
        requests=requests,
        seed=effort.seed,
        confidence=CONFIDENCE,
    )
    closed = faster_transformer_capacity(129, 112, paper().engine)
    return record(estimate) | {"limit": theorem2_capacity(paper()), "closed_form": closed}


faster_transformer = Item(
    "faster-transformer",
    "The capacity of FasterTransformer in closed form",
    "derived: n/(t_{n v_p} + v_d t_n), n = floor(b_max/v_p)",
    lambda effort: {"": partial(_capacity, effort, "faster_transformer", effort.pick(400, 100))},
    lambda data: [
        near("closed form, requests/s", 0.557, data[""]["closed_form"], 0.0005),
        estimated("capacity by bisection, requests/s", data[""]["closed_form"], data[""]),
        near("share of the limit", 0.04, data[""]["closed_form"] / data[""]["limit"], 0.005),
    ],
)

saturation = Item(
    "saturation",
    "Sarathi-Serve departs at the limit when saturated",
    "derived: 13.8697 +- 0.0021 requests/s, limit 13.871",
    lambda effort: {"": partial(_capacity, effort, "sarathi", effort.pick(6000, 1500))},
    lambda data: [
        near("limit, requests/s", 13.871, data[""]["limit"], 0.0005),
        estimated("saturated departures: the limit, requests/s", data[""]["limit"], data[""]),
        estimated("saturated departures: as derived, requests/s", 13.8697, data[""], 0.0021),
    ],
)
