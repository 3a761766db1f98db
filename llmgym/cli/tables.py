"""Tables of the command line: what its commands print, made from their results."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llmgym.reporting.service_tables import fairness_table, job_levels_table, slo_table
from llmgym.reporting.table import Cell, Column, Estimate, Table
from llmgym.reporting.table_parts import is_missing


def facts_table(title: str, facts: dict[str, Any]) -> Table:
    """Names and values, one pair per row."""
    rows = tuple((name, _fact(value)) for name, value in facts.items())
    return Table(
        (Column("", text=True, key="name"), Column("", text=True, key="value")), rows, title
    )


def _fact(value: Any) -> Cell:
    if is_missing(value):
        return Cell(value)
    return Cell(value, f"{value:,.3f}" if isinstance(value, float) else str(value))


def run_tables(run: Any) -> list[Table]:
    """The summary of a run: its facts, latencies, service levels, fairness, and stages of a network."""
    apart = {k: v for k, v in run.summary.items() if isinstance(v, dict)}
    facts = {k: v for k, v in run.summary.items() if k not in apart}
    levels, job_levels = apart.pop("slo", None), apart.pop("job_slo", None)
    fairness = apart.pop("fairness", None)
    found = [facts_table(f"{run.policy} on {run.scenario.name}", facts)]
    if apart:
        found.append(_latencies(apart))
    if levels is not None:
        found.append(slo_table(run.summary))
    if job_levels is not None:
        found.append(job_levels_table(job_levels))
    if fairness is not None:
        found.append(fairness_table(fairness))
    if run.scenario.is_network:
        found.append(stages_table(run.scenario, run.stages))
    return found


def _latencies(summary: dict[str, dict[str, Any]]) -> Table:
    """Mean and percentiles; the mean with its interval where there are several replications."""
    parts = ("p50", "p90", "p99")
    rows = []
    for name, of in summary.items():
        mean = of["mean"]
        if not is_missing(of.get("low")):
            mean = Estimate(mean, of["low"], of["high"])
        rows.append((name, mean, *(of[part] for part in parts)))
    columns = (Column("latency", text=True), *(Column(x, ",.1f") for x in ("mean", *parts)))
    return Table(columns, tuple(rows))


def capacity_tables(found: dict[str, Any]) -> list[Table | str]:
    """The limit, the engines of a network, and what a policy reaches."""
    apart = ("policy", "engines", "notes")
    facts = {k: v for k, v in found.items() if k not in apart}
    shown: list[Table | str] = [facts_table(f"capacity of {found['scenario']}", facts)]
    if "engines" in found:
        columns = (
            Column("engine", text=True),
            Column("load", ".3f"),
            Column("slack", ".3f"),
            Column("alone it carries, jobs/s", ",.3f"),
        )
        rows = ((e["name"], e["load"], 1 - e["load"], e["jobs_per_s"]) for e in found["engines"])
        shown.append(Table(columns, tuple(rows)))
    shown += found.get("notes", ())
    if "policy" in found:
        estimate, limit = found["policy"], found["requests_per_s"]
        reached = Estimate(*(estimate[k] for k in ("requests_per_s", "low", "high")))
        columns = (
            Column("policy", text=True),
            Column("requests/s", ",.3f"),
            Column("of the limit", ".1f", " %", 100 / limit),
            Column("method", text=True),
        )
        row = (estimate["name"], reached, reached.value, estimate["method"])
        shown.append(Table(columns, (row,)))
    return shown


def network_facts(scenario: Any, limit: Any) -> dict[str, Any]:
    """The load of each engine, and notes on what the nominal load does not show."""
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
    columns = (
        Column("stage", text=True),
        Column("calls", ","),
        *(Column(name, ",.1f") for name in ("waiting", "service", "delay")),
        Column("share", ".0f", " %", 100),
    )
    rows = []
    for row in stages.itertuples():
        job = scenario.job_types[scenario.job_names.index(row.job_type)]
        name = f"{row.job_type}.{job.stages[row.stage].name}"
        times = (row.waiting_ms, row.service_ms, row.delay_ms)
        rows.append((name, row.calls, *times, row.critical_share))
    return Table(columns, tuple(rows), "stages: mean ms of a call, share of the critical path")


def fits_table(found: Any) -> Table:
    """The forms of batch time that were fitted, best first."""
    columns = (
        Column("form", text=True),
        Column("constants"),
        Column("R²", ".4f"),
        Column("mean error", ".2f", " %", 100),
        Column("largest ms", ".3g"),
        Column("unseen ms", ".3g"),
    )
    rows = ((f.form, f.constants, f.r2, f.mape, f.largest_ms, f.cv_ms) for f in found.fits)
    note = (
        "unseen: root mean squared error on batch sizes left out of the fit; where forms"
        " do alike, within the noise, the one with fewer constants comes first"
    )
    title = f"batch times fitted to {len(found.data)} measurements, best first"
    return Table(columns, tuple(rows), title, (note,))


def comparison_table(run: Any, batch_time: str, found: Any) -> Table:
    """Measured and simulated latencies of a recorded run.

    Args:
        run: the recorded run, a ``VLLMRun``.
        batch_time: the preset or file that was simulated, for the title.
        found: what ``llmgym.calibration.validate.compare`` returned; times in ms.
    """
    columns = [Column("", text=True, key="latency")]
    keys = []
    for part in ("mean", "p99"):
        columns += [
            Column(f"measured {part}", ",.1f"),
            Column("simulated", ",.1f", key=f"simulated {part}"),
            Column("error", "+.1%", key=f"error of {part}"),
        ]
        keys += [f"measured_{part}", f"simulated_{part}", f"{part}_error"]
    columns.append(Column("correlation", ".3f"))
    rows = ((str(name), *(row[k] for k in keys), row.correlation) for name, row in found.iterrows())
    title = f"{run.name}: {len(run.replay)} requests, {run.policy.name}, {batch_time}"
    return Table(tuple(columns), tuple(rows), title)


def arrival_fits_table(found: Any) -> Table:
    """Figures that tell patterns of arrivals apart, of the trace and of the processes fitted to it."""
    scales = list(found.trace.dispersion)
    columns = (
        Column("", text=True, key="arrivals"),
        *(Column(name, _with_range) for name in ("per s", "CV")),
        *(Column(f"disp. {scale:g} s", _with_range) for scale in scales),
        Column("constants"),
        Column("error", ".2f"),
    )
    rows: list[tuple[Any, ...]] = [("trace", *_facts(found.trace, scales), None, None)]
    for fit in found.fits:
        parts = (_facts(part, scales) for part in (fit.mean, fit.low, fit.high))
        estimates = (Estimate(*three) for three in zip(*parts, strict=True))
        rows.append((fit.kind, *estimates, fit.constants, fit.error))
    notes = [
        "CV: of the gaps. Dispersion: variance over mean of the counts in windows of so many seconds; 1"
        " for Poisson. Fits: mean of replications, range of nine in ten. Error: root mean square of"
        " log(fit/trace) over CV and dispersions."
    ]
    if found.step_s:
        notes.append(f"Time stamps come in steps of {found.step_s:g} s and were spread.")
    title = "arrivals of the trace, and of processes fitted to it, the one to use first"
    return Table(columns, tuple(rows), title, tuple(notes))


def _with_range(value: Any) -> str:
    """A number, with its range below it."""
    if isinstance(value, Estimate):
        if is_missing(value.value):
            return "-"
        if is_missing(value.low) or is_missing(value.high):
            return f"{value.value:.3g}"
        return f"{value.value:.3g}\n{value.low:.3g}-{value.high:.3g}"
    return f"{value:.3g}"


def _facts(found: Any, scales: list[float]) -> list[float]:
    dispersion = (found.dispersion.get(scale, float("nan")) for scale in scales)
    return [found.rate_per_s, found.gap_cv, *dispersion]


def speed_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Steps per second of every interface."""
    from llmgym.core.blocks import cores

    columns = (
        Column("what", text=True),
        Column("environments", ",", key="num_envs"),
        Column("slots"),
        Column("policy or actions", text=True, key="policy"),
        Column("steps/s", ",.0f", key="steps_per_s"),
        Column("compile, s", ".1f", key="compile_s"),
        Column("note", text=True),
    )
    shown = (tuple(row[column.name] for column in columns) for row in rows)
    return Table(columns, tuple(shown), f"Steps per second, {cores()} cores")


def optimum_table(row: dict[str, Any]) -> Table:
    """Policies beside the optimum of the decode-first class."""
    kind = "exact" if row["exact"] else "of the problem with fixed prompts and geometric outputs"
    columns = (
        Column("policy", text=True),
        Column("mean E2E s", ".3f"),
        Column("above the optimum", "+.1f", " %", 100),
        Column("behind its policy"),
        Column("good", ".1f", " %", 100),
    )
    rows = []
    for found in row["policies"]:
        value, low, high = found["behind"]
        ends = None if is_missing(low) or is_missing(high) else (low, high)
        text = f"{100 * value:+.1f} %"
        if ends is not None:
            text = f"{100 * low:+.1f} .. {100 * high:+.1f} %"
        behind = Cell(Estimate(*found["behind"]), text)
        estimate = Estimate(*found["e2e_s"])
        rows.append((found["policy"], estimate, found["gap"][0], behind, found["good"]))
    where = f"{row['scenario']} at {row['rate_per_s']:g} requests/s"
    return Table(columns, tuple(rows), f"{where}: optimum {row['low_s']:.3f} s ({kind})")


def search_table(figures: Sequence[dict[str, Any]]) -> Table:
    """What the tuned index reaches at each load."""
    columns = (
        Column("load", ".3f", missing="its own rate"),
        Column("mean E2E s", ".2f"),
        Column("requests/s", ".3f"),
        Column("good", ".1f", " %", 100),
    )
    rows = (
        (f["load"], Estimate(*f["e2e_s"]), f["requests_per_s"][0], f["good"][0]) for f in figures
    )
    return Table(columns, tuple(rows))
