"""The command ``llmgym evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmgym.cli import common as cli

if TYPE_CHECKING:
    from llmgym.evaluation.evaluate import Evaluation

app = typer.Typer()

EVALUATION_LOADS = (0.6, 0.7, 0.8, 0.9, 0.95)
"""The loads, as fractions of the LP capacity, where none are given."""


@app.command()
def evaluate(
    context: typer.Context,
    scenario: cli.ScenarioName = "latency",
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", "-p", help="A name, an .npz file, or a folder of seeds. Repeatable."
        ),
    ] = None,
    load: cli.Loads = None,
    rate: cli.Rates = None,
    budget: Annotated[
        list[int] | None,
        typer.Option(help="Token budget that the reference is tuned over. Repeatable."),
    ] = None,
    reference: Annotated[str, typer.Option(help="The baseline to judge against.")] = "sarathi",
    seeds: Annotated[int, typer.Option(help="Evaluation seeds.")] = 8,
    arrivals: Annotated[
        int, typer.Option(help="Least number of requests in a run; a quarter is warm-up.")
    ] = 16_000,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    jobs: cli.Jobs = 1,
    card: Annotated[
        Path | None,
        typer.Option(help="The model card of llmgym train into which the latencies go too."),
    ] = None,
    out: cli.Out = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the evaluation of this result folder.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Judge policies against a published one, fixed and tuned for each rate. Resumes where stopped."""
    from llmgym.evaluation import evaluate as evaluations
    from llmgym.reporting import model_card

    if card is not None:
        model_card.with_results(card, "")  # refused before anything is run
    if repeat is not None:
        out = cli.repeated(context, "evaluation", repeat, ("out", "jobs", "card", "as_json"))
        chosen = evaluations.from_config(repeat)
    else:
        base = cli.scenario(scenario, settings, None)
        rates = [s.arrival_rate_per_s for s in cli.at_rates(base, load, rate, EVALUATION_LOADS)]
        chosen = evaluations.Evaluation(
            base,
            tuple(policy or ["greedy_rate"]),
            tuple(round(r, 6) for r in rates),
            tuple(budget or evaluations.BUDGETS),
            seeds=seeds,
            arrivals=arrivals,
            seed=seed,
            reference=reference,
        )
    out = out or cli.results_folder("evaluation", chosen.scenario.name)
    _judge(chosen, out, jobs, card, as_json)


def _judge(chosen: Evaluation, out: Path, jobs: int, card: Path | None, as_json: bool) -> None:
    """Run an evaluation, and write what it found into its folder and the card."""
    from llmgym.core.files import write
    from llmgym.evaluation.evaluate import evaluate as run_evaluation
    from llmgym.reporting import evaluation_page, evaluation_tables, model_card
    from llmgym.reporting import evaluation_report as report

    with cli.alone_in(out):
        with cli.counter(as_json) as progress:
            results = run_evaluation(chosen, out, progress, jobs)
        paths = report.publish(chosen, results, out)
        write(out / "README.md", evaluation_page.page(chosen, results))
    if card is not None:
        table = evaluation_tables.latency_table(chosen, results, "cold").to_markdown()
        write(card, model_card.with_results(card, table))
    if as_json:
        return cli.print_json(report.as_json(chosen, results))
    cli.show(*evaluation_tables.tables(chosen, results), cli.told(paths, out / "raw"))
