"""The tables of an evaluation as a page of Markdown, made from its raw results alone."""

from __future__ import annotations

from typing import Any

from llmgym.evaluation.evaluate import STARTS, Evaluation
from llmgym.reporting.evaluation_report import capacities, change, rows, short, summary
from llmgym.reporting.palette import TUNED


def page(evaluation: Evaluation, results: dict[str, Any]) -> str:
    """The same tables as a page: the content of ``README.md``."""
    frame, name = rows(evaluation, results), evaluation.scenario.name
    rival = evaluation.reference
    lines = [
        f"# {name}: judged against {rival}",
        "",
        "`llmgym evaluate --repeat FOLDER` repeats this evaluation.",
        f"{evaluation.seeds} evaluation seeds, the same requests for every policy, at least",
        f"{evaluation.arrivals:,} of them per run; a quarter is warm-up. Mean E2E latency in seconds with",
        "its 95 % interval over training seeds (with two seeds: the lower and the higher mean), or over",
        "evaluation seeds for a single policy. Latencies are those of finished requests. Present: the mean",
        "number of requests in the system, including those that never finish.",
        f"Fixed: `{rival}` with the token budget of the scenario; best: with the budget that is",
        f"best for the rate, out of {', '.join(map(str, evaluation.budgets))}, chosen in hindsight.",
        "",
        "![Latency of every policy at every rate](evaluation.svg)",
    ]
    for start in STARTS:
        lines += ["", f"## {start.capitalize()} start", ""]
        lines += [
            "| requests/s | policy | E2E, s | against fixed | against best | p99 | TTFT, s | p99 | "
            "TPOT, ms | p99 | goodput | present |",
            "|---|---|" + "---|" * 10,
        ]
        for row in frame[frame.start == start].itertuples():
            budget = f" ({row.budget:.0f})" if row.policy.endswith(TUNED) else ""
            seeds = f", {row.runs} seeds" if row.runs > 1 else ""
            told = [change(row.gain_fixed), change(row.gain_tuned)]
            lost = f", {row.dropped} dropped" if row.dropped else ""
            lines.append(
                f"| {row.rate:g} | {short(row.policy)}{budget}{seeds} | {row.e2e_s_mean:.2f} "
                f"[{row.e2e_low:.2f}, {row.e2e_high:.2f}]{lost} | {told[0]} | {told[1]} | "
                f"{row.e2e_s_p99:.2f} | {row.ttft_s_mean:.2f} | {row.ttft_s_p99:.2f} | "
                f"{row.tpot_ms_mean:.1f} | {row.tpot_ms_p99:.1f} | {row.goodput:.3f} | "
                f"{row.in_system:.1f} |"
            )
    lines += ["", "## Over all rates", ""]
    lines += [
        f"Share of the latency of `{rival}` with its best budget that is saved: interquartile mean, its 95 %"
    ]
    lines += ["interval by stratified bootstrap, and the probability of an improvement.", ""]
    lines += [
        "| policy | start | saved, % | interval | probability of improvement |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {short(r.policy)} | {r.start} | {100 * r.iqm:.1f} | {100 * r.iqm_low:.1f} .. "
        f"{100 * r.iqm_high:.1f} | {r.better_than_tuned:.2f} |"
        for r in summary(evaluation, results).itertuples()
    ]
    limit = results["limit"]["requests_per_s"]
    lines += ["", "## Capacity", "", f"The limit is {limit:.3f} requests/s.", ""]
    lines += ["| policy | requests/s | interval | of the limit |", "|---|---|---|---|"]
    lines += [
        f"| {short(r.policy)} | {r.requests_per_s:.3f} | {r.low:.3f} .. {r.high:.3f} | "
        f"{100 * r.of_limit:.2f} % |"
        for r in capacities(evaluation, results).itertuples()
    ]
    return "\n".join([*lines, ""])
