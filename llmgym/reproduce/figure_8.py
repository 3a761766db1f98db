"""Figure 8 of arXiv:2504.07347v3: five requests batch by batch; and the batch-time models behind it all."""

from __future__ import annotations

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from llmgym import baselines
from llmgym.engine.view import View
from llmgym.reporting.palette import colour
from llmgym.reproduce.items import Check, Data, Effort, Item, Picture, equal, near
from llmgym.reproduce.watch import watch
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, LLAMA_3_70B, NO_ATTENTION, Affine
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario

NAMES = "ABCDE"

ROWS = {
    "vllm, 4": "ABCd | DEp | ABCDd | BCEd | Bd",
    "faster_transformer, 4": "ABCd | ABCd | BCd | Bd | DEp | DEd",
    "sarathi, 4": "ABCd | ABCd+Dp | BCDd+Ep | BEd",
    "orca, 5": "ABCd | ABCd+DEp | BCDEd | Bd",
    "orca, 4": "ABCd | ABd+DEp | BCDEd | BCd",
}
"""For each policy and token budget, the batches of the figure: d decodes, p is prefilled.

No single budget gives all four published rows: Orca's needs 5, and the last row is Orca with 4.
"""

REQUESTS = Replay(
    # A, B and C decode already; D then E arrive during the first batch.
    arrival_s=[0, 0, 0, 0.0002, 0.0004],
    prefill_tokens=[0, 0, 0, 1, 1],
    decode_tokens=[2, 4, 3, 1, 1],
)
MOST_BATCHES = 8


def look(view: View, info: Any) -> dict[str, jax.Array]:
    """Who is in a batch, and in which phase."""
    ran = info.batch.tokens > 0
    return {
        "request": info.table.request,
        "d": ran & view.decoding,
        "p": ran & (view.prefill > 0),
    }


def batches(row: str) -> list[dict[str, str]]:
    """The requests that decode (d) and that are prefilled (p) in each batch."""
    name, _, budget = row.partition(", ")
    scenario = Scenario.single_engine(
        Affine(c_ms=1.0, a_ms_per_token=0.0), int(budget), REQUESTS, slots=8
    )
    seen = watch(scenario, baselines.make(name), look, MOST_BATCHES)
    found = []
    for step in range(MOST_BATCHES):
        who = {
            phase: "".join(
                NAMES[n] for n in sorted(seen["request"][step, seen[phase][step, :, 0], 0])
            )
            for phase in "dp"
        }
        if any(who.values()):
            found.append(who)
    return found


def written(found: list[dict[str, str]]) -> str:
    """Batches as the figure writes them."""
    return " | ".join("+".join(b[phase] + phase for phase in "dp" if b[phase]) for b in found)


def _measured() -> dict[str, Any]:
    return {row: batches(row) for row in ROWS}


def _parts(effort: Effort) -> dict[str, Any]:
    return {"": _measured}


def _judge(data: Data) -> list[Check]:
    return [equal(f"batches of {row}", ROWS[row], written(data[""][row])) for row in ROWS]


def _draw(data: Data) -> plt.Figure:
    """A row of boxes for each policy, a column for each batch."""
    figure, axes = plt.subplots(
        2, 2, figsize=(9, 5.2), layout="constrained", sharex=True, sharey=True
    )
    for axis, row in zip(axes.flat, list(ROWS)[:4], strict=True):
        name, _, budget = row.partition(", ")
        for n, batch in enumerate(data[""][row]):
            for phase, hatch, alpha in (("d", "", 0.45), ("p", "///", 0.9)):
                for request in batch[phase]:
                    at = (n + 0.06, NAMES.index(request) - 0.4)
                    axis.add_patch(
                        plt.Rectangle(
                            at, 0.88, 0.8, facecolor=(*_rgb(colour(name)), alpha), edgecolor="black",
                            hatch=hatch, lw=0.8,
                        )
                    )  # fmt: skip
                    axis.annotate(
                        phase, (n + 0.5, NAMES.index(request)), ha="center", va="center",
                        bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"},
                    )  # fmt: skip
        axis.set_title(f"{name}, budget {budget}")
        axis.set_xlim(0, 6)
        axis.set_ylim(4.6, -0.6)
        axis.set_yticks(range(5), NAMES)
        axis.set_xticks(range(7))
    for axis in axes[1]:
        axis.set_xlabel("time (batches)")
    for axis in axes[:, 0]:
        axis.set_ylabel("request")
    return figure


def _rgb(text: str) -> tuple[float, ...]:
    return tuple(int(text[n : n + 2], 16) / 255 for n in (1, 3, 5))


figure_8 = Item(
    "figure-8",
    "Five requests batch by batch",
    "arXiv:2504.07347v3, Figure 8",
    _parts,
    _judge,
    (
        Picture(
            "figure-8",
            "Figure 8: the batches in which five requests are served. A, B and C decode (d); D and E, "
            "which arrive during the first batch, have one prompt token each (p, hatched).",
            _draw,
        ),
    ),
)

PUBLISHED_MS = {128: 46.75, 256: 82.22, 512: 153.16, 1024: 295.04}
STAIRCASE, HINGE = CODELLAMA_34B_A100, LLAMA_3_70B


def _curves() -> Data:
    tokens = np.arange(1, 1025)
    return {
        "tokens": tokens.tolist(),
        "staircase_ms": STAIRCASE.ms(tokens, NO_ATTENTION).tolist(),
        "hinge_ms": HINGE.ms(tokens, NO_ATTENTION).tolist(),
    }


def _times(effort: Effort) -> dict[str, Any]:
    return {"": _curves}


def _judge_times(data: Data) -> list[Check]:
    at = dict(zip(data[""]["tokens"], data[""]["staircase_ms"], strict=True))
    return [near(f"t_b of {b} tokens, ms", ms, at[b], 0.005) for b, ms in PUBLISHED_MS.items()]


def _draw_times(data: Data) -> plt.Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    tokens = np.array(data[""]["tokens"])
    curves = (("staircase", "CodeLlama-34B (v3, staircase)", "#0072B2", "-"),
              ("hinge", "Llama-3-70B (v1, hinge)", "#D55E00", "--"))  # fmt: skip
    for name, label, tint, line in curves:
        ms = np.array(data[""][f"{name}_ms"])
        left.plot(tokens, ms, line, color=tint, label=label)
        right.plot(tokens, tokens / ms, line, color=tint, label=label)
    left.set_ylabel("batch time (ms)")
    right.set_ylabel("tokens served per ms")
    for axis in (left, right):
        axis.set_xlabel("tokens in the batch")
        axis.set_xticks(range(0, 1025, 128))
        axis.set_ylim(0)
        axis.grid(alpha=0.3)
    left.legend(frameon=False)
    return figure


batch_time = Item(
    "batch-time",
    "The time of a batch",
    "arXiv:2504.07347v3, section 3, and v1",
    _times,
    _judge_times,
    (
        Picture(
            "batch-time",
            "The two published models of batch time, and the rate of tokens that they give: the last "
            "token of a tile is free, the first of the next one costs 35.47 ms.",
            _draw_times,
        ),
    ),
)
