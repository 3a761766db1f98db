"""Readers of public request traces. Each gives a Replay, times in seconds from its start.

- azure: Azure Public Dataset 2023, a CSV with TIMESTAMP (dates of up to nine fractional digits),
  ContextTokens, GeneratedTokens.
- mooncake: Mooncake, one JSON object per line with timestamp (milliseconds, in bins of 3 s, so that
  requests come in bunches), input_length, output_length, and perhaps hash_ids, which says what every
  512 tokens of the prompt are, for prefix caching.
- vllm: the requests of a vLLM benchmark, one JSON object per line with queued_ts or else arrival_time
  (seconds on any clock), input_toks, output_toks, in any order: they are sorted by arrival. Other
  entries are not used; ``llmgym.calibration.validate`` compares the times of a whole run.
- csv: a CSV of your own with arrival (seconds), prefill, decode (tokens), and perhaps tenant: whose
  request it is; or priority, a whole number: more is served first.

Input and generated tokens become prefill and decode tokens as they stand. A row without generated
tokens is a request that only needs its prompt processed, and is kept (the published Azure files of
2023 have none). A row without any tokens is refused; in the vllm format so is one without a prompt or
without output.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from llmgym.core.checks import check_kind, check_name
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.scenario.prefixes import dense
from llmgym.scenario.replay import Replay
from llmgym.traces.other_files import what_else
from llmgym.traces.rows import Format, first_line, opened, read_rows

FORMATS = {
    "azure": Format((("TIMESTAMP",), ("ContextTokens",), ("GeneratedTokens",)), 1e9, dates=True),
    "mooncake": Format(
        (("timestamp",), ("input_length",), ("output_length",)),
        1e3,
        json_lines=True,
        prefix="hash_ids",
        prefix_tokens=512,
    ),
    "vllm": Format(
        (("queued_ts", "arrival_time"), ("input_toks",), ("output_toks",)),
        json_lines=True,
        in_order=False,
        least_tokens=1,
    ),
    "csv": Format(
        (("arrival", "arrival_s"), ("prefill", "prefill_tokens"), ("decode", "decode_tokens")),
        tenant=("tenant", "class"),
        priority=("priority",),
    ),
}
"""The trace formats by name."""


def read_trace(path: str | Path, format: str | None = None, limit: int | None = None) -> Replay:
    """Read a request trace.

    Args:
        path: the file.
        format: ``"azure"``, ``"mooncake"``, ``"vllm"`` or ``"csv"``; None: found from its name and
            first line.
        limit: read only the first ``limit`` rows of the file; None: all.

    Returns:
        Replay with ``arrival_s`` counted from the first request.

    Raises:
        LLMGymError: a missing, empty or binary file, an unknown format or column, or a bad row:
            cut, not a number, negative, without tokens, out of order. It names file and line.
    """
    if format is not None:
        check_name("trace format", format, FORMATS)
    if limit is not None:
        limit = check_number("limit", limit, low=1, integer=True)
    try:
        with opened(path, whole=limit is None) as file:
            return _read(Path(path), format, limit, file)
    except LLMGymError as error:
        other = what_else(Path(path)) if isinstance(path, (str, os.PathLike)) else ""
        raise (LLMGymError(other) if other else error) from None


def _read(path: Path, format: str | None, limit: int | None, file: TextIO) -> Replay:
    first = first_line(path, file)
    wanted = FORMATS[format or _detect(path, first)]
    rows = read_rows(path, wanted, first, file, limit)
    arrival = rows.nanoseconds(0) if wanted.dates else rows.numbers(0)
    if wanted.in_order:
        back = np.diff(arrival, prepend=arrival[0]) < 0
        rows.refuse(back, 0, ", earlier than in the row before; sort the rows by it.")
    prefill, decode = (rows.tokens(column, wanted.least_tokens) for column in (1, 2))
    rows.refuse(prefill + decode == 0, 1, f" and {rows.names[2]} too; drop the row.")
    order = np.argsort(arrival, kind="stable")
    arrival_s = (arrival[order] - arrival.min()) / wanted.units_per_s
    found = {name: column for column, name in enumerate(rows.names) if column > 2}
    more: dict[str, Any] = {}
    for name, column in found.items():
        if name in wanted.priority:
            more["priority"] = rows.numbers(column)[order]
        else:
            more["tenant"] = np.array(rows.words(column), object)[order]
    try:
        replay = Replay(arrival_s, prefill[order], decode[order], **more)
    except LLMGymError as error:
        raise LLMGymError(f"{path}: {error}") from None
    if not rows.prefixes:
        return replay
    ids = dense([rows.prefixes[n] for n in order])
    return replace(replay, prefix_ids=ids, prefix_tokens=wanted.prefix_tokens)


def _detect(path: Path, first: str) -> str:
    """The format whose columns the first line names."""
    if path.suffix == ".jsonl" or first.lstrip().startswith("{"):
        own = [name for names in FORMATS["vllm"].columns for name in names]
        return "vllm" if any(f'"{name}"' in first for name in own) else "mooncake"
    header = {cell.strip().strip('"') for cell in first.split(",")}
    tables = {name: f.columns for name, f in FORMATS.items() if not f.json_lines}
    found = {name: sum(bool(header & {*c}) for c in columns) for name, columns in tables.items()}
    best = max(found, key=found.__getitem__)
    if not found[best]:
        known = "; ".join(f"{name}: {f}" for name, f in FORMATS.items())
        raise LLMGymError(
            f"{path}, line 1: {shown(first.strip())} has no known column. By format: {known}."
        )
    return best


def summary(replay: Replay) -> dict[str, float | int | None]:
    """What a trace is like: its size, its arrivals and its mean lengths.

    Returns:
        requests; span_s, from first to last arrival; rate_per_s, the mean rate over the span;
        gap_cv, the coefficient of variation of the gaps between arrivals (1 for Poisson);
        mean_prefill_tokens and mean_decode_tokens. rate_per_s and gap_cv are None where all
        requests come at one instant.
    """
    check_kind("replay", replay, Replay)
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
