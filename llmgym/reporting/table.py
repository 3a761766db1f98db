"""A table as a value: made once from numbers, then drawn for a terminal, Markdown, HTML, CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmgym.core.files import csv_cell
from llmgym.core.text import visible
from llmgym.reporting import table_markup
from llmgym.reporting.table_parts import (
    Cell,
    Column,
    Emphasis,
    Estimate,
    Section,
    Shown,
    is_missing,
    number_of,
    percent,
)
from llmgym.reporting.table_text import Layout

__all__ = ["Cell", "Column", "Emphasis", "Estimate", "Section", "Table", "csv_text", "percent"]


@dataclass(frozen=True)
class Table:
    """Columns, and rows of values.

    A value is a text, a number, an ``Estimate``, a ``Cell``, or None where there is none. A row has one for
    each column, or is a ``Section``.

    Attributes:
        columns: see Column.
        rows: from top to bottom.
        title: stands above.
        notes: stand below, each a paragraph.

    Raises ValueError where a row has more or fewer values than there are columns.
    """

    columns: tuple[Column, ...]
    rows: tuple[Sequence[Any] | Section, ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if not isinstance(row, Section) and len(row) != len(self.columns):
                raise ValueError(f"{len(row)} values for {len(self.columns)} columns: {row}")

    def __rich__(self) -> Layout:
        return self.to_terminal()

    def to_terminal(self) -> Layout:
        """For ``rich``: as wide as the terminal at most, in several parts where it is too narrow."""
        return Layout(self.columns, self._shown(), visible(self.title), self._notes())

    def to_text(self, width: int | None = None) -> str:
        """Plain text with a line for each row, for pipes and files; or fitted to a width."""
        return self.to_terminal().plain(width)

    def to_markdown(self) -> str:
        """GitHub's Markdown; title and notes are paragraphs of their own."""
        above = [f"**{table_markup.markdown_text(self.title)}**"] if self.title else []
        table = table_markup.markdown(self.columns, self._shown())
        return "\n\n".join([*above, table, *map(table_markup.markdown_text, self._notes())])

    def to_html(self) -> str:
        """A ``table`` element, and a paragraph for each note."""
        table = table_markup.html(self.columns, self._shown(), visible(self.title))
        return "\n".join([table, *map(table_markup.html_note, self._notes())])

    def to_csv(self) -> str:
        """The values in full, intervals as columns ``..._low`` and ``..._high``, nothing for None."""
        return csv_text(self.records(), self._names())

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each row with the values themselves, None for what is missing."""
        found: list[dict[str, Any]] = []
        section: str | None = None
        names = self._names()
        for row in self.rows:
            if isinstance(row, Section):
                section = row.title
                continue
            record: dict[str, Any] = dict.fromkeys(names)
            if "section" in record and section is not None:
                record["section"] = section
            for column, value in zip(self.columns, row, strict=True):
                plain = value.value if isinstance(value, Cell) else value
                if isinstance(plain, Estimate):
                    ends = (plain.value, plain.low, plain.high)
                    record |= dict(zip(_ends(column.name), ends, strict=True))
                elif not is_missing(plain):
                    record[column.name] = plain
            found.append(record)
        return found

    def _names(self) -> list[str]:
        """The columns of the records."""
        names = ["section"] if any(isinstance(row, Section) for row in self.rows) else []
        for m, column in enumerate(self.columns):
            values = [row[m] for row in self.rows if not isinstance(row, Section)]
            plain = (value.value if isinstance(value, Cell) else value for value in values)
            wide = any(isinstance(value, Estimate) for value in plain)
            names += _ends(column.name) if wide else [column.name]
        return names

    def _notes(self) -> tuple[str, ...]:
        return tuple(map(visible, self.notes))

    def _shown(self) -> tuple[tuple[Shown, ...], ...]:
        """All cells as they are drawn, with every character visible."""
        found: list[tuple[Shown, ...]] = []
        best = self._best()
        for n, row in enumerate(self.rows):
            if isinstance(row, Section):
                found.append((Shown(visible(row.title), "strong"),))
                continue
            cells = []
            for m, (column, value) in enumerate(zip(self.columns, row, strict=True)):
                given = value if isinstance(value, Cell) else Cell(value)
                emphasis: Emphasis = given.emphasis or ("strong" if (n, m) in best else "")
                code = column.code and not is_missing(given.value)
                cells.append(Shown(visible(column.shown(value)), emphasis, code, given.link))
            found.append(tuple(cells))
        return tuple(found)

    def _best(self) -> set[tuple[int, int]]:
        """Rows and columns of the best value of each section, and of its equals."""
        found = set()
        for part in self._parts():
            for m, column in enumerate(self.columns):
                numbers = {n: number_of(row[m]) for n, row in part}
                known = {n: x for n, x in numbers.items() if x is not None}
                if column.best and len(known) > 1:
                    best = (min if column.best == "low" else max)(known.values())
                    found |= {(n, m) for n, x in known.items() if x == best}
        return found

    def _parts(self) -> Iterator[list[tuple[int, Sequence[Any]]]]:
        """The rows of each section, with their numbers."""
        part: list[tuple[int, Sequence[Any]]] = []
        for n, row in enumerate(self.rows):
            if isinstance(row, Section):
                yield part
                part = []
            else:
                part.append((n, row))
        yield part


def csv_text(records: Sequence[dict[str, Any]], names: Sequence[str] | None = None) -> str:
    """Records as CSV, by default with the columns of the first one; no text is a formula there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0] if names is None else names))
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in records)
    return text.getvalue()


def _ends(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]
