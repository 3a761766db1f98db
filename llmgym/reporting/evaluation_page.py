"""The tables of an evaluation as a page of Markdown, made from its raw results alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmgym.core.text import one_line
from llmgym.evaluation.evaluate import STARTS, Evaluation
from llmgym.reporting import evaluation_tables as tables
from llmgym.reporting.table import Table
from llmgym.reporting.table_markup import markdown_code, markdown_text


def page(evaluation: Evaluation, results: dict[str, Any]) -> str:
    """The page with its tables: the content of ``README.md``."""
    name, rival = evaluation.scenario.name, markdown_code(evaluation.reference)
    lines = [
        f"# {markdown_text(one_line(name))}: judged against {markdown_text(evaluation.reference)}",
        "",
        "`llmgym evaluate --repeat FOLDER` repeats this evaluation.",
        f"{evaluation.seeds} evaluation seeds, the same requests for every policy, at least",
        f"{evaluation.arrivals:,} of them per run; a quarter is warm-up. Mean E2E latency in seconds with",
        "its 95 % interval over training seeds (with two seeds: the lower and the higher mean), or over",
        "evaluation seeds for a single policy. Latencies are those of finished requests. Present: the mean",
        "number of requests in the system, including those that never finish.",
        f"Fixed: {rival} with the token budget of the scenario; best: with the budget that is",
        f"best for the rate, out of {', '.join(map(str, evaluation.budgets))}, chosen in hindsight.",
        "",
        "![Latency of every policy at every rate](evaluation.svg)",
    ]
    for start in STARTS:
        lines += ["", f"## {start.capitalize()} start", ""]
        lines.append(tables.latency_table(evaluation, results, start).to_markdown())
    limit = results["limit"]["requests_per_s"]
    lines += [
        "",
        "## Over all rates",
        "",
        f"Share of the latency of {rival} with its best budget that is saved: interquartile mean, its 95 %",
        "interval by stratified bootstrap, and the probability of an improvement.",
        "",
        _bare(tables.score_table(evaluation, results)),
        "",
        "## Capacity",
        "",
        f"The limit is {limit:.3f} requests/s.",
        "",
        _bare(tables.capacity_table(evaluation, results)),
    ]
    return "\n".join([*lines, ""])


def _bare(table: Table) -> str:
    """A table without its title, which is the heading above it."""
    return replace(table, title="").to_markdown()
