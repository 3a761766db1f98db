"""A cap on resident requests: the planning LP, the best Sarathi-Serve, and a rule that throttles prefill."""

from __future__ import annotations

from functools import partial
from typing import Any

import matplotlib.pyplot as plt

from llmgym import baselines
from llmgym.evaluation.capacity import estimate_capacity
from llmgym.reporting.palette import style
from llmgym.reproduce.items import CONFIDENCE, Check, Data, Effort, Item, Picture, at_least, record
from llmgym.scenario import library
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import capacity

TABLE = {
    60: (11.36, 11.21),
    80: (12.09, 11.36),
    100: (12.57, 11.36),
    110: (12.76, 11.98),
    120: (12.92, 12.83),
    160: (13.38, 12.92),
    200: (13.67, 13.54),
}
"""For each cap, requests/s: of the LP, and of Sarathi-Serve with the best of its budgets."""

TUNED = 12.52
"""Requests/s that a tuned tile index serves under a cap of 100."""

BUDGETS = (128, 256, 384, 512)
WEIGHTS = (0.5, 0.65, 0.7, 0.75, 0.8, 0.9)
"""Prefill weights of the tile index. Its age weight is 0, as only throughput counts."""

TOLERANCE = 0.005
QUICK_CAP = 100


def capped(most: int) -> Scenario:
    """The scenario ``capped`` with another cap, and room for large batches."""
    found: Scenario = library.scenario("capped", max_num_seqs=most, token_budget=1024)
    return found


def _plan(effort: Effort) -> Data:
    return {str(most): capacity(capped(most)).requests_per_s for most in TABLE}


def _reached(effort: Effort, name: str, settings: dict[str, Any]) -> Data:
    """The rate at which a saturated policy completes requests under each cap."""
    caps = effort.pick(tuple(TABLE), (QUICK_CAP,))
    policy = baselines.make(name, **settings)
    return {
        str(most): record(
            estimate_capacity(
                capped(most), policy, "saturation", requests=effort.pick(3000, 1000),
                seed=effort.seed, confidence=CONFIDENCE,
            )
        )
        for most in caps
    }  # fmt: skip


def _parts(effort: Effort) -> dict[str, Any]:
    rows = {"plan": partial(_plan, effort)}
    for budget in effort.pick(BUDGETS, (128, 256)):
        settings: dict[str, Any] = {"token_budget": budget}
        rows[f"sarathi-{budget}"] = partial(_reached, effort, "sarathi", settings)
    for weight in effort.pick(WEIGHTS, (0.7,)):
        settings = {"prefill_weight": weight, "age_weight": 0.0}
        rows[f"index-{weight:g}"] = partial(_reached, effort, "index", settings)
    return rows


def _best(data: Data, policy: str, most: str) -> tuple[str, Data]:
    """The setting of a policy with the highest capacity under a cap, and that capacity."""
    found = {part: by[most] for part, by in data.items() if part.startswith(f"{policy}-")}
    part = max(found, key=lambda p: found[p]["requests_per_s"])
    return part.removeprefix(f"{policy}-"), found[part]


def _caps(data: Data) -> list[str]:
    return sorted(next(by for part, by in data.items() if part != "plan"), key=int)


def _close(
    what: str, expected: float, measured: float, low: float | None, high: float | None
) -> Check:
    passed = abs(measured - expected) <= TOLERANCE * expected
    rule = f"within {100 * TOLERANCE:g} %"
    return Check(what, expected, measured, "pass" if passed else "fail", rule, low, high)


def _judge(data: Data) -> list[Check]:
    checks = [
        _close(f"cap {most}: LP, requests/s", plan, data["plan"][str(most)], None, None)
        for most, (plan, _) in TABLE.items()
    ]
    for most in _caps(data):
        budget, found = _best(data, "sarathi", most)
        what = f"cap {most}: best Sarathi-Serve, budget {budget}, requests/s"
        value, low, high = (found[k] for k in ("requests_per_s", "low", "high"))
        checks.append(_close(what, TABLE[int(most)][1], value, low, high))
        weight, tuned = _best(data, "index", most)
        what = f"cap {most}: best tile index, weight {weight}, requests/s"
        if int(most) == QUICK_CAP:
            reached, low, high = (tuned[k] for k in ("requests_per_s", "low", "high"))
            checks.append(_close(what, TUNED, reached, low, high))
        else:
            checks.append(at_least(what, (1 - TOLERANCE) * value, tuned["requests_per_s"]))
    return checks


def _draw(data: Data) -> plt.Figure:
    figure, axis = plt.subplots(figsize=(6.4, 4), layout="constrained")
    caps = sorted(TABLE)
    axis.plot(caps, [data["plan"][str(c)] for c in caps], "k--", lw=1.2, label="planning LP")
    measured = _caps(data)
    rows = (
        ("index", "index, best weight", [_best(data, "index", c)[1] for c in measured]),
        ("sarathi", "sarathi, best budget", [_best(data, "sarathi", c)[1] for c in measured]),
    )
    for name, label, found in rows:
        look, middle = style(name), [f["requests_per_s"] for f in found]
        error = [[f["requests_per_s"] - f["low"] for f in found],
                 [f["high"] - f["requests_per_s"] for f in found]]  # fmt: skip
        axis.errorbar(
            [int(c) for c in measured], middle, error, color=look.colour, marker=look.marker, capsize=3,
            ls=look.line, label=label,
        )  # fmt: skip
    axis.set_xlabel("cap on resident requests")
    axis.set_ylabel("capacity (requests/s)")
    axis.legend(frameon=False, loc="lower right")
    axis.grid(alpha=0.3)
    return figure


resident_cap = Item(
    "resident-cap",
    "Under a cap on residents Sarathi-Serve is not throughput-optimal",
    "derived: planning LP and saturated departures, (129, 112) tokens",
    _parts,
    _judge,
    (
        Picture(
            "resident-cap",
            "Capacity under a cap on resident requests: what the planning LP allows, what a rule "
            "that throttles prefill reaches, and the best token budget of Sarathi-Serve.",
            _draw,
        ),
    ),
)
