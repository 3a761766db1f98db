"""Tables of policies on the requests of a trace, from the records of ``llmgym.evaluation.traffic``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmgym.core.files import write
from llmgym.core.reading import as_written
from llmgym.reporting.table import Column, Table, csv_text

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


SHOWN = (
    Column("policy", text=True),
    Column("goodput/s", ".2f", key="goodput_per_s"),
    Column("in targets", ".1f", " %", 100, key="slo_attainment"),
    Column("TTFT s", ",.2f", scale=1 / 1000, key="ttft_ms_mean"),
    Column("p99", ",.1f", scale=1 / 1000, key="ttft_ms_p99"),
    Column("TPOT ms", ",.1f", key="tpot_ms_mean"),
    Column("preempted", ",", key="preemptions"),
    Column("left", ",.0f", key="unfinished"),
    Column("dropped", ",", key="dropped"),
    Column("CPU s", key="cpu_s"),
)
"""Columns of the tables that people read."""


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a policy as a row of ``results.csv``."""
    row = dict(record) | {"notes": "; ".join(remarks(record))}
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        row |= {f"{name}_{part}": value for part, value in record[name].items()}
    return {column: row[column] for column in COLUMNS}


def remarks(record: dict[str, Any]) -> list[str]:
    """What is special about how a policy was run."""
    given = {"lengths_known": "knows output lengths", "service_weights": "counts service"}
    changed = {"prompts": "prompts split"}
    told = [given[name] for name in record["given"]]
    return told + [changed[name] for name in record["settings"] if name in changed]


def table(records: list[dict[str, Any]], title: str = "", notes: tuple[str, ...] = ()) -> Table:
    """A row for each policy, most goodput first; policies with the very same latencies share a row.

    Args:
        records: of ``llmgym.evaluation.traffic.run``.
        title: stands above.
        notes: stand below, each a paragraph.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda r: -r["goodput_per_s"]):
        same = (record["batches"], *record["e2e_ms"].values(), *record["ttft_ms"].values())
        groups.setdefault(same, []).append(record)
    return Table(SHOWN, tuple(_row(group) for group in groups.values()), title, notes)


def _row(group: list[dict[str, Any]]) -> tuple[Any, ...]:
    first = flat(group[0])
    names = (record["policy"] + "".join(f" ({n})" for n in remarks(record)) for record in group)
    seconds = [round(record["cpu_s"]) for record in group]
    spent = "-".join(str(s) for s in sorted({min(seconds), max(seconds)}))
    return (", ".join(names), *(first[column.key] for column in SHOWN[1:-1]), spent)


def publish(records: list[dict[str, Any]], out: Path) -> list[Path]:
    """Write results.csv and results.md into ``out``; their paths."""
    paths = [out / "results.csv", out / "results.md"]
    with as_written(out / "raw"):
        text = csv_text([flat(record) for record in records], COLUMNS)
        page = table(records).to_markdown() + "\n"
    write(paths[0], text)
    write(paths[1], page)
    return paths
