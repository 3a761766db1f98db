"""Rows of request files: the columns of a CSV or of JSON lines, each fault named by its line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from llmgym.core import reading
from llmgym.core.errors import LLMGymError, shown
from llmgym.scenario.lengths import MAX_TOKENS

MOST_BYTES, MOST_ROWS = 2**28, 2**22
"""Largest trace that is read in full, in bytes and in requests: it takes about a gigabyte of memory."""

MOST_OF_A_LINE = 2**20
"""Most characters of a line."""

MOST_PREFIXES = 2**23
"""Most entries that all lists of what prompts begin with may have together."""

DATE = re.compile(r"(19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d")


@dataclass(frozen=True)
class Format:
    """A kind of request file.

    Args:
        columns: accepted names of each column; the first three are arrival, prefill and decode.
        tenant: accepted names of an optional column that says whose request it is (CSV only).
        priority: the same of a column with its priority.
        units_per_s: of arrivals.
        dates: whether arrivals are dates.
        json_lines: whether a row is a JSON object; else the file is a CSV with a header.
        in_order: whether rows come in order of arrival.
        least_tokens: fewest tokens of a prompt, and of an output.
        prefix: name of an optional column that lists what the prompt begins with (JSON lines only).
        prefix_tokens: tokens of each of its entries.
    """

    columns: tuple[tuple[str, ...], ...]
    units_per_s: float = 1
    dates: bool = False
    json_lines: bool = False
    in_order: bool = True
    least_tokens: int = 0
    prefix: str = ""
    prefix_tokens: int = 0
    tenant: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(
            " or ".join(names) if self.json_lines else names[0] for names in self.columns
        )


@dataclass
class Rows:
    """The columns as read, with the line of the file that each row stands on."""

    path: Path
    names: list[str]
    lines: list[int] = field(default_factory=list)
    prefixes: list[list[Any]] = field(default_factory=list)
    cells: list[list[Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = [[] for _ in self.names]

    def add(self, line: int, cells: list[Any]) -> None:
        """Append a row."""
        self.lines.append(line)
        for column, cell in zip(self.cells, cells, strict=True):
            column.append(cell)

    def refuse(self, bad: np.ndarray, column: int, text: str) -> None:
        """Raise LLMGymError for the first row that is bad, if there is one.

        Args:
            bad: which rows are bad, bool (rows,).
            column: number of the column that the error shows.
            text: what follows the value in the error, with a comma or colon before it.
        """
        rows = np.flatnonzero(bad)
        if rows.size:
            raise LLMGymError(
                f"{self.path}, line {self.lines[rows[0]]}: {self.names[column]} is "
                f"{shown(self.cells[column][rows[0]])}{text}"
            )

    def numbers(self, column: int) -> np.ndarray:
        """A column as finite numbers of 0 or more."""
        values = np.array([_number(cell) for cell in self.cells[column]])
        bad = ~((values >= 0) & (values < np.inf))
        self.refuse(bad, column, ", not a number of 0 or more; fix or drop the row.")
        return values

    def tokens(self, column: int, least: int = 0) -> np.ndarray:
        """A column as token counts of at least ``least``."""
        values = self.numbers(column)
        bad = (values != np.rint(values)) | (values > MAX_TOKENS)
        self.refuse(bad, column, f", not a whole number of at most {MAX_TOKENS} tokens.")
        self.refuse(values < least, column, f", below {least}: drop the row.")
        return values.astype(np.int32)

    def words(self, column: int) -> list[str]:
        """A column of text, in which no cell is empty."""
        words = [str(cell).strip() for cell in self.cells[column]]
        self.refuse(np.array([not word for word in words]), column, ": name it or drop the row.")
        return words

    def nanoseconds(self, column: int) -> np.ndarray:
        """A column of ISO dates as whole nanoseconds, so that no digit is lost."""
        cells = self.cells[column]
        parsed = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
        bad = parsed.isna() | [DATE.match(cell) is None for cell in cells]
        self.refuse(bad, column, ", not a date such as 2023-11-16 18:15:46.6805900.")
        return parsed.as_unit("ns").asi8


def _number(cell: Any) -> float:
    """A cell as a number; NaN where it is none."""
    try:
        return np.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return np.nan


@contextmanager
def opened(path: str | Path, whole: bool = True) -> Iterator[TextIO]:
    """The request file, open to read.

    Args:
        path: of the file.
        whole: whether all of it will be read, so that it must not be too large.

    Raises:
        LLMGymError: a missing, unreadable or binary file, or one that is no ordinary file or too large.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise LLMGymError(f"path must name a trace file, got {shown(path)}.")
    hint = "Give one readable file, or a part of it."
    with reading.opened(path, "trace", MOST_BYTES if whole else None, hint) as file:
        try:
            yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        except UnicodeDecodeError:
            raise LLMGymError(
                f"{path} is not UTF-8 text; if it is compressed, unpack it."
            ) from None


def first_line(path: Path, file: TextIO) -> str:
    """The first line, which must not be empty."""
    first = next(_lines(path, file), "")
    if not first.strip():
        raise LLMGymError(
            f"{path} is empty or starts with an empty line; a trace starts on line 1."
        )
    return first


def read_rows(
    path: Path, wanted: Format, first: str, file: TextIO, limit: int | None = None
) -> Rows:
    """The rows of a file whose first line has already been read.

    Args:
        path: of the file, for errors.
        wanted: its format.
        first: its first line.
        file: open, at its second line.
        limit: most rows that are read; None: all.

    Raises:
        LLMGymError: a missing column, a damaged row, or no row at all.
    """
    read = _read_json_lines if wanted.json_lines else _read_csv
    rows = read(path, wanted, chain([first], _lines(path, file, 2)), limit or MOST_ROWS + 1)
    if len(rows.lines) > MOST_ROWS:
        raise LLMGymError(
            f"{path} has more than {MOST_ROWS:,} requests; give a part of it, or a limit."
        )
    if not rows.lines:
        raise LLMGymError(f"{path} has a header but no request.")
    return rows


def _lines(path: Path, file: TextIO, start: int = 1) -> Iterator[str]:
    """The lines of a file from where it stands, which is line ``start``; none may be endless."""
    number, length = start, 0
    while line := file.readline(MOST_OF_A_LINE + 1):
        length += len(line)
        if len(line) > MOST_OF_A_LINE:
            raise LLMGymError(
                f"{path}, line {number}: more than {MOST_OF_A_LINE:,} characters; this is no trace."
            )
        if length > MOST_BYTES:
            raise LLMGymError(
                f"{path}, line {number}: {MOST_BYTES:,} characters are read at most; give a lower limit."
            )
        yield line
        number += 1


def _read_csv(path: Path, wanted: Format, lines: Iterable[str], limit: int) -> Rows:
    reader = csv.reader(lines, strict=True)
    try:
        header = [cell.strip() for cell in next(reader)]
        places = [_find(path, header, names, wanted) for names in wanted.columns]
        for names in (wanted.tenant, wanted.priority):
            places += [header.index(name) for name in names if name in header][:1]
        rows = Rows(path, [header[place] for place in places])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise LLMGymError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns where the header has "
                    f"{len(header)}; the row is cut or damaged: fix or drop it."
                )
            rows.add(reader.line_num, [cells[place] for place in places])
            if len(rows.lines) == limit:
                break
    except csv.Error as error:
        raise LLMGymError(
            f"{path}, line {reader.line_num}: {error}; the file is cut or damaged."
        ) from None
    return rows


def _find(path: Path, header: list[str], names: tuple[str, ...], wanted: Format) -> int:
    """Where in the header the column stands that goes by one of ``names``."""
    for name in names:
        if name in header:
            return header.index(name)
    raise LLMGymError(
        f"{path}, line 1: column {' or '.join(names)} is missing. Needed: {wanted}; "
        f"found: {shown(', '.join(header))}."
    )


def _read_json_lines(path: Path, wanted: Format, lines: Iterable[str], limit: int) -> Rows:
    rows: Rows | None = None
    shares, prefixes = False, 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise LLMGymError(
                f"{path}, line {number}: not one whole JSON object; the line is cut or damaged: "
                "fix or drop it."
            )
        if rows is None:  # the names that the first row has are those of all
            found = [[n for n in names if n in record] or names for names in wanted.columns]
            rows = Rows(path, [names[0] for names in found])
            shares = wanted.prefix in record
        missing = [i for i, name in enumerate(rows.names) if name not in record]
        if missing:
            names = " or ".join(wanted.columns[missing[0]])
            raise LLMGymError(f"{path}, line {number}: {names} is missing. Needed: {wanted}.")
        cells = [record[name] for name in rows.names]
        # What is no number or text is refused later; until then its beginning is enough.
        rows.add(number, [shown(x) if isinstance(x, (dict, list)) else x for x in cells])
        if shares:
            rows.prefixes.append(_prefix(path, number, wanted.prefix, record))
            prefixes += len(rows.prefixes[-1])
            if prefixes > MOST_PREFIXES:
                raise LLMGymError(
                    f"{path}, line {number}: {MOST_PREFIXES:,} entries of {wanted.prefix} are read at "
                    "most; give a part of the trace, or a limit."
                )
        if len(rows.lines) == limit:
            break
    return rows or Rows(path, [])


def _prefix(path: Path, line: int, name: str, record: dict[str, Any]) -> list[Any]:
    """The list of what a prompt begins with."""
    listed = record.get(name)
    if not isinstance(listed, list) or not all(isinstance(x, (int, str)) for x in listed):
        raise LLMGymError(
            f"{path}, line {line}: {name} is {shown(listed)}, not a list of numbers or strings; "
            "fix it, or drop the column from all rows."
        )
    return listed
