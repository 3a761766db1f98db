"""Service levels and fairness as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table


def percent(share: float | None) -> str:
    """A share; a dash where there is none."""
    return "-" if share is None or share != share else f"{100 * share:.1f} %"


def slo_table(summary: dict[str, Any]) -> Group:
    """Service levels of each class, as ``run.summary`` has them."""
    table = _table(
        "service levels: share of the requests that met their targets",
        ("class", "requests", "both", "TTFT", "TPOT", "goodput/s"),
    )
    for name, level in summary["slo"].items():
        shares = (percent(level[f"{what}attainment"]) for what in ("", "ttft_", "tpot_"))
        table.add_row(name, f"{level['requests']:,}", *shares, f"{level['goodput_per_s']:,.3f}")
    overall = (f"{summary['goodput_per_s']:,.3f}", percent(summary["slo_attainment"]))
    return Group(table, "by weight: goodput {}/s, attainment {}".format(*overall))


def fairness_table(fairness: dict[str, Any]) -> Group:
    """Service of each class and the gap, as ``run.summary`` has them."""
    table = _table("fairness: weighted tokens served", ("class", "per second"))
    for name, service in fairness["service_per_s"].items():
        table.add_row(name, f"{service:,.1f}")
    gap = f"largest gap while both wait {fairness['gap']:,}, bound of VTC {fairness['bound']:,.0f}"
    return Group(table, gap)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for n, column in enumerate(columns):
        table.add_column(column, justify="right" if n else "left", no_wrap=True)
    return table
