"""Readers of public request traces. Each gives a Replay, times in seconds from its start.

- azure: Azure Public Dataset 2023, a CSV with TIMESTAMP (dates of up to nine fractional digits),
  ContextTokens, GeneratedTokens.
- mooncake: Mooncake, one JSON object a line with timestamp (milliseconds, in bins of 3 s, so that
  requests come in bunches), input_length, output_length. hash_ids (shared prefixes) are not used.
- csv: a CSV of your own with arrival (seconds), prefill, decode (tokens).

Input and generated tokens become prefill and decode tokens as they stand. A row without generated
tokens is a request that only needs its prompt processed, and is kept (the published Azure files of
2023 have none); a row without any tokens is refused.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, TextIO

import numpy as np
import pandas as pd

from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.lengths import MAX_TOKENS
from llmgym.workload import Replay


@dataclass(frozen=True)
class _Format:
    """Accepted names of the columns arrival, prefill and decode, and the unit of the first."""

    columns: tuple[tuple[str, ...], ...]
    units_per_s: float
    dates: bool = False
    json_lines: bool = False

    def __str__(self) -> str:
        return ", ".join(names[0] for names in self.columns)


FORMATS = {
    "azure": _Format((("TIMESTAMP",), ("ContextTokens",), ("GeneratedTokens",)), 1e9, dates=True),
    "mooncake": _Format(
        (("timestamp",), ("input_length",), ("output_length",)), 1e3, json_lines=True
    ),
    "csv": _Format(
        (("arrival", "arrival_s"), ("prefill", "prefill_tokens"), ("decode", "decode_tokens")), 1
    ),
}
"""The trace formats by name."""

DATE = re.compile(r"(19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d")


@dataclass
class _Rows:
    """The three columns as read, with the line of the file that each row stands on."""

    path: Path
    names: list[str]
    lines: list[int] = field(default_factory=list)
    cells: tuple[list[Any], list[Any], list[Any]] = field(default_factory=lambda: ([], [], []))

    def add(self, line: int, cells: list[Any]) -> None:
        self.lines.append(line)
        for column, cell in zip(self.cells, cells, strict=True):
            column.append(cell)

    def refuse(self, bad: np.ndarray, column: int, text: str) -> None:
        """Raise for the first row that is ``bad``."""
        rows = np.flatnonzero(bad)
        if rows.size:
            raise LLMGymError(
                f"{self.path}, line {self.lines[rows[0]]}: {self.names[column]} is "
                f"{shortened(self.cells[column][rows[0]])}{text}"
            )

    def numbers(self, column: int) -> np.ndarray:
        """A column as finite numbers of 0 or more."""
        values = np.array([_number(cell) for cell in self.cells[column]])
        bad = ~((values >= 0) & (values < np.inf))
        self.refuse(bad, column, ", not a number of 0 or more; mend or drop the row.")
        return values

    def tokens(self, column: int) -> np.ndarray:
        """A column as token counts."""
        values = self.numbers(column)
        bad = (values != np.rint(values)) | (values > MAX_TOKENS)
        self.refuse(bad, column, f", not a whole number of at most {MAX_TOKENS} tokens.")
        return values.astype(np.int32)

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


def read_trace(path: str | Path, format: str | None = None, limit: int | None = None) -> Replay:
    """Read a request trace.

    Args:
        path: the file.
        format: ``"azure"``, ``"mooncake"`` or ``"csv"``; None: told from its name and first line.
        limit: read only the first ``limit`` requests; None: all.

    Returns:
        Replay with ``arrival_s`` counted from the first request.

    Raises:
        LLMGymError: a missing, empty or binary file, an unknown format or column, or a bad row:
            cut, not a number, negative, without tokens, out of order. It names file and line.
    """
    if format is not None and format not in FORMATS:
        raise unknown("trace format", format, FORMATS)
    if limit is not None:
        check_number("limit", limit, low=1, integer=True)
    if not isinstance(path, (str, os.PathLike)):
        raise LLMGymError(f"path must name a trace file, got {path!r}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _read(Path(path), format, limit, file)
    except LLMGymError:
        raise
    except UnicodeDecodeError:
        raise LLMGymError(f"{path} is not UTF-8 text; if it is compressed, unpack it.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LLMGymError(
            f"Cannot read trace {path!s}: {reason}. Give one readable file."
        ) from None


def _read(path: Path, format: str | None, limit: int | None, file: TextIO) -> Replay:
    first = file.readline()
    if not first.strip():
        raise LLMGymError(
            f"{path} is empty or starts with an empty line; a trace starts on line 1."
        )
    trace_format = FORMATS[format or _detect(path, first)]
    read_rows = _read_json_lines if trace_format.json_lines else _read_csv
    rows = read_rows(path, trace_format, chain([first], file), limit)
    if not rows.lines:
        raise LLMGymError(f"{path} has a header but no request.")

    arrival = rows.nanoseconds(0) if trace_format.dates else rows.numbers(0)
    back = np.diff(arrival, prepend=arrival[0]) < 0
    rows.refuse(back, 0, ", earlier than in the row before; sort the rows by it.")
    prefill, decode = rows.tokens(1), rows.tokens(2)
    rows.refuse(prefill + decode == 0, 1, f" and {rows.names[2]} too; drop the row.")
    return Replay((arrival - arrival[0]) / trace_format.units_per_s, prefill, decode)


def _detect(path: Path, first: str) -> str:
    """The format whose columns the first line names."""
    if path.suffix == ".jsonl" or first.lstrip().startswith("{"):
        return "mooncake"
    header = {cell.strip().strip('"') for cell in first.split(",")}
    tables = {name: f.columns for name, f in FORMATS.items() if not f.json_lines}
    found = {name: sum(bool(header & {*c}) for c in columns) for name, columns in tables.items()}
    best = max(found, key=found.__getitem__)
    if not found[best]:
        known = "; ".join(f"{name}: {f}" for name, f in FORMATS.items())
        raise LLMGymError(
            f"{path}, line 1: {shortened(first.strip())} has no known column. By format: {known}."
        )
    return best


def _read_csv(path: Path, wanted: _Format, lines: Iterable[str], limit: int | None) -> _Rows:
    reader = csv.reader(lines, strict=True)
    try:
        header = [cell.strip() for cell in next(reader)]
        places = [_find(path, header, names, wanted) for names in wanted.columns]
        rows = _Rows(path, [header[place] for place in places])
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise LLMGymError(
                    f"{path}, line {reader.line_num}: {len(cells)} columns where the header has "
                    f"{len(header)}; the row is cut or damaged: mend or drop it."
                )
            rows.add(reader.line_num, [cells[place] for place in places])
            if len(rows.lines) == limit:
                break
    except csv.Error as error:
        raise LLMGymError(
            f"{path}, line {reader.line_num}: {error}; the file is cut or damaged."
        ) from None
    return rows


def _find(path: Path, header: list[str], names: tuple[str, ...], wanted: _Format) -> int:
    """Where in the header the column stands that goes by one of ``names``."""
    for name in names:
        if name in header:
            return header.index(name)
    raise LLMGymError(
        f"{path}, line 1: column {' or '.join(names)} is missing. Needed: {wanted}; "
        f"found: {shortened(', '.join(header))}."
    )


def _read_json_lines(path: Path, wanted: _Format, lines: Iterable[str], limit: int | None) -> _Rows:
    rows = _Rows(path, [names[0] for names in wanted.columns])
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
                "mend or drop it."
            )
        missing = [name for name in rows.names if name not in record]
        if missing:
            raise LLMGymError(f"{path}, line {number}: {missing[0]} is missing. Needed: {wanted}.")
        rows.add(number, [record[name] for name in rows.names])
        if len(rows.lines) == limit:
            break
    return rows


def summary(replay: Replay) -> dict[str, float | int | None]:
    """What a trace is like: its size, its arrivals and its mean lengths.

    Returns:
        requests; span_s, from first to last arrival; rate_per_s, the mean rate over the span;
        gap_cv, the coefficient of variation of the gaps between arrivals (1 for Poisson);
        mean_prefill_tokens and mean_decode_tokens. rate_per_s and gap_cv are None where all
        requests come at one instant.
    """
    arrival = np.asarray(replay.arrival_s)
    gaps, span = np.diff(arrival), float(arrival[-1] - arrival[0])
    return {
        "requests": len(replay),
        "span_s": span,
        "rate_per_s": replay.rate_per_s if span > 0 else None,
        "gap_cv": float(np.std(gaps) / np.mean(gaps)) if span > 0 else None,
        "mean_prefill_tokens": replay.mean_prefill,
        "mean_decode_tokens": replay.mean_decode,
    }


def window(replay: Replay, start_s: float, end_s: float) -> Replay:
    """The requests that arrive in [start_s, end_s), with times counted from ``start_s``.

    Raises:
        LLMGymError: bounds that are no numbers or out of order, or a window without arrivals.
    """
    check_number("start_s", start_s, low=0)
    check_number("end_s", end_s, above=start_s)
    arrival = np.asarray(replay.arrival_s)
    inside = slice(*np.searchsorted(arrival, [start_s, end_s]))
    if not arrival[inside].size:
        raise LLMGymError(
            f"No request arrives between {start_s:g} and {end_s:g} s; the replay runs from "
            f"{arrival[0]:g} to {arrival[-1]:g} s."
        )
    return replace(
        replay,
        arrival_s=arrival[inside] - start_s,
        prefill_tokens=replay.prefill_tokens[inside],
        decode_tokens=replay.decode_tokens[inside],
    )
