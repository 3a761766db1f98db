"""Rows and pictures of an evaluation, made from its raw results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogFormatter

from llmgym.core.files import csv_of, write
from llmgym.core.reading import as_written
from llmgym.core.text import drawn
from llmgym.evaluation import comparison
from llmgym.evaluation.benchmark import slug
from llmgym.evaluation.evaluate import STARTS, Evaluation, latency_name, members, tested_budgets
from llmgym.evaluation.statistics import mean_interval
from llmgym.reporting import charts
from llmgym.reporting.benchmark_report import save_picture
from llmgym.reporting.palette import TUNED, style

MEASURES = (
    "e2e_s_mean",
    "e2e_s_p99",
    "ttft_s_mean",
    "ttft_s_p99",
    "tpot_ms_mean",
    "tpot_ms_p99",
    "goodput",
)


def best_budget(evaluation: Evaluation, results: dict[str, Any], rate: float, start: str) -> int:
    """The token budget with which the reference has the least mean latency.

    One with which it drops a request counts only where it does so with all; the smallest is taken then.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        rate: requests/s, one of the evaluation's.
        start: ``"cold"`` or ``"hot"``.
    """

    def latency(budget: int) -> float:
        found = results[latency_name(evaluation.tuned(budget), rate, start)]
        return float("inf") if sum(found["dropped"]) else found["pooled"]["e2e_s_mean"]

    return min(tested_budgets(evaluation, rate), key=latency)


def lossy_rates(evaluation: Evaluation, results: dict[str, Any], start: str) -> list[float]:
    """The rates at which the reference drops requests with every budget, so that none is the best.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        start: ``"cold"`` or ``"hot"``.
    """

    def dropped(rate: float) -> int:
        best = best_budget(evaluation, results, rate, start)
        return int(sum(results[latency_name(evaluation.tuned(best), rate, start)]["dropped"]))

    return [rate for rate in evaluation.rates if dropped(rate)]


def rows(evaluation: Evaluation, results: dict[str, Any]) -> pd.DataFrame:
    """One record for each start, rate and policy: the content of ``results.csv``.

    Latencies are pooled over requests, then averaged over training seeds where there are several. e2e_low
    and e2e_high: see ``latency_interval``. gain_fixed and gain_tuned: the share by which the mean latency is
    below that of the reference with the scenario's budget, and with the best one.
    """
    records = []
    for start in STARTS:
        for rate in evaluation.rates:
            own = evaluation.scenario.engine.token_budget
            best = best_budget(evaluation, results, rate, start)
            tuned, rival = evaluation.reference + TUNED, evaluation.reference
            names = {f"{rival}, {own}": [evaluation.tuned(own)], tuned: [evaluation.tuned(best)]}
            names |= {name: members(name) for name in evaluation.policies}
            levels: list[float] = []
            for name, several in names.items():
                found = [results[latency_name(m, rate, start)] for m in several]
                pooled = {k: float(np.mean([f["pooled"][k] for f in found])) for k in MEASURES}
                low, high = latency_interval(found)
                levels = [*levels, pooled["e2e_s_mean"]][:3] if len(levels) < 2 else levels
                records.append(
                    {"start": start, "rate": rate, "policy": name, "runs": len(several)}
                    | ({"budget": best} if name == tuned else {})
                    | pooled
                    | {"e2e_low": low, "e2e_high": high}
                    | {
                        f"gain_{k}": 1 - pooled["e2e_s_mean"] / level
                        for k, level in zip(("fixed", "tuned"), levels, strict=False)
                    }
                    | {"in_system": float(np.mean([f["in_system"] for f in found]))}
                    | {"dropped": int(np.sum([f["dropped"] for f in found]))}
                )
    return pd.DataFrame(records)


def latency_interval(found: list[dict[str, Any]]) -> tuple[float, float]:
    """The 95 % interval of the mean latency over training seeds, or of a single one over evaluation seeds.

    With two training seeds, too few for a t interval, it is the lower and the higher mean.
    """
    seeds = [f["pooled"]["e2e_s_mean"] for f in found]
    if len(seeds) == 2:
        return min(seeds), max(seeds)
    _, low, high = mean_interval(runs_of(found) if len(seeds) == 1 else np.array(seeds))
    return low, high


def runs_of(found: list[dict[str, Any]], measure: str = "e2e_s_mean") -> np.ndarray:
    """A measure of every run: one per training seed, or per evaluation seed where only one was trained."""
    values = np.array([f[measure] for f in found], float)
    return values[0] if len(found) == 1 else values.mean(axis=1)


def scores(evaluation: Evaluation, results: dict[str, Any], name: str, start: str) -> np.ndarray:
    """The share that a policy saves of the mean latency of the reference with its best budget.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        name: one of the evaluation's policies.
        start: ``"cold"`` or ``"hot"``.

    Returns:
        (runs, rates); below 0 where the policy is slower. For the runs see ``runs_of``.
    """
    columns = []
    for rate in evaluation.rates:
        best = best_budget(evaluation, results, rate, start)
        level = np.array(results[latency_name(evaluation.tuned(best), rate, start)]["e2e_s_mean"])
        found = [results[latency_name(m, rate, start)] for m in members(name)]
        if len(found) == 1:  # the same requests under both
            columns.append(1 - runs_of(found) / level)
        else:
            columns.append(1 - runs_of(found) / level.mean())
    return np.stack(columns, axis=1)


def summary(evaluation: Evaluation, results: dict[str, Any]) -> pd.DataFrame:
    """Over all rates: interquartile mean of the scores, its bootstrap interval, and who beats whom."""
    records = []
    for start in STARTS:
        found = {n: scores(evaluation, results, n, start) for n in evaluation.policies}
        for name, mine in found.items():
            low, high = comparison.stratified_bootstrap(mine, seed=evaluation.seed)
            record = {
                "start": start,
                "policy": name,
                "iqm": comparison.iqm(mine),
                "iqm_low": float(low),
                "iqm_high": float(high),
                "better_than_tuned": comparison.probability_of_improvement(
                    mine, np.zeros((1, mine.shape[1]))
                ),
            }
            for other, theirs in found.items():
                if other != name:
                    better = comparison.probability_of_improvement(mine, theirs)
                    record[f"better_than_{other}"] = better
            records.append(record)
    return pd.DataFrame(records)


def capacities(evaluation: Evaluation, results: dict[str, Any]) -> pd.DataFrame:
    """Measured capacities, and their share of the limit."""
    limit = results["limit"]["requests_per_s"]
    names = {evaluation.tuned(b): f"capacity-{evaluation.tuned(b)}" for b in evaluation.budgets}
    names |= {m: f"capacity-{slug(m)}" for name in evaluation.policies for m in members(name)}
    return pd.DataFrame(
        [
            {"policy": name, **results[key], "of_limit": results[key]["requests_per_s"] / limit}
            for name, key in names.items()
            if key in results
        ]
    )


def change(gain: float) -> str:
    """By how much a latency is higher (+) or lower (-) than that of the reference; empty for none."""
    return "" if np.isnan(gain) else f"{round(-100 * gain, 1) + 0.0:+.1f} %"  # + 0.0: no -0.0


def short(name: str) -> str:
    """A policy's name in tables and pictures: the last part of a path, for a checkpoint its folder too.

    It depends on the name alone, not on what lies in the folder where a command runs.
    """
    path = Path(name)
    if name.endswith(".npz"):
        return f"{path.parent.name}/{path.stem}" if path.parent.name else path.stem
    return path.name or name if "/" in name.partition(":")[0] else name


def picture(evaluation: Evaluation, results: dict[str, Any]) -> plt.Figure:
    """Mean latency, p99 of the first token and goodput against the rate; profiles of the scores."""
    frame = rows(evaluation, results)
    figure, axes = plt.subplots(2, 2, figsize=(12, 8.5), layout="constrained")
    names = list(dict.fromkeys(frame.policy))
    looks = {name: style(name) for name in names}
    titles = ("mean E2E latency (s)", "p99 TTFT (s)", "goodput")
    measures = ("e2e_s_mean", "ttft_s_p99", "goodput")
    for axis, measure, title in zip(axes.flat, measures, titles, strict=False):
        for name in names:
            for start, line in zip(STARTS, ("-", ":"), strict=True):
                some = frame[(frame.policy == name) & (frame.start == start)]
                look = looks[name]
                axis.plot(
                    some.rate, some[measure], line, marker=look.marker, ms=5, color=look.colour
                )
        axis.set_xlabel("requests/s")
        axis.set_title(f"{title}; dotted: hot start", fontsize=10)
        if measure != "goodput":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
            axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    thresholds = np.linspace(-0.3, 0.5, 161)
    for name in evaluation.policies:
        mine = scores(evaluation, results, name, "cold")
        share = comparison.performance_profile(mine, thresholds)
        axes[1, 1].plot(100 * thresholds, share, ls=looks[name].line, color=looks[name].colour)
    axes[1, 1].axvline(0, color="black", lw=0.8)
    axes[1, 1].set_xlabel(f"saved, % of the latency of the best {drawn(evaluation.reference)}")
    axes[1, 1].set_title("share of runs and rates that save more", fontsize=10)
    handles = charts.handles(names, short)
    figure.legend(handles=handles, loc="outside lower center", ncol=4, frameon=False)
    figure.suptitle(
        f"{drawn(evaluation.scenario.name)}: latency against {drawn(evaluation.reference)}"
    )
    return figure


def publish(evaluation: Evaluation, results: dict[str, Any], out: Path) -> list[Path]:
    """Write results.csv, summary.csv, capacity.csv, evaluation.png and evaluation.svg; their paths.

    Args:
        evaluation: what was judged.
        results: of ``llmgym.evaluation.evaluate.evaluate``, by name.
        out: the folder, made where it does not exist.

    Raises:
        LLMGymError: a file cannot be written.
    """
    pictures = [out / "evaluation.png", out / "evaluation.svg"]
    with as_written(out / "raw"):
        tabular = {
            "results.csv": rows(evaluation, results),
            "summary.csv": summary(evaluation, results),
            "capacity.csv": capacities(evaluation, results),
        }
        figure = picture(evaluation, results)
        for name, frame in tabular.items():
            write(out / name, csv_of(frame))
        save_picture(figure, pictures)
    return [*(out / name for name in tabular), *pictures]


def as_json(evaluation: Evaluation, results: dict[str, Any]) -> dict[str, Any]:
    """All tables as JSON records."""
    return {
        "limit": results["limit"],
        "latency": rows(evaluation, results).to_dict("records"),
        "summary": summary(evaluation, results).to_dict("records"),
        "capacity": capacities(evaluation, results).to_dict("records"),
    }
