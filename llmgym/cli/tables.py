"""Tables of the command line: what its commands print, made from their results."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from llmgym.reporting.service_tables import percent


def summary_table(title: str, summary: dict[str, Any]) -> Table:
    """The entries of a summary, one a row; latencies on one line each."""
    table = Table(title=title, show_header=False)
    for name, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(f"{k} {v:.1f}" for k, v in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    return table


def network_facts(scenario: Any, limit: Any) -> dict[str, Any]:
    """Engine by engine, and what the nominal load does not tell."""
    from llmgym.theory.queueing_networks import CyclicRoutingWarning, check_routing, virtual_station

    notes = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CyclicRoutingWarning)
        check_routing(scenario)
    notes += [str(w.message) for w in caught]
    station = virtual_station(scenario)
    if station is not None:
        notes.append(
            f"Under the priorities of the scenario {' and '.join(station.classes)} form a virtual "
            f"station of load {station.load:.3f}: stable only below {station.critical_per_s:,.3f} jobs/s."
        )
    engines = [asdict(e) for e in limit.engines]
    return {"engines": engines, "notes": notes}


def stages_table(scenario: Any, stages: Any) -> Table:
    """Where the time of a job goes, stage by stage."""
    table = Table(
        title="stages: mean ms of a call, share of the critical path", title_justify="left"
    )
    for column in ("stage", "calls", "waiting", "service", "delay", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in stages.itertuples():
        job = scenario.job_types[scenario.job_names.index(row.job_type)]
        times = (f"{x:,.1f}" for x in (row.waiting_ms, row.service_ms, row.delay_ms))
        name = f"{row.job_type}.{job.stages[row.stage].name}"
        table.add_row(name, f"{row.calls:,}", *times, f"{100 * row.critical_share:.0f} %")
    return table


def job_levels_table(levels: dict[str, dict[str, float]]) -> Table:
    """Service levels of jobs, as ``run.summary`` has them."""
    table = Table(title="service levels of jobs: all calls and the end", title_justify="left")
    for column in ("job type", "jobs", "all met", "end to end", "goodput/s"):
        table.add_column(column, justify="left" if column == "job type" else "right", no_wrap=True)
    for name, level in levels.items():
        shares = (percent(level[f"{what}attainment"]) for what in ("", "e2e_"))
        table.add_row(name, f"{level['jobs']:,}", *shares, f"{level['goodput_per_s']:,.3f}")
    return table


def fits_table(found: Any) -> Table:
    """The forms of batch time that were fitted, best first."""
    table = Table(
        title=f"batch times fitted to {len(found.data)} measurements, best first",
        caption="unseen: root mean squared error on batch sizes left out of the fit; where forms"
        " do alike, within the noise, the one with fewer constants comes first",
        title_justify="left",
    )
    for column in ("form", "constants", "R²", "mean error", "largest ms", "unseen ms"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for fit in found.fits:
        errors = (f"{100 * fit.mape:.2f} %", f"{fit.largest_ms:.3g}", f"{fit.cv_ms:.3g}")
        table.add_row(fit.form, str(fit.constants), f"{fit.r2:.4f}", *errors)
    return table


def comparison_table(run: Any, batch_time: str, found: Any) -> Table:
    """Measured and simulated latencies of a recorded run."""
    table = Table(
        title=f"{run.name}: {len(run.replay)} requests, {run.policy.name}, {batch_time}",
        title_justify="left",
    )
    columns = ("measured mean", "simulated", "error", "measured p99", "simulated", "error")
    for column in ("", *columns, "correlation"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in found.iterrows():
        times = (
            (
                f"{row[f'measured_{x}']:,.1f}",
                f"{row[f'simulated_{x}']:,.1f}",
                f"{row[f'{x}_error']:+.1%}",
            )
            for x in ("mean", "p99")
        )
        table.add_row(
            str(name), *(cell for three in times for cell in three), f"{row.correlation:.3f}"
        )
    return table


def arrival_fits_table(found: Any) -> Table:
    """What tells patterns of arrivals apart, in the trace and in what was fitted to it."""
    step = (
        f" Time stamps come in steps of {found.step_s:g} s and were spread." if found.step_s else ""
    )
    table = Table(
        title="arrivals of the trace, and of processes fitted to it, the one to use first",
        caption="CV: of the gaps. Dispersion: variance over mean of the counts in windows of so many"
        " seconds; 1 for Poisson. Fits: mean of replications, range of nine in ten. Error: root mean"
        f" square of log(fit/trace) over CV and dispersions.{step}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    scales = list(found.trace.dispersion)
    dispersions = (f"disp. {scale:g} s" for scale in scales)
    for column in ("", "per s", "CV", *dispersions, "constants", "error"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    table.add_row("trace", *(f"{x:.3g}" for x in _facts(found.trace, scales)))
    for fit in found.fits:
        parts = (_facts(part, scales) for part in (fit.mean, fit.low, fit.high))
        cells = (f"{x:.3g}\n{low:.3g}-{high:.3g}" for x, low, high in zip(*parts, strict=True))
        table.add_row(fit.kind, *cells, str(fit.constants), f"{fit.error:.2f}")
    return table


def _facts(found: Any, scales: list[float]) -> list[float]:
    dispersion = (found.dispersion.get(scale, float("nan")) for scale in scales)
    return [found.rate_per_s, found.gap_cv, *dispersion]
