"""What a person sees of an engine: a text panel ("ansi") or an image ("rgb_array").

Both show the same facts (Frame): the queue in order of arrival, the batch just run by phase, the
clock, the number in system, recent batches. They exist only in environments with a render mode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from llmgym.core.text import one_line
from llmgym.envs.interface.encoding import Sizes
from llmgym.scenario.scenario import Scenario

RECENT_BATCHES = 32
"""Full batches that the window of recent batches holds."""

WIDTH = 96
"""Columns of the text panel."""

LEVELS = " ▁▂▃▄▅▆▇█"


class Ran(NamedTuple):
    """One step: its end and length in seconds, its tokens, the requests in the system after it."""

    end_s: float
    duration_s: float
    prefill: int
    decode: int
    in_system: int


@dataclass(frozen=True)
class Frame:
    """The facts of one picture.

    Per-request arrays are in order of arrival: ``prompt``, ``prompt_left`` and ``generated`` in
    tokens, ``waited_s`` since arrival, ``in_batch`` whether it was in the batch just run.
    """

    scenario: Scenario
    load: float
    time_s: float
    arrival_rate: float  # estimated, per second
    completed: int
    dropped: int
    prompt: np.ndarray
    prompt_left: np.ndarray
    generated: np.ndarray
    waited_s: np.ndarray
    in_batch: np.ndarray
    history: list[Ran]  # the oldest first

    @property
    def batch(self) -> Ran | None:
        """The step just run; None after a reset."""
        return self.history[-1] if self.history else None

    @property
    def budget(self) -> int:
        """Token budget b_max."""
        return self.scenario.engine.token_budget

    @property
    def tile(self) -> int:
        """Tokens of a tile, b_0."""
        return Sizes.of(self.scenario).tile

    @cached_property
    def window_s(self) -> float:
        """Length of the window of recent batches, in seconds."""
        full_ms = float(self.scenario.engine.batch_time.ms(self.budget))
        return round_up(RECENT_BATCHES * full_ms / 1000)

    @property
    def system_window_s(self) -> float:
        """Length of the window of the number in system, in seconds."""
        return 10 * self.window_s

    def since(self, window_s: float) -> list[Ran]:
        """The steps that ended in the last ``window_s`` seconds."""
        return [ran for ran in self.history if ran.end_s > self.time_s - window_s]

    @property
    def headline(self) -> str:
        """Scenario and load."""
        load = f"load {self.load:.2f}" if math.isfinite(self.load) else "all at once"
        return f"{one_line(self.scenario.name)} | {load}"

    @property
    def state_line(self) -> str:
        """The arrival rate and what is in the system."""
        oldest = self.waited_s[self.prompt_left > 0].max(initial=0)
        return (
            f"arrivals {self.arrival_rate:.1f}/s | in system {self.prompt.size:,} | "
            f"prompt tokens left {int(self.prompt_left.sum()):,}, oldest {oldest:.1f} s | "
            f"completed {self.completed:,}" + (f" | dropped {self.dropped:,}" * bool(self.dropped))
        )

    @property
    def batch_line(self) -> str:
        """The step just run, in words."""
        ran = self.batch
        if ran is None:
            return "no batch yet"
        size, ms = ran.prefill + ran.decode, f"{1000 * ran.duration_s:.2f} ms"
        if size == 0:
            return f"idle for {ms}"
        tiles, most = -(-size // self.tile), -(-self.budget // self.tile)
        return (
            f"{ms}: decode {ran.decode} + prefill {ran.prefill} = {size} of {self.budget} tokens, "
            f"{tiles} of {most} tiles"
        )


def round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 5, 7, 10, 15, ...: a limit of an axis that seldom jumps."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.5, 2, 3, 5, 7, 10) if step * power >= value * (1 - 1e-9)
    )


def text_panel(frame: Frame) -> str:
    """The frame as text: d stands for decode, p for prefill, ^ marks what was in the batch."""
    lines = [f"{frame.headline} | t = {frame.time_s:,.2f} s", frame.state_line]
    lines += ["", f"batch   {_batch_bar(frame)}", f"        {frame.batch_line}"]
    lines += [f"recent  {_recent_strip(frame)}", ""]
    return "\n".join(lines + _queue_lines(frame) + _prompt_lines(frame)) + "\n"


def _batch_bar(frame: Frame) -> str:
    """The batch against the budget: d and p in proportion, | between tiles."""
    most = -(-frame.budget // frame.tile)
    columns = max((WIDTH - 10) // most - 1, 1)  # of one tile
    ran = frame.batch
    decode, prefill = (0, 0) if ran is None else (ran.decode, ran.prefill)
    ends = np.ceil(np.array([decode, decode + prefill]) * columns / frame.tile - 1e-9)
    marks = "".join(
        "d" if c < ends[0] else "p" if c < ends[1] else "." for c in range(most * columns)
    )
    tiles = [marks[k * columns : (k + 1) * columns] for k in range(most)]
    return f"[{'|'.join(tiles)}]"


def _recent_strip(frame: Frame) -> str:
    """Tokens of the recent batches as heights."""
    sizes = [ran.prefill + ran.decode for ran in frame.history[-(WIDTH - 10) :]]
    return _bars(np.array(sizes), frame.budget) if sizes else "-"


def _bars(values: np.ndarray, most: float) -> str:
    levels = np.ceil(np.clip(values / max(most, 1), 0, 1) * (len(LEVELS) - 1)).astype(int)
    return "".join(LEVELS[level] for level in levels)


def _queue_lines(frame: Frame) -> list[str]:
    """One column for each request: d where it decodes, else its prompt left as a height."""
    count, columns = frame.prompt.size, WIDTH - 10
    longest = int(frame.prompt_left.max(initial=0))
    heights = _bars(frame.prompt_left, longest)
    symbols = "".join(h if p else "d" for h, p in zip(heights, frame.prompt_left, strict=True))
    marks = "".join("^" if served else " " for served in frame.in_batch)
    shown = min(count, 4 * columns)
    bar = f"bar: prompt left (full: {longest})" if longest else "no prompt left"
    lines = [f"queue   {count} requests in order of arrival; d: decodes, {bar}, ^: in the batch"]
    for start in range(0, shown, columns):
        part = slice(start, min(start + columns, shown))
        lines += [f"        {symbols[part]}", f"        {marks[part]}".rstrip()]
    return lines if count <= shown else [*lines, f"        and {count - shown} more"]


def _prompt_lines(frame: Frame, most: int = 6) -> list[str]:
    """The first requests with prompt left, one line each."""
    waiting = np.flatnonzero(frame.prompt_left)
    lines = [f"prompts {waiting.size} to go, the first:"] if waiting.size else []
    for n in waiting[:most]:
        left, prompt = frame.prompt_left[n], frame.prompt[n]
        done = round(20 * (1 - left / prompt))
        bar = "p" * done + "." * (20 - done)
        lines.append(
            f"        #{n + 1:<5} [{bar}] {left:>6} of {prompt:>6} tokens left, "
            f"waited {frame.waited_s[n]:8.2f} s{' ^' if frame.in_batch[n] else ''}"
        )
    return lines
