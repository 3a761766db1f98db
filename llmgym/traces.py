"""Readers of public request traces; each gives a Replay with times in seconds from the first request.

==========  ===========================================================================================
azure       Azure Public Dataset 2023, CSV: TIMESTAMP (dates of up to nine fractional digits),
            ContextTokens, GeneratedTokens.
mooncake    Mooncake, one JSON object a line: timestamp (milliseconds, in bins of 3 s, so requests come
            in bunches), input_length, output_length. hash_ids (shared prefixes) are not used.
csv         A CSV of your own: arrival (seconds), prefill, decode (tokens).
==========  ===========================================================================================

Input and generated tokens become prefill and decode tokens as they stand. A row without generated
tokens is a request that only needs its prompt processed, and is kept (the published Azure files have
none); a row with neither is refused.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import pandas as pd

from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.lengths import MAX_TOKENS
from llmgym.workload import Replay


@dataclass(frozen=True)
class _Format:
    """Accepted names of the columns arrival, prefill and decode, and the unit of the first."""

    columns: tuple[tuple[str, ...], ...]
    units_per_s: float | None  # None: dates
    json_lines: bool = False

    def __str__(self) -> str:
        return ", ".join(names[0] for names in self.columns)


FORMATS = {
    "azure": _Format((("TIMESTAMP",), ("ContextTokens",), ("GeneratedTokens",)), None),
    "mooncake": _Format((("timestamp",), ("input_length",), ("output_length",)), 1000.0, True),
    "csv": _Format(
        (("arrival", "arrival_s"), ("prefill", "prefill_tokens"), ("decode", "decode_tokens")), 1.0
    ),
}
"""The trace formats by name."""

DATE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d")


@dataclass
class _Rows:
    """The three columns as read, with the line of the file that each row stands on."""

    path: Path
    names: list[str]
    lines: list[int] = field(default_factory=list)
    cells: tuple[list[Any], list[Any], list[Any]] = field(default_factory=lambda: ([], [], []))

    def error(self, row: int, text: str) -> LLMGymError:
        return LLMGymError(f"{self.path}, line {self.lines[row]}: {text}")

    def numbers(self, column: int) -> np.ndarray:
        """A column as finite numbers of 0 or more."""
        name, values = self.names[column], np.empty(len(self.lines))
        for row, cell in enumerate(self.cells[column]):
            try:
                values[row] = np.nan if isinstance(cell, bool) else float(cell)
            except (TypeError, ValueError, OverflowError):
                values[row] = np.nan
            if not 0 <= values[row] < np.inf:
                raise self.error(
                    row, f"{name} must be a number of 0 or more, got {shortened(cell)}; mend or drop the row."
                )
        return values

    def tokens(self, column: int) -> np.ndarray:
        """A column as token counts."""
        values = self.numbers(column)
        bad = np.flatnonzero((values != np.rint(values)) | (values > MAX_TOKENS))
        if bad.size:
            cell = shortened(self.cells[column][bad[0]])
            raise self.error(
                bad[0],
                f"{self.names[column]} must be a whole number of at most {MAX_TOKENS} tokens, got {cell}.",
            )
        return values.astype(np.int32)

    def dates(self, column: int) -> np.ndarray:
        """A column of ISO dates as nanoseconds, so that no digit is lost."""
        cells = self.cells[column]
        parsed = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce").as_unit("ns")
        for row in range(len(cells)):
            if not DATE.match(cells[row]) or pd.isna(parsed[row]):
                raise self.error(
                    row,
                    f"{self.names[column]} must be a date such as 2023-11-16 18:15:46.6805900, "
                    f"got {shortened(cells[row])}.",
                )
        return parsed.asi8


def read_trace(path: str | Path, format: str | None = None, limit: int | None = None) -> Replay:
    """Read a request trace.

    Args:
        path: the file.
        format: ``"azure"``, ``"mooncake"`` or ``"csv"``; None: told from the content of its first line.
        limit: read only the first ``limit`` requests; None: all.

    Returns:
        Replay with ``arrival_s`` counted from the first request.

    Raises:
        LLMGymError: a missing, empty or binary file, an unknown format or column, or a bad row (cut, not
            a number, negative, no tokens, out of order); the message names file and line.
    """
    if format is not None and format not in FORMATS:
        raise unknown("trace format", format, FORMATS)
    if limit is not None:
        check_number("limit", limit, low=1, integer=True)
    rows = _read_rows(path, format, None if limit is None else int(limit))
    if not rows.lines:
        raise LLMGymError(f"{rows.path} holds no request: it is empty or has only a header.")
    return _replay(rows)


def _read_rows(path: str | Path, format: str | None, limit: int | None) -> _Rows:
    """Open the file, tell its format and collect the three columns."""
    try:
        with open(Path(path), encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            if not first.strip():
                raise LLMGymError(f"{path} is empty, or starts with an empty line: give a trace file.")
            kind = format or _detect(path, first)
            text = chain([first], file)
            rows, found = (_json_rows if FORMATS[kind].json_lines else _csv_rows)(path, kind, text)
            for line, cells in islice(found, limit):
                rows.lines.append(line)
                for column, cell in zip(rows.cells, cells, strict=True):
                    column.append(cell)
            return rows
    except UnicodeDecodeError:
        raise LLMGymError(f"{path} is not UTF-8 text: unpack it, or check the file.") from None
    except FileNotFoundError:
        raise LLMGymError(f"There is no trace file {path}: check the path.") from None
    except IsADirectoryError:
        raise LLMGymError(f"{path} is a folder: give one trace file in it.") from None
    except (OSError, TypeError) as error:
        raise LLMGymError(f"Cannot read trace file {path}: {error}.") from None
