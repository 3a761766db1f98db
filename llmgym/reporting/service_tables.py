"""Service levels and fairness as tables."""

from __future__ import annotations

from typing import Any

from llmgym.reporting.table import Column, Table, percent


def slo_table(summary: dict[str, Any]) -> Table:
    """Service levels of each class, as ``run.summary`` has them."""
    share = {"format": ".1f", "unit": " %", "scale": 100.0}
    columns = (
        Column("class", text=True),
        Column("requests", ","),
        Column("both", key="attainment", **share),  # type: ignore[arg-type]
        Column("TTFT", key="ttft_attainment", **share),  # type: ignore[arg-type]
        Column("TPOT", key="tpot_attainment", **share),  # type: ignore[arg-type]
        Column("goodput/s", ",.3f", key="goodput_per_s"),
    )
    rows = tuple(
        (name, *(level[column.name] for column in columns[1:]))
        for name, level in summary["slo"].items()
    )
    goodput, attained = f"{summary['goodput_per_s']:,.3f}/s", percent(summary["slo_attainment"])
    return Table(
        columns,
        rows,
        "service levels: share of the requests that met their targets",
        (f"by weight: goodput {goodput}, attainment {attained}",),
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
