"""Tables of policies on the requests of a trace, from the records of ``llmgym.evaluation.traffic``."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from llmgym.core.files import write
from llmgym.reporting.service_tables import percent

COLUMNS = (
    "policy",
    "goodput_per_s",
    "slo_attainment",
    "ttft_attainment",
    "tpot_attainment",
    "ttft_ms_mean",
    "ttft_ms_p50",
    "ttft_ms_p99",
    "tpot_ms_mean",
    "tpot_ms_p99",
    "e2e_ms_mean",
    "e2e_ms_p99",
    "preemptions",
    "unfinished",
    "dropped",
    "undecided",
    "arrived",
    "most_in_system",
    "slots",
    "wall_s",
    "cpu_s",
    "notes",
)
"""Columns of ``results.csv``."""


HEADINGS = (
    "policy",
    "goodput/s",
    "in targets",
    "TTFT s",
    "p99",
    "TPOT ms",
    "preempted",
    "left",
    "dropped",
    "CPU s",
)


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a policy as a row of ``results.csv``."""
    row = dict(record) | {"notes": "; ".join(notes(record))}
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        row |= {f"{name}_{part}": value for part, value in record[name].items()}
    return {column: row[column] for column in COLUMNS}


def notes(record: dict[str, Any]) -> list[str]:
    """What is special about how a policy was run."""
    given = {"lengths_known": "knows output lengths", "service_weights": "counts service"}
    changed = {"prompts": "prompts split"}
    told = [given[name] for name in record["given"]]
    return told + [changed[name] for name in record["settings"] if name in changed]


def rows(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows under HEADINGS, most goodput first. Policies with the very same latencies share a row."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda r: -r["goodput_per_s"]):
        same = (record["batches"], *record["e2e_ms"].values(), *record["ttft_ms"].values())
        groups.setdefault(same, []).append(record)
    return [_row(group) for group in groups.values()]


def _row(group: list[dict[str, Any]]) -> tuple[str, ...]:
    first = group[0]
    seconds = [round(record["cpu_s"]) for record in group]
    names = (record["policy"] + "".join(f" ({n})" for n in notes(record)) for record in group)
    return (
        ", ".join(names),
        f"{first['goodput_per_s']:.2f}",
        percent(first["slo_attainment"]),
        _number(first["ttft_ms"]["mean"], 1000, 2),
        _number(first["ttft_ms"]["p99"], 1000, 1),
        _number(first["tpot_ms"]["mean"], 1, 1),
        f"{first['preemptions']:,}",
        f"{first['unfinished']:,.0f}",
        f"{first['dropped']:,}",
        "-".join(str(s) for s in sorted({min(seconds), max(seconds)})),
    )


def _number(value: float | None, unit: float, digits: int) -> str:
    return "-" if value is None else f"{value / unit:,.{digits}f}"


def rich_table(records: list[dict[str, Any]], title: str, caption: str) -> Table:
    """The rows for a terminal of 80 columns."""
    table = Table(title=title, caption=caption, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("policy", min_width=15)
    for heading in HEADINGS[1:]:
        table.add_column(heading.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows(records):
        table.add_row(*row)
    return table


def markdown(records: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows(records)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def publish(records: list[dict[str, Any]], out: Path) -> list[Path]:
    """Write results.csv and results.md into ``out``; their paths."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(flat(record) for record in records)
    paths = [out / "results.csv", out / "results.md"]
    write(paths[0], text.getvalue())
    write(paths[1], markdown(records))
    return paths
