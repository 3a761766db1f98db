"""The image of an engine ("rgb_array"): Matplotlib artists made once, moved from frame to frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from llmgym.core.text import drawn
from llmgym.envs.rendering.text import Frame, Ran, round_up

PREFILL, DECODE = "#E69F00", "#0072B2"
"""Orange and blue of Okabe and Ito, which colour-blind people tell apart."""

PALE_PREFILL, PALE_DECODE = "#F3D08A", "#A6CCE3"
INK, FAINT = "#333333", "#BBBBBB"
WIDTH, HEIGHT, DPI = 800, 480, 100


class Picture:
    """Draws frames as images (480, 800, 3) uint8.

    Axes, ticks and legend are the background: they are drawn again only where a limit has changed.
    """

    def __init__(self) -> None:
        self._figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        top, bottom = (
            self._figure.add_gridspec(
                1, 2, width_ratios=ratios, left=0.07, right=0.985, top=up, bottom=low, wspace=0.2
            )
            for ratios, up, low in (((4.4, 1), 0.83, 0.475), ((1, 1), 0.345, 0.095))
        )
        self._queue = self._axes(top[0], "Requests in order of arrival", "tokens")
        self._batch = self._axes(top[1], "Batch just run", "tokens")
        self._system = self._axes(bottom[0], "Requests in system", "", "seconds ago")
        self._recent = self._axes(bottom[1], "Recent batches", "tokens", "seconds ago")
        self._add_legend()
        self._background: Any = None
        self._limits: tuple[float, ...] = ()
        self._moving: list[
            tuple[Any, Any]
        ] = []  # axes (or the figure) and artist, in drawing order
        self._bars = {
            axes: {color: self._collection(axes, color) for color in colors}
            for axes, colors in (
                (self._queue, (PREFILL, PALE_PREFILL, DECODE, PALE_DECODE)),
                (self._batch, (PREFILL, DECODE)),
                (self._recent, (PREFILL, DECODE)),
            )
        }
        self._tiles = {axes: self._tile_lines(axes) for axes in (self._batch, self._recent)}
        self._count = self._line()
        self._title = self._text(0.015, 0.95, size=12, weight="bold")
        self._clock = self._text(
            0.985, 0.95, size=12, weight="bold", ha="right", family="monospace"
        )
        self._state = self._text(0.015, 0.905, size=8.5)
        box = self._batch.get_position()
        self._words = self._text(
            box.x0 + box.width / 2, box.y0 - 0.012, size=8, ha="center", va="top"
        )

    def _axes(self, cell: Any, title: str, ylabel: str, xlabel: str = "") -> Any:
        axes = self._figure.add_subplot(cell)
        axes.set_title(title, size=9, loc="left", color=INK, pad=4)
        axes.tick_params(labelsize=7.5, colors=INK, length=2.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="y", nbins=4)
        axes.set_ylabel(ylabel, size=8, color=INK, labelpad=2)
        axes.set_xlabel(xlabel, size=8, color=INK, labelpad=1)
        return axes

    def _add_legend(self) -> None:
        entries = {
            "prefill: prompt left": PREFILL,
            "decode: generated": DECODE,
            "pale: not in batch": "#DDDDDD",
        }
        self._queue.legend(
            handles=[Patch(color=color, label=label) for label, color in entries.items()],
            loc="lower right", bbox_to_anchor=(1.01, 0.98), ncols=3, fontsize=7.5, frameon=False,
            handlelength=1, columnspacing=1.0, borderpad=0, borderaxespad=0.3,
        )  # fmt: skip

    def _add(self, axes: Any, artist: Any) -> Any:
        artist.set_animated(True)
        self._moving.append((axes, artist))
        return artist

    def _collection(self, axes: Any, color: str) -> PolyCollection:
        bars = PolyCollection([], facecolors=color, edgecolors="none")
        axes.add_collection(bars, autolim=False)
        return self._add(axes, bars)

    def _tile_lines(self, axes: Any) -> LineCollection:
        lines = LineCollection([], colors=FAINT, linewidths=0.8, linestyles=[(0, (4, 3))])
        lines.set_transform(axes.get_yaxis_transform())
        axes.add_collection(lines, autolim=False)
        return self._add(axes, lines)

    def _line(self) -> Any:
        (line,) = self._system.plot([], [], color=INK, linewidth=1.2, drawstyle="steps-pre")
        return self._add(self._system, line)

    def _text(self, x: float, y: float, **style: Any) -> Any:
        return self._add(self._figure, self._figure.text(x, y, "", color=INK, **style))

    def __call__(self, frame: Frame) -> np.ndarray:
        """The image of a frame."""
        self._set_limits(frame)
        self._title.set_text(drawn(frame.headline))
        self._clock.set_text(f"t = {frame.time_s:,.2f} s")
        self._state.set_text(frame.state_line)
        self._move_queue(frame)
        self._move_batches(frame)
        recent = frame.since(frame.system_window_s)
        times = [ran.end_s - frame.time_s for ran in recent]
        self._count.set_data(times, [ran.in_system for ran in recent])
        if self._background is None:
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self._figure.bbox)
        self._canvas.restore_region(self._background)
        for axes, artist in self._moving:
            axes.draw_artist(artist)
        return np.array(self._canvas.buffer_rgba())[..., :3]

    def _set_limits(self, frame: Frame) -> None:
        tallest = np.concatenate([frame.prompt_left, frame.generated]).max(initial=1)
        most = max((ran.in_system for ran in frame.since(frame.system_window_s)), default=0)
        limits = (
            max(round_up(frame.prompt.size), 20),
            round_up(tallest),
            max(round_up(most), 10),
            frame.budget,
            frame.tile,
            frame.window_s,
        )
        if limits == self._limits:
            return
        self._limits, self._background = limits, None
        self._queue.set(xlim=(0, limits[0]), ylim=(0, limits[1]))
        self._system.set(ylim=(0, limits[2]))
        tiles = np.arange(0, frame.budget + 1, frame.tile)
        self._batch.set(xlim=(0, 1), xticks=[])
        for axes, lines in self._tiles.items():
            axes.set(ylim=(0, frame.budget * 1.02), yticks=tiles[:: -(-len(tiles) // 5)])
            lines.set_segments([[(0, y), (1, y)] for y in tiles[1:]])
        for axes, window in (
            (self._recent, frame.window_s),
            (self._system, frame.system_window_s),
        ):
            ago = np.linspace(window, 0, 6)
            axes.set(xlim=(-window, 0), xticks=-ago, xticklabels=[f"{t:g}" for t in ago])

    def _move_queue(self, frame: Frame) -> None:
        left = np.arange(frame.prompt.size) + 0.1
        served = frame.in_batch
        for color, height, chosen in (
            (PREFILL, frame.prompt_left, served),
            (PALE_PREFILL, frame.prompt_left, ~served),
            (DECODE, frame.generated, served),
            (PALE_DECODE, frame.generated, ~served),
        ):
            bars = _bars(left[chosen], 0.8, 0, height[chosen])
            self._bars[self._queue][color].set_verts(bars)

    def _move_batches(self, frame: Frame) -> None:
        ran = frame.batch or Ran(0, 0, 0, 0, 0)
        self._stack(self._batch, np.array([0.15]), 0.7, [ran])
        ms = f"{1000 * ran.duration_s:.1f} ms"
        words = f"decode {ran.decode}\nprefill {ran.prefill}\n{ms}"
        idle = f"idle\n{ms}" if ran.duration_s else "none yet"
        self._words.set_text(words if ran.prefill + ran.decode else idle)
        recent = frame.since(frame.window_s)
        duration = np.array([ran.duration_s for ran in recent])
        start = np.array([ran.end_s for ran in recent]) - duration - frame.time_s
        # A seam between batches, so that equal ones stay apart.
        self._stack(self._recent, start, np.maximum(duration - 0.003 * frame.window_s, 0), recent)

    def _stack(self, axes: Any, left: np.ndarray, width: Any, batches: list[Ran]) -> None:
        decode = np.array([ran.decode for ran in batches])
        prefill = np.array([ran.prefill for ran in batches])
        self._bars[axes][DECODE].set_verts(_bars(left, width, 0, decode))
        self._bars[axes][PREFILL].set_verts(_bars(left, width, decode, prefill))


def _bars(left: np.ndarray, width: Any, bottom: Any, height: np.ndarray) -> Any:
    """Corners (bars, 4, 2) of upright bars."""
    left, width, bottom, height = np.broadcast_arrays(left, width, bottom, height)
    x = np.stack([left, left + width, left + width, left], axis=1)
    y = np.stack([bottom, bottom, bottom + height, bottom + height], axis=1)
    return np.stack([x, y], axis=-1)
