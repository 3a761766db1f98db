"""One visual language: the colour, line and marker of every policy, the same in every picture."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

from matplotlib.colors import to_hex, to_rgb

from llmgym import baselines

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6D31",
    "#7A5195",
    "#555555",
)
"""Distinct for the colour-blind (Okabe and Ito's palette first), and of different darkness in print."""

LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h", "<", ">", "p", "d")


class Style(NamedTuple):
    """How a policy is drawn; no two baselines have the same."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str


CHOSEN = {
    "faster_transformer": Style("#D55E00", ":", "v"),
    "vllm": Style("#E69F00", "-.", "^"),
    "orca": Style("#56B4E9", "--", "s"),
    "sarathi": Style("#0072B2", "-", "o"),
    "greedy_rate": Style("#009E73", "-", "D"),
    "tile_align": Style("#CC79A7", "--", "P"),
    "flush": Style("#8C6D31", "-", "h"),
    "index": Style("#7A5195", "-", "*"),
    "always_full": Style("#555555", "--", "<"),
    "random": Style("#999999", ":", "x"),
    "idle": Style("#BBBBBB", ":", "+"),
}
"""The policies that most pictures show."""

TUNED = ", best budget"
"""What follows the name of a baseline whose token budget is tuned: it is drawn half as bright."""

DARK = ("#000000", "#8B0A50", "#3B3B98", "#4A6B00", "#6E2C00")
DARK_MARKERS = ("*", "X", "P", "p", "h", "d", "8")
"""Learned policies, and those of a user, are dark."""


def _styles() -> dict[str, Style]:
    """A style for every baseline: those chosen above, and unused combinations for the others."""
    found = {name: CHOSEN[name] for name in CHOSEN}
    rest = [name for name in baselines.names() if name not in found]
    used = {(style.colour, style.marker) for style in found.values()}
    n = len(COLOURS)
    free = [
        Style(COLOURS[k % n], LINES[k // n % len(LINES)], MARKERS[(k + k // n) % len(MARKERS)])
        for k in range(n * len(MARKERS))
    ]
    unused = (style for style in free if (style.colour, style.marker) not in used)
    return found | dict(zip(rest, unused, strict=False))


STYLES = _styles()


def style(name: str) -> Style:
    """The style of a policy, by its name or file.

    With settings (``sarathi:token_budget=128``) a baseline keeps its colour, and line and marker differ; with
    a tuned budget (TUNED) it is darker. A name that is not known gets a dark colour. The style depends on
    the name alone.
    """
    base, _, settings = name.partition(":")
    if name.endswith(TUNED) and name.removesuffix(TUNED) in STYLES:
        red, green, blue = to_rgb(STYLES[name.removesuffix(TUNED)].colour)
        return Style(to_hex((red / 2, green / 2, blue / 2)), "--", "8")
    for known in (name, name.partition(",")[0], name.removesuffix(":prompts=split")):
        if known in STYLES:
            return STYLES[known]
    number = zlib.crc32(Path(name).name.encode())
    marker, line = DARK_MARKERS[number % len(DARK_MARKERS)], LINES[number // 16 % len(LINES)]
    if settings and base in STYLES:
        return Style(STYLES[base].colour, line, marker)
    return Style(DARK[number // 128 % len(DARK)], line, marker)


def colour(name: str) -> str:
    """The colour of a policy."""
    return style(name).colour
