"""The tables of commands at the widths of terminals and in pipes: no column is lost."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from llmgym import reproduce
from llmgym.cli import tables
from llmgym.reporting.table import Section, Table
from llmgym.reproduce import run as running
from llmgym.reproduce.items import Check

NAN = float("nan")


def reproduction() -> Table:
    item = next(iter(reproduce.ITEMS.values()))
    checks = [
        Check("mean latency at 0.9 of the capacity, s", 12.3456, 12.3512, "pass", "in it", 12.3, 12.4),
        Check("batches", "64, 128, 256, 512, 1024, 64", "64, 128, 256, 512, 1024, 65", "fail", "equal"),
        Check("slope", "between 0.111111111 and 0.2", 1.5e-7, "skipped", "in it"),
    ]  # fmt: skip
    return running.table([running.Result(item, {"a": 1}, checks, 12.5, 20.1)])


def speed() -> Table:
    row = {
        "what": "compiled rollout, rybko-stolyar-reversed", "num_envs": 1024, "slots": 256,
        "policy": "sarathi:prompts=split", "steps_per_s": 12345678.9, "compile_s": 12.3,
        "note": "183 present, 12.5% of arrivals dropped",
    }  # fmt: skip
    return tables.speed_table([row, row | {"steps_per_s": None, "compile_s": None}])


def fits(spread: float = 0.5) -> Table:
    def part(value: float) -> Any:
        scales = dict.fromkeys((1.0, 10.0, 60.0, 600.0, 3600.0), value)
        return SimpleNamespace(rate_per_s=value, gap_cv=value, dispersion=scales)

    kinds = ("poisson", "gamma", "bursts", "day", "bursty-day")
    ends = {"mean": part(123.4), "low": part(123.4 - spread), "high": part(123.4 + spread)}
    made = [SimpleNamespace(kind=k, **ends, constants=12, error=0.25) for k in kinds]
    return tables.arrival_fits_table(SimpleNamespace(trace=part(123.0), fits=made, step_s=1.0))


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
@pytest.mark.parametrize(
    "table", [reproduction(), speed(), fits()], ids=["reproduce", "speed", "fit"]
)
def test_no_column_is_lost(table: Table, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(cell_len, shown.splitlines())) <= width
    for text in (shown, table.to_text()):
        assert "\x1b" not in text and "…" not in text
        for column in table.columns:
            assert all(word in text for word in column.header.split())
    wide = table.to_text().splitlines()
    for row in table._shown():
        for cell in row:
            # In a terminal long cells stand on several lines.
            assert all(word in shown for word in cell.text.split() if len(word) <= 8)
    rows = [row for row in table.rows if not isinstance(row, Section)]
    assert len(wide) >= len(rows)


def test_no_nan_is_printed() -> None:
    assert "nan" not in fits(NAN).to_text()
    assert "nan" not in tables.facts_table("", {"a": NAN, "b": None}).to_text()
    found = {
        "e2e_s": (1.0, NAN, NAN),
        "behind": (0.1, NAN, NAN),
        "gap": (0.1, NAN, NAN),
        "good": NAN,
    }
    row = {"scenario": "a", "rate_per_s": 1.0, "low_s": 1.0, "exact": True}
    text = tables.optimum_table(row | {"policies": [found | {"policy": "sarathi"}]}).to_text()
    assert "nan" not in text and "1.000" in text and "+10.0 %" in text
    assert replace(fits(), title="x").title == "x"
