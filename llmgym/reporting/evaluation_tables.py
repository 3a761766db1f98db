"""The tables of an evaluation, for the terminal and for its page."""

from __future__ import annotations

from typing import Any

from llmgym.evaluation.evaluate import STARTS, Evaluation
from llmgym.reporting.evaluation_report import (
    capacities,
    change,
    lossy_rates,
    rows,
    short,
    summary,
)
from llmgym.reporting.palette import TUNED
from llmgym.reporting.table import Cell, Column, Estimate, Section, Table

PERCENT: dict[str, Any] = {"format": ".1f", "unit": " %", "scale": 100.0}


def tables(evaluation: Evaluation, results: dict[str, Any]) -> list[Table]:
    """Latencies for each start, then scores and capacities, for a terminal."""
    return [
        *(latency_by_rate(evaluation, results, start) for start in STARTS),
        score_table(evaluation, results),
        capacity_table(evaluation, results),
    ]


def latency_by_rate(evaluation: Evaluation, results: dict[str, Any], start: str) -> Table:
    """Mean latencies and the most important tails, rate by rate, for a terminal.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        start: ``"cold"`` or ``"hot"``.
    """
    frame = rows(evaluation, results)
    found: list[Any] = []
    for rate, some in frame[frame.start == start].groupby("rate"):
        found.append(Section(f"{rate:g} requests/s"))
        for row in some.itertuples():
            lost = f", {row.dropped} dropped" if row.dropped else ""
            numbers = (
                row.e2e_s_mean, row.gain_fixed, row.gain_tuned, row.e2e_s_p99, row.ttft_s_mean,
                row.ttft_s_p99, row.tpot_ms_mean, row.goodput,
            )  # fmt: skip
            found.append((Cell(row.policy, _named(row._asdict()) + lost), *numbers))
    columns = (
        Column("policy", text=True),
        Column("E2E s", ".2f", best="low"),
        Column("vs fixed", change, missing=""),
        Column("vs best", change, missing=""),
        Column("p99", ".2f", key="E2E p99"),
        Column("TTFT s", ".2f"),
        Column("p99", ".2f", key="TTFT p99"),
        Column("TPOT ms", ".1f"),
        Column("goodput", ".3f"),
    )
    note = (
        "vs fixed, best: mean E2E latency against the reference with the scenario's token budget, and"
        " with the best one for the rate."
    )
    notes = (note, *_lossy(evaluation, results, (start,)))
    return Table(columns, tuple(found), f"{start.capitalize()} start", notes)


def latency_table(evaluation: Evaluation, results: dict[str, Any], start: str) -> Table:
    """Every latency of every policy, for the page.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        start: ``"cold"`` or ``"hot"``.
    """
    columns = (
        Column("requests/s", "g"),
        Column("policy", text=True),
        Column("E2E, s", ".2f"),
        Column("against fixed", change, missing=""),
        Column("against best", change, missing=""),
        Column("p99", ".2f", key="e2e_s_p99"),
        Column("TTFT, s", ".2f", key="ttft_s_mean"),
        Column("p99", ".2f", key="ttft_s_p99"),
        Column("TPOT, ms", ".1f", key="tpot_ms_mean"),
        Column("p99", ".1f", key="tpot_ms_p99"),
        Column("goodput", ".3f"),
        Column("present", ".1f", key="in_system"),
    )
    frame = rows(evaluation, results)
    found = []
    for row in frame[frame.start == start].to_dict("records"):
        seeds = f", {row['runs']} seeds" if row["runs"] > 1 else ""
        lost = f", {row['dropped']} dropped" if row["dropped"] else ""
        latency = Estimate(row["e2e_s_mean"], row["e2e_low"], row["e2e_high"])
        found.append(
            (
                row["rate"],
                Cell(row["policy"], _named(row) + seeds),
                Cell(latency, note=lost),
                row["gain_fixed"],
                row["gain_tuned"],
                *(row[column.name] for column in columns[5:]),
            )
        )
    return Table(columns, tuple(found), notes=_lossy(evaluation, results, (start,)))


def _named(row: dict[str, Any]) -> str:
    """The policy of a row; after the tuned reference its budget, with a star where it drops requests."""
    if not row["policy"].endswith(TUNED):
        return short(row["policy"])
    return f"{short(row['policy'])} ({row['budget']:.0f}{'*' if row['dropped'] else ''})"


def _lossy(
    evaluation: Evaluation, results: dict[str, Any], starts: tuple[str, ...]
) -> tuple[str, ...]:
    """A note on the rates at which no budget of the reference is good enough to compare with."""
    found = {start: lossy_rates(evaluation, results, start) for start in starts}
    told = [
        f"{', '.join(f'{rate:g}' for rate in rates)} requests/s ({start} start)"
        for start, rates in found.items()
        if rates
    ]
    if not told:
        return ()
    return (
        f"* At {' and at '.join(told)} {evaluation.reference} drops requests with every budget: the smallest "
        "stands for the best, and latencies there are those of the requests that were not dropped.",
    )


def score_table(evaluation: Evaluation, results: dict[str, Any]) -> Table:
    """What each policy saves over all rates, and how certain that is."""
    columns = (
        Column("policy", text=True),
        Column("start", text=True),
        Column("saved", key="iqm", **PERCENT),
        Column("probability of improvement", ".2f", key="better_than_tuned"),
    )
    found = tuple(
        (
            Cell(row.policy, short(row.policy)),
            row.start,
            Estimate(row.iqm, row.iqm_low, row.iqm_high),
            row.better_than_tuned,
        )
        for row in summary(evaluation, results).itertuples()
    )
    title = f"Share of the latency of the best {evaluation.reference} that is saved, over all rates"
    return Table(columns, found, title, _lossy(evaluation, results, STARTS))


def capacity_table(evaluation: Evaluation, results: dict[str, Any]) -> Table:
    """Measured capacities."""
    columns = (
        Column("policy", text=True),
        Column("requests/s", ".3f", key="requests_per_s"),
        Column("of the limit", ".2f", " %", 100, key="of_limit"),
    )
    found = tuple(
        (
            Cell(row.policy, short(row.policy)),
            Estimate(row.requests_per_s, row.low, row.high),
            row.of_limit,
        )
        for row in capacities(evaluation, results).itertuples()
    )
    return Table(columns, found, "Capacity")
