"""Charts that compare policies: capacities, requests over time, latency against load and throughput.

Each draws on an axis from plain data, so that a benchmark, a reproduction or a notebook can use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from llmgym.core.text import drawn
from llmgym.reporting.palette import style


class Point(NamedTuple):
    """One policy at one load: x and y as drawn, and whether it is stable there."""

    x: float
    y: float
    stable: bool = True


Label = Callable[[str], str]


def capacity_bars(
    axis: plt.Axes,
    estimates: Mapping[str, Mapping[str, Any]],
    limit: float,
    label: Label = str,
    fontsize: float = 9,
) -> None:
    """A bar for each policy, the first on top, with its interval; dashed: the limit.

    Args:
        axis: is drawn on.
        estimates: by policy, each with requests_per_s, low and high; None without an interval.
        limit: requests/s that no policy exceeds.
        label: the text that stands for a policy's name.
        fontsize: of labels and numbers, in points.
    """
    names = list(estimates)[::-1]
    for n, name in enumerate(names):
        value, low, high = (estimates[name][k] for k in ("requests_per_s", "low", "high"))
        axis.barh(n, value, color=style(name).colour, height=0.72)
        end = value
        if low is not None and high is not None:
            error = [[max(value - low, 0)], [max(high - value, 0)]]
            axis.errorbar(value, n, xerr=error, fmt="none", ecolor="black", capsize=2.5, lw=1)
            end = max(value, high)
        axis.annotate(
            f"{value:.2f}", (end, n), va="center", xytext=(4, 0), textcoords="offset points",
            fontsize=fontsize,
        )  # fmt: skip
    axis.set_yticks(range(len(names)), [drawn(label(n)) for n in names], fontsize=fontsize)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.axvline(limit, color="black", ls="--", lw=1)
    axis.set_xlim(0, 1.18 * limit)


def over_time(axis: plt.Axes, paths: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """A line for each policy: times and values."""
    for name, (time, values) in paths.items():
        look = style(name)
        axis.plot(time, values, color=look.colour, ls=look.line, lw=1.4)


def curves(axis: plt.Axes, points: Mapping[str, Sequence[Point]], label: Label = str) -> None:
    """A line through the stable points of each policy; crosses mark the others.

    Args:
        axis: is drawn on.
        points: by policy, in the order in which the line joins them.
        label: the text that stands for a policy's name.
    """
    for name, found in points.items():
        look = style(name)
        line = [p.y if p.stable else float("nan") for p in found]
        axis.plot(
            [p.x for p in found], line, color=look.colour, ls=look.line, marker=look.marker, lw=1.4,
            ms=5, label=drawn(label(name)),
        )  # fmt: skip
        for p in found:
            if not p.stable:
                axis.plot(p.x, p.y, "x", color=look.colour, ms=6, mew=1.8)


def log_scale(axis: plt.Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of each power of ten."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def handles(names: Sequence[str], label: Label = str) -> list[plt.Line2D]:
    """Entries of a legend: the line and marker of each policy."""
    return [
        plt.Line2D([], [], color=style(n).colour, ls=style(n).line, marker=style(n).marker, lw=1.6,
                   ms=5, label=drawn(label(n)))
        for n in names
    ]  # fmt: skip
