"""The picture of a scenario's graph, drawn with Matplotlib from the plain values of ``graph_data``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from llmgym.core.text import drawable
from llmgym.reporting.graph_layout import Layout, Point, lay_out

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""From the palette of Okabe and Ito, which colour-blind people can tell apart."""

INK, FAINT = "#333333", "#777777"
WIDTH, MARGIN = 9.0, 0.3  # inches, as all lengths here
PITCH, ROW = (1.75, 2.4), 1.08  # from column to column (least, most), from row to row
NODE = (1.3, 0.66)
ENGINE = (1.95, 0.62)
ARRIVAL = 0.55
LOOP = 0.3


def picture(data: dict[str, Any]) -> Figure:
    """The figure; see ``llmgym.reporting.graph.draw_graph``."""
    lanes = [lay_out(job["stages"]) for job in data["job_types"]]
    columns = max(lane.columns for lane in lanes)
    room = WIDTH - 2 * MARGIN - ARRIVAL - NODE[0]
    pitch = min(max(room / max(columns - 1, 1), PITCH[0]), PITCH[1])
    width = max(WIDTH, 2 * MARGIN + ARRIVAL + NODE[0] + (columns - 1) * pitch)
    in_a_row = int((width - 2 * MARGIN + 0.21) / (ENGINE[0] + 0.2))
    strip = -(-len(data["engines"]) // in_a_row) * (ENGINE[1] + 0.25)
    heights = [_height(lane) for lane in lanes]
    height = 0.55 + strip + sum(heights) + 0.1
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))  # inches, from the top left corner
    axes.axis("off")
    _text(axes, MARGIN, 0.28, _short(data["name"], 80), 13, weight="bold", ha="left")
    color = {}
    for n, engine in enumerate(data["engines"]):
        color[engine["name"]] = COLORS[n % len(COLORS)]
        x = MARGIN + (n % in_a_row) * (ENGINE[0] + 0.2)
        y = 0.55 + (n // in_a_row) * (ENGINE[1] + 0.25)
        _engine(axes, (x, y), engine, color[engine["name"]])
    top = 0.55 + strip
    for job, lane, tall in zip(data["job_types"], lanes, heights, strict=True):
        _Lane(axes, job, lane, top, pitch, color).draw()
        top += tall
    return figure


def _height(lane: Layout) -> float:
    levels = max((level + 1 for _, _, level in lane.loops), default=0)
    return 0.45 + lane.rows * ROW + levels * LOOP


class _Lane:
    """One job type: its title, and its stages from left to right."""

    def __init__(
        self,
        axes: Axes,
        job: dict[str, Any],
        layout: Layout,
        top: float,
        pitch: float,
        color: dict[str, str],
    ) -> None:
        self._axes, self._job, self._layout, self._color = axes, job, layout, color
        self._top, self._pitch = top, pitch

    def draw(self) -> None:
        job = self._job
        self._axes.plot(
            [MARGIN, self._axes.get_xlim()[1] - MARGIN], [self._top] * 2, color="#DDDDDD", lw=0.8
        )
        _text(self._axes, MARGIN, self._top + 0.22, _short(job["name"], 40), 10.5,
              weight="bold", ha="left")  # fmt: skip
        _text(self._axes, self._axes.get_xlim()[1] - MARGIN, self._top + 0.22,
              f"{job['rate_per_s']:.4g} per second, {job['arrivals']}", 9, color=FAINT,
              ha="right")  # fmt: skip
        for parent, name, points in self._layout.edges:
            self._edge(parent, name, [self._at(p) for p in points])
        for last, first, level in self._layout.loops:
            self._loop(last, first, level)
        for stage in job["stages"]:
            self._stage(stage)

    def _at(self, place: Point) -> Point:
        x = MARGIN + ARRIVAL + NODE[0] / 2 + place[0] * self._pitch
        return x, self._top + 0.45 + (place[1] + 0.5) * ROW

    def _half(self, name: str) -> float:
        """Half the width of a stage."""
        delay = next(s for s in self._job["stages"] if s["name"] == name)["delay_ms"]
        return NODE[0] / 2 * (1 if delay is None else 0.85)

    def _stage(self, stage: dict[str, Any]) -> None:
        x, y = self._at(self._layout.places[stage["name"]])
        half = self._half(stage["name"])
        if not stage["after"]:
            _arrow(self._axes, [(x - half - 0.42, y), (x - half, y)])
        if stage["probability"] is not None:
            _text(self._axes, x - half - 0.06, y - 0.15, f"{stage['probability']:g}", 8.5,
                  ha="right")  # fmt: skip
        name = _short(stage["name"], 15)
        if stage["delay_ms"] is not None:
            shape = Ellipse((x, y), 2 * half, 0.9 * NODE[1], fc="white", ec=FAINT, ls=(0, (2, 1)))
            self._axes.add_patch(shape)
            _text(self._axes, x, y - 0.1, name, 9)
            _text(self._axes, x, y + 0.1, f"{stage['delay_ms']:.4g} ms", 8, color=FAINT)
            return
        color = self._color[stage["engine"]]
        _box(self._axes, (x - half, y - NODE[1] / 2), NODE, color, round_by=0.12)
        _text(self._axes, x, y - 0.19, name, 9, weight="bold")
        _text(self._axes, x, y + 0.01, _short(stage["engine"], 18), 8, color=color)
        tokens = f"{stage['prefill_tokens']:.0f} in, {stage['decode_tokens']:.0f} out"
        _text(self._axes, x, y + 0.2, tokens, 8)
        marks = [f"priority {stage['priority']}"] if stage["priority"] else []
        marks += ["context"] if stage["inherits"] else []
        _text(self._axes, x + half, y - NODE[1] / 2 - 0.1, ", ".join(marks), 7.5, color=FAINT,
              ha="right")  # fmt: skip

    def _edge(self, parent: str, name: str, points: list[Point]) -> None:
        """An arrow from side to side, level where it passes through the columns between."""
        start, *bends, end = points
        stops = [(start[0] + self._half(parent), start[1])]
        for x, y in bends:
            stops += [(x - NODE[0] / 2, y), (x + NODE[0] / 2, y)]
        _arrow(self._axes, [*stops, (end[0] - self._half(name), end[1])])

    def _loop(self, last: str, first: str, level: int) -> None:
        """A dashed arrow below the rows from the last stage of a loop back to its first."""
        (right, low), (left, high) = (self._at(self._layout.places[n]) for n in (last, first))
        bottom = self._top + 0.45 + self._layout.rows * ROW - 0.05 + level * LOOP
        right_edge, left_edge = right + self._half(last), left - self._half(first)
        side = 0.13 + 0.05 * level
        points = [
            (right_edge - 0.03, low + 0.16), (right_edge + side, low + 0.16),
            (right_edge + side, bottom), (left_edge - side, bottom),
            (left_edge - side, high + 0.16), (left_edge + 0.02, high + 0.16),
        ]  # fmt: skip
        codes = [Path.MOVETO] + [Path.LINETO] * 5
        _patch(self._axes, Path(points, codes), ls=(0, (4, 2)))
        repeat = next(s for s in self._job["stages"] if s["name"] == last)["repeat"]
        rounds, chance = repeat["rounds"], repeat["probability"]
        label = f"{rounds} rounds" if rounds else f"again: {chance:g}"
        behind = {"fc": "white", "ec": "none", "pad": 1.5}
        _text(self._axes, (left + right) / 2, bottom, label, 8.5, bbox=behind)


def _engine(axes: Axes, corner: Point, engine: dict[str, Any], color: str) -> None:
    """A box for an engine; replicas look like a pile."""
    for n in reversed(range(min(engine["replicas"], 3))):
        _box(axes, (corner[0] + 0.06 * n, corner[1] - 0.06 * n), ENGINE, color, round_by=0.02)
    x, y = corner[0] + 0.14, corner[1] + ENGINE[1] / 2
    pile = f" x {engine['replicas']}" if engine["replicas"] > 1 else ""
    name = _short(engine["name"], 19 - len(pile)) + pile
    _text(axes, x, y - 0.18, name, 9.5, weight="bold", ha="left", color=color)
    tokens = "1 token" if engine["token_budget"] == 1 else f"{engine['token_budget']} tokens"
    budget = f"{tokens} in {engine['full_batch_ms']:.4g} ms"
    _text(axes, x, y + 0.02, budget, 8, ha="left")
    cap = engine["max_num_seqs"]
    load = f"load {engine['load']:.2f}" + (f", {cap} requests" if cap is not None else "")
    _text(axes, x, y + 0.2, load, 8, ha="left")


def _box(axes: Axes, corner: Point, size: Point, color: str, round_by: float) -> None:
    pale = tuple(1 - 0.16 * (1 - part) for part in to_rgb(color))
    style = f"round,pad=0,rounding_size={round_by}"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=pale, ec=color, lw=1.2))


def _arrow(axes: Axes, stops: list[Point]) -> None:
    """A smooth arrow that is level at every stop."""
    points, codes = [stops[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(stops):
        middle = (x0 + x1) / 2
        points += [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Path.CURVE4] * 3
    _patch(axes, Path(points, codes))


def _patch(axes: Axes, path: Path, **style: Any) -> None:
    look: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 11,
        "color": INK,
        "lw": 1.0,
        "zorder": 0.5,
    }
    axes.add_patch(FancyArrowPatch(path=path, **look, **style))


def _text(axes: Axes, x: float, y: float, text: str, size: float, **style: Any) -> None:
    style = {"color": INK, "ha": "center", "va": "center", **style}
    axes.text(x, y, drawable(text), fontsize=size, parse_math=False, **style)


def _short(text: str, most: int) -> str:
    text = drawable(text)
    return text if len(text) <= most else text[: most - 1] + "…"
