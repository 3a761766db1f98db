"""Service levels and fairness as tables."""

from __future__ import annotations

from typing import Any

from llmgym.reporting.table import Column, Table, percent


def slo_table(summary: dict[str, Any]) -> Table:
    """Service levels of each class, as ``run.summary`` has them."""
    columns = (
        Column("class", text=True),
        Column("requests", ","),
        _share("both", "attainment"),
        _share("TTFT", "ttft_attainment"),
        _share("TPOT", "tpot_attainment"),
        Column("goodput/s", ",.3f", key="goodput_per_s"),
    )
    rows = _levels(columns, summary["slo"])
    goodput, attained = f"{summary['goodput_per_s']:,.3f}/s", percent(summary["slo_attainment"])
    return Table(
        columns,
        rows,
        "service levels: share of the requests that met their targets",
        (f"by weight: goodput {goodput}, attainment {attained}",),
    )


def job_levels_table(levels: dict[str, dict[str, float]]) -> Table:
    """Service levels of jobs, as ``run.summary["job_slo"]`` has them."""
    columns = (
        Column("job type", text=True),
        Column("jobs", ","),
        _share("all met", "attainment"),
        _share("end to end", "e2e_attainment"),
        Column("goodput/s", ",.3f", key="goodput_per_s"),
    )
    return Table(columns, _levels(columns, levels), "service levels of jobs: all calls and the end")


def _share(title: str, key: str) -> Column:
    """A column of fractions, shown in percent."""
    return Column(title, ".1f", " %", 100.0, key=key)


def _levels(
    columns: tuple[Column, ...], levels: dict[str, dict[str, Any]]
) -> tuple[tuple[Any, ...], ...]:
    """A row for each name; the columns after the first are keys of its values."""
    return tuple(
        (name, *(level[column.name] for column in columns[1:])) for name, level in levels.items()
    )


def fairness_table(fairness: dict[str, Any]) -> Table:
    """Service of each class and the gap, as ``run.summary`` has them."""
    gap, bound = f"{fairness['gap']:,}", f"{fairness['bound']:,.0f}"
    return Table(
        (Column("class", text=True), Column("per second", ",.1f", key="service_per_s")),
        tuple(fairness["service_per_s"].items()),
        "fairness: weighted tokens served",
        (f"largest gap while both wait {gap}, bound of VTC {bound}",),
    )
