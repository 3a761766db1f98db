"""The picture of a calibration: what was measured, and what each form makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llmgym.calibration.data import predict
from llmgym.core.errors import LLMGymError
from llmgym.core.files import write
from llmgym.core.pictures import bytes_of

if TYPE_CHECKING:
    from llmgym.calibration.result import Calibration, Fit

FORMATS = ("png", "svg")

STYLES = {
    "affine": ("#0072B2", "-"),
    "hinge": ("#009E73", "--"),
    "staircase": ("#D55E00", "-"),
    "roofline": ("#CC79A7", (0, (5, 3))),
    "table": ("#E69F00", "-"),
}
"""Colour (palette of Okabe and Ito) and line of each form: those that agree stay visible."""


def draw(calibration: Calibration, path: str | Path) -> None:
    """Write the picture to a PNG or SVG file, whole or not at all.

    Left: measured batches and every fit over tokens, the roofline without attention. Right, where
    attention varies: fitted against measured times.

    Raises:
        LLMGymError: the name ends differently, or the file cannot be written.
    """
    kind = Path(path).suffix[1:].lower()
    if kind not in FORMATS:
        raise LLMGymError(f"Cannot draw {path}: let its name end in .{' or .'.join(FORMATS)}.")
    write(Path(path), bytes_of(picture(calibration), kind, dpi=110))


def picture(calibration: Calibration) -> Figure:
    """The figure that ``draw`` writes."""
    read = calibration.data[["decode_context", "prefill_pairs"]].to_numpy()
    panels = 1 + bool(np.ptp(read, axis=0).any())
    figure = Figure(figsize=(6.2 * panels, 5), layout="constrained", facecolor="white")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    _over_tokens(axes[0], calibration, attention=panels > 1)
    if panels > 1:
        _against_measured(axes[1], calibration)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncol=1 + panels, frameon=False, fontsize=9
    )
    return figure


def _label(fit: Fit) -> str:
    return f"{fit.form}: R² {fit.r2:.4f}, mean error {100 * fit.mape:.2g} %"


def _over_tokens(axes: Axes, calibration: Calibration, attention: bool) -> None:
    data = calibration.data
    most = int(data["tokens"].max())
    sizes = np.unique(np.linspace(1, most, 2000).astype(int))
    axes.plot(data["tokens"], data["ms"], "o", ms=3.5, color="#999999", alpha=0.6, label="measured")
    for place, fit in enumerate(calibration.fits):
        axes.plot(
            sizes,
            fit.model.ms(sizes),
            color=STYLES[fit.form][0],
            ls=STYLES[fit.form][1],
            label=_label(fit),
            lw=2.4 if place == 0 else 1.2,
            zorder=10 - place,
        )
    axes.set_xlim(0, 1.02 * most)
    axes.set_ylim(0, 1.05 * float(data["ms"].max()))
    axes.set_xlabel("tokens in the batch")
    axes.set_ylabel("batch time (ms)")
    aside = "; roofline without attention" if attention else ""
    axes.set_title(f"Batch time against tokens{aside}", fontsize=10)


def _against_measured(axes: Axes, calibration: Calibration) -> None:
    data = calibration.data
    most = 1.05 * float(data["ms"].max())
    axes.plot((0, most), (0, most), color="black", lw=0.8, ls="--")
    for place, fit in enumerate(calibration.fits):
        axes.plot(
            data["ms"],
            predict(fit.model, data),
            "o",
            color=STYLES[fit.form][0],
            mew=0,
            ms=4 if place == 0 else 2.5,
            alpha=0.9 if place == 0 else 0.35,
            zorder=10 - place,
        )
    axes.set_xlim(0, most)
    axes.set_ylim(0, most)
    axes.set_xlabel("measured (ms)")
    axes.set_ylabel("fitted (ms)")
    axes.set_title("Fitted against measured; on the dashed line they are equal", fontsize=10)
