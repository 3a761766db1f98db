"""What a person sees of a network: every engine with its queue and its batch, as text or as an image."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from llmgym.core.text import drawn, one_line
from llmgym.envs.functional import EnvState, FunctionalEngine
from llmgym.envs.rendering.picture import (
    DECODE,
    DPI,
    FAINT,
    HEIGHT,
    PALE_DECODE,
    PALE_PREFILL,
    PREFILL,
    WIDTH,
)

COLUMNS = 24
"""Characters of a bar in the text panel."""


@dataclass(frozen=True)
class NetworkFrame:
    """The facts of one picture; arrays have one entry for each engine."""

    name: str
    engines: tuple[str, ...]
    budget: np.ndarray
    time_s: float
    jobs: int
    completed: int
    dropped: int
    prompts: np.ndarray  # requests with prompt tokens left
    prompt_tokens: np.ndarray
    decoding: np.ndarray
    batch_prefill: np.ndarray  # of the batch that runs
    batch_decode: np.ndarray
    ready_ms: np.ndarray  # until it ends; 0: free
    in_delay: int
    history: list[tuple[float, int]]  # (seconds, jobs)


class NetworkRenderer:
    """Draws a network environment in ``mode``, "ansi" or "rgb_array"."""

    def __init__(self, core: FunctionalEngine, mode: str) -> None:
        self._core, self._mode = core, mode
        self._history: deque[tuple[float, int]] = deque(maxlen=2048)

    def reset(self) -> None:
        """Forget the steps of the last episode."""
        self._history.clear()

    def record(self, info: dict[str, Any]) -> None:
        """Remember a step by its ``info``."""
        self._history.append((info["time_s"], info["in_system"]))

    def render(self, state: EnvState) -> Any:
        """Text, or an image (480, 800, 3) uint8."""
        frame = self.frame(state)
        return text_panel(frame) if self._mode == "ansi" else picture(frame)

    def frame(self, state: EnvState) -> NetworkFrame:
        """The facts of the picture, on the host."""
        scenario, network = self._core.scenario, jax.device_get(state.engine)
        engines = self._core.params.plan.engines
        table = network.table
        prefill, planned = table.prefill[:, :engines], table.planned[:, :engines]
        decoding = (prefill == 0) & (table.decode[:, :engines] > 0)
        ticks = network.clock.to_numpy()
        return NetworkFrame(
            name=one_line(scenario.name),
            engines=tuple(map(one_line, scenario.engine_names)),
            budget=np.asarray(self._core.params.token_budget),
            time_s=float(ticks) * scenario.tick_ms / 1000,
            jobs=int(network.present),
            completed=int(network.totals.completed),
            dropped=int(network.totals.dropped),
            prompts=(prefill > 0).sum(0),
            prompt_tokens=prefill.sum(0),
            decoding=decoding.sum(0),
            batch_prefill=np.where(decoding, 0, planned).sum(0),
            batch_decode=np.where(decoding, planned, 0).sum(0),
            ready_ms=network.busy * scenario.tick_ms,
            in_delay=int((table.decode[:, engines:] > 0).sum()),
            history=list(self._history),
        )


def text_panel(frame: NetworkFrame) -> str:
    """The frame as text; d stands for decode and p for prefill in the batch that runs."""
    lines = [
        f"{frame.name} | t = {frame.time_s:,.3f} s",
        f"jobs {frame.jobs:,} | completed {frame.completed:,} | dropped {frame.dropped:,}"
        + (f" | in a delay {frame.in_delay:,}" if frame.in_delay else ""),
        "",
    ]
    width = max(len(name) for name in frame.engines)
    for s, name in enumerate(frame.engines):
        lines.append(
            f"{name:<{width}} [{_bar(frame, s)}] {_state(frame, s):<16} prompts "
            f"{frame.prompts[s]:>5,} ({frame.prompt_tokens[s]:,} tokens), decoding {frame.decoding[s]:,}"
        )
    return "\n".join(lines) + "\n"


def _state(frame: NetworkFrame, s: int) -> str:
    return f"ends in {frame.ready_ms[s]:.1f} ms" if frame.ready_ms[s] > 0 else "free"


def _bar(frame: NetworkFrame, s: int) -> str:
    ends = np.array([frame.batch_decode[s], frame.batch_decode[s] + frame.batch_prefill[s]])
    decode, both = np.ceil(ends * COLUMNS / frame.budget[s]).astype(int)
    return "d" * decode + "p" * (both - decode) + "." * (COLUMNS - both)


def picture(frame: NetworkFrame) -> np.ndarray:
    """The frame as an image (480, 800, 3) uint8: batches, queues, and jobs over time."""
    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, height_ratios=(2, 1), left=0.15, right=0.97, top=0.84, bottom=0.11,
        hspace=0.55, wspace=0.12,
    )  # fmt: skip
    batch, queue = (figure.add_subplot(grid[0, n]) for n in range(2))
    place = np.arange(len(frame.engines))
    share = 100 / frame.budget
    batch.barh(place, frame.batch_decode * share, color=DECODE, label="decode")
    batch.barh(
        place,
        frame.batch_prefill * share,
        left=frame.batch_decode * share,
        color=PREFILL,
        label="prefill",
    )
    batch.set(xlim=(0, 100), xlabel="% of the token budget", title="Batch that runs")
    batch.set_yticks(place, list(map(drawn, frame.engines)))
    queue.barh(place, frame.decoding, color=PALE_DECODE, label="decoding")
    queue.barh(place, frame.prompts, left=frame.decoding, color=PALE_PREFILL, label="prompt left")
    most = max(10, int((frame.decoding + frame.prompts).max()))
    queue.set(xlim=(0, most), xlabel="requests", title="Requests at the engine", yticks=[])
    jobs = figure.add_subplot(grid[1, :])
    if frame.history:
        seconds, count = np.array(frame.history).T
        jobs.step(seconds, count, color="#333333", where="post", linewidth=1)
        jobs.set_ylim(0, max(1.05 * count.max(), 1))
    jobs.set(xlabel="seconds", title="Jobs in the network")
    for axes in (batch, queue, jobs):
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8, color=FAINT)
        axes.xaxis.label.set_fontsize(8)
    for axes in (batch, queue):
        axes.invert_yaxis()
    handles = [h for axes in (batch, queue) for h in axes.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, ncol=4, loc="upper right", fontsize=8, frameon=False)
    delay = f" | in a delay {frame.in_delay:,}" if frame.in_delay else ""
    figure.text(
        0.015, 0.95, f"{drawn(frame.name)} | t = {frame.time_s:,.3f} s | jobs {frame.jobs:,}{delay}",
        size=10, weight="bold", va="center",
    )  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
