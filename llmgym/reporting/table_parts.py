"""What a table is made of: columns, cells, estimates, and titles between rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Emphasis = Literal["", "strong", "good", "bad"]
"""How a cell stands out: bold, or in a colour where there are colours."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval: ``13.87 [13.85, 13.90]``."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """A value with more to it.

    Attributes:
        value: what CSV and JSON hold, and what is shown where ``text`` is None.
        text: what is shown instead.
        note: follows the value where it is shown, such as the budget in ``5.40 (128)``.
        emphasis: how it stands out.
        link: the address that the text leads to, in Markdown and HTML.
    """

    value: Any
    text: str | None = None
    note: str = ""
    emphasis: Emphasis = ""
    link: str = ""


@dataclass(frozen=True)
class Section:
    """A title between rows, for those below it."""

    title: str


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        header: its heading.
        format: of numbers, as in ``format(x, ",.2f")``; or a function that makes a text of the value.
        unit: follows each number, such as ``" %"``.
        scale: numbers are shown times this; CSV and JSON hold them as they are.
        text: texts stand to the left and may wrap, numbers to the right.
        code: names in code, such as policies; Markdown and HTML show them as code.
        missing: what stands for None and NaN.
        best: emphasise the ``"low"`` or the ``"high"`` values of each section.
        key: its name in CSV and JSON; the heading where it has none.
    """

    header: str
    format: str | Callable[[Any], str] = ""
    unit: str = ""
    scale: float = 1.0
    text: bool = False
    code: bool = False
    missing: str = "-"
    best: Literal["", "low", "high"] = ""
    key: str = ""

    @property
    def name(self) -> str:
        """Its name in CSV and JSON."""
        return self.key or self.header

    def shown(self, value: Any) -> str:
        """A value as text."""
        if isinstance(value, Cell):
            return (self.shown(value.value) if value.text is None else value.text) + value.note
        if is_missing(value):
            return self.missing
        if callable(self.format):
            return self.format(value)
        if isinstance(value, Estimate):
            if is_missing(value.value):
                return self.missing
            if is_missing(value.low) or is_missing(value.high):  # one run has no interval
                return self._number(value.value) + self.unit
            mean, low, high = (self._number(x) for x in (value.value, value.low, value.high))
            return f"{mean} [{low}, {high}]{self.unit}"
        return str(value) if isinstance(value, (str, bool)) else self._number(value) + self.unit

    def _number(self, value: float) -> str:
        return format(value if self.scale == 1 else value * self.scale, str(self.format))


@dataclass(frozen=True)
class Shown:
    """A cell as it is drawn; the title of a section is a row of one."""

    text: str
    emphasis: Emphasis = ""
    code: bool = False
    link: str = ""


def is_missing(value: Any) -> bool:
    """Whether there is no value: None or NaN."""
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def number_of(value: Any) -> float | None:
    """The number in a cell; None for texts and for what is missing."""
    value = value.value if isinstance(value, Cell) else value
    value = value.value if isinstance(value, Estimate) else value
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return float(value) if number and not is_missing(value) else None


def percent(share: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "-" if share is None or is_missing(share) else f"{100 * share:.1f} %"
