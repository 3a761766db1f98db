"""Tables as text: fitted to a terminal, or with one line for each row in a pipe or a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from llmgym.reporting.table_parts import Column, Shown

STYLES = {"": "", "strong": "bold", "good": "green", "bad": "bold red"}
"""Styles of the emphasis that cells can have."""

LEAST = 16
"""Columns of text stay at least this wide; where that does not fit, the table is split."""

LEAST_BROKEN = 8
"""Any column, numbers too, is broken to this width before a line is longer than the terminal."""


@dataclass(frozen=True)
class Layout:
    """A table that draws itself with ``rich``.

    Attributes:
        columns: their headings, whose words may stand below each other, and their sides.
        rows: cells; a row of one is the title of the rows below it.
        title, notes: what stands above and below.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Shown, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """At most as wide as the terminal; columns that do not fit follow below, led by the first one."""
        if self.title:
            yield Text(self.title, "bold")
        yield from self._body(options.max_width, "-" if options.ascii_only else "─")
        for note in self.notes:
            yield Text(note, "dim")
        yield Text("")

    def plain(self, width: int | None = None) -> str:
        """Every row on one line, however wide; or fitted to a width."""
        lines = [self.title] if self.title else []
        lines += [line.plain for line in self._body(width, "-")]
        return "\n".join([*lines, *self.notes])

    def _body(self, most: int | None, rule: str) -> Iterator[Text]:
        """Headings and rows, at most ``most`` characters wide: in several parts where they do not fit."""
        every = range(len(self.columns))
        if most is None or sum(self._widths(whole=True)) + 2 * (len(every) - 1) <= most:
            yield from self._lines(every, self._widths(whole=True), 2, rule)
            return
        gap = 2 if self._least(2) <= most else 1
        own, floors = self._widths(), self._floors()
        for k, part in enumerate(self._parts(most, gap)):
            if k:
                yield Text("")
            room = most - gap * (len(part) - 1)
            widths = _shrunk([own[n] for n in part], [floors[n] for n in part], room)
            # Rather broken than cut: a terminal that is narrower still loses no character.
            widths = _shrunk(widths, [LEAST_BROKEN] * len(part), room)
            yield from self._lines(part, widths, gap, rule)

    def _widths(self, whole: bool = False) -> list[int]:
        """The width of each column on one line; headings may be on several, if not ``whole``."""
        found = []
        for n, column in enumerate(self.columns):
            texts = (row[n].text for row in self.rows if not self._is_section(row))
            lines = (cell_len(line) for text in texts for line in text.split("\n"))
            head = cell_len(column.header) if whole else _longest_word(column.header)
            found.append(max(head, *lines, 0))
        return found

    def _is_section(self, row: Sequence[Shown]) -> bool:
        return len(row) < len(self.columns)

    def _floors(self) -> list[int]:
        """The width that each column needs at least."""
        return [
            min(own, max(LEAST, _longest_word(column.header))) if column.text else own
            for column, own in zip(self.columns, self._widths(), strict=True)
        ]

    def _least(self, gap: int, numbers: Sequence[int] | None = None) -> int:
        """The width that columns need at least, by default all of them."""
        floors = self._floors()
        chosen = range(len(floors)) if numbers is None else numbers
        return sum(floors[n] for n in chosen) + gap * (len(chosen) - 1)

    def _parts(self, width: int, gap: int) -> list[tuple[int, ...]]:
        """Numbers of the columns that stand beside each other; the first one leads each part."""
        parts: list[tuple[int, ...]] = [(0,)]
        for n in range(1, len(self.columns)):
            if len(parts[-1]) > 1 and self._least(gap, (*parts[-1], n)) > width:
                parts.append((0,))
            parts[-1] = (*parts[-1], n)
        return parts

    def _lines(
        self, numbers: Sequence[int], widths: Sequence[int], gap: int, rule: str
    ) -> Iterator[Text]:
        """The columns of these numbers, in their widths and ``gap`` characters apart."""
        columns = [self.columns[n] for n in numbers]
        if any(column.header for column in columns):
            heads = [_wrapped(c.header, w) for c, w in zip(columns, widths, strict=True)]
            tall = max(map(len, heads))
            cells = [Shown("\n".join([""] * (tall - len(h)) + h)) for h in heads]
            yield from _row(columns, cells, widths, gap)
            yield Text((" " * gap).join(rule * width for width in widths))
        for row in self.rows:
            if self._is_section(row):
                yield Text(row[0].text, STYLES[row[0].emphasis])
            else:
                yield from _row(columns, [row[n] for n in numbers], widths, gap)


def _row(
    columns: Sequence[Column], cells: Sequence[Shown], widths: Sequence[int], gap: int
) -> Iterator[Text]:
    """The lines of one row: its cells beside each other, long ones on several lines."""
    several = [_wrapped(cell.text, width) for cell, width in zip(cells, widths, strict=True)]
    for parts in zip_longest(*several, fillvalue=""):
        line = Text(no_wrap=True)
        for n, (text, width, column) in enumerate(zip(parts, widths, columns, strict=True)):
            space = " " * (width - cell_len(text))
            line.append(" " * gap if n else "")
            line.append("" if column.text else space)
            line.append(text, STYLES[cells[n].emphasis])
            line.append(space if column.text else "")
        line.rstrip()
        yield line


def _shrunk(widths: list[int], floors: list[int], most: int) -> list[int]:
    """Widths that add up to ``most`` where they can: the widest gives way first."""
    widths = list(widths)
    while sum(widths) > most:
        free = [n for n, width in enumerate(widths) if width > floors[n]]
        if not free:
            break
        widths[max(free, key=lambda n: widths[n])] -= 1
    return widths


def _longest_word(header: str) -> int:
    return max((cell_len(word) for word in header.split()), default=0)


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, each as wide as its column at most; no character but spaces is lost."""
    lines = []
    for line in text.split("\n"):
        lines += [line] if cell_len(line) <= width else _broken(line, max(width, 2))
    return lines


def _broken(line: str, width: int) -> list[str]:
    """A line in several, between words where it can be; ``width`` counts cells of the terminal."""
    lines, current = [], ""
    for word in line.split():
        if current and cell_len(current) + 1 + cell_len(word) > width:
            lines.append(current)
            current = ""
        current = f"{current} {word}" if current else word
        *whole, current = chop_cells(current, width)
        lines += whole
    return [*lines, current]
