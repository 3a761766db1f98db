"""The commands ``llmgym optimum`` and ``llmgym tune``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables
from llmgym.evaluation.configuration import check_different
from llmgym.theory.capacity import at_load

app = typer.Typer()


@app.command()
def optimum(
    scenario: cli.ScenarioName = "latency",
    load: cli.Loads = None,
    rate: cli.Rates = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Compare this policy with the optimum. Repeatable."),
    ] = None,
    residues: Annotated[
        int,
        typer.Option(
            help="States per whole prompt; 0: one for each of its tokens, which is exact."
        ),
    ] = 16,
    num_envs: Annotated[int, typer.Option(help="Environments of a simulation.")] = 32,
    duration_s: Annotated[
        float, typer.Option(help="Simulated seconds, after a warm-up of a tenth more.")
    ] = 600,
    settings: cli.Set = None,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals.")] = 0,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Find the least mean latency of a decode-first policy, and how far policies are from it.

    --out writes optimum.json, and the solution of each load to rate-R.npz.
    """
    from llmgym.agents.dynamic_programming import solve
    from llmgym.agents.optimum import save
    from llmgym.core.files import to_json, write
    from llmgym.evaluation.policies import resolve

    chosen = [(name, resolve(name)) for name in policy or ()]  # an unknown name fails at once
    simulation = {
        "num_envs": num_envs, "duration_s": duration_s, "warmup_s": duration_s / 10, "seed": seed,
    }  # fmt: skip
    problems = _problems(scenario, settings, load, rate)
    rows: list[dict[str, Any]] = []
    with cli.alone_in(out), cli.bar(as_json) as bar:
        for problem in problems:
            what = f"{problem.arrival_rate_per_s:g} requests/s"
            task = bar.add_task(what, total=None)
            found = solve(
                problem,
                residues=residues or None,
                tolerance=1e-4,
                progress=lambda line, task=task, what=what: bar.update(  # type: ignore[misc]
                    task, description=f"{what}, {line}"
                ),
            )
            bar.update(task, description=f"{what}, simulations")
            rows.append(_compared(problem, found, chosen, simulation))
            if out is not None:
                save(found, out / f"rate-{problem.arrival_rate_per_s:g}.npz")
        if out is not None:
            write(out / "optimum.json", to_json(rows))
    if as_json:
        return cli.print_json(rows)
    cli.show(*map(tables.optimum_table, rows))


def _compared(
    problem: Any, found: Any, chosen: list[tuple[str, Any]], simulation: dict[str, Any]
) -> dict[str, Any]:
    """The optimum of a problem, and the latency of its policy and of others beside it."""
    from llmgym.agents.optimality import optimality_gaps

    named = [("dynamic_program", found.policy), *chosen]
    gaps = optimality_gaps(problem, [policy for _, policy in named], None, found, **simulation)
    return {
        "scenario": problem.name,
        "rate_per_s": problem.arrival_rate_per_s,
        "low_s": found.low,
        "high_s": found.high,
        "exact": found.exact,
        "truncation": found.truncation,
        "policies": [asdict(g) | {"policy": n} for g, (n, _) in zip(gaps, named, strict=True)],
    }


def _problems(
    name: str, settings: list[str] | None, loads: list[float] | None, rates: list[float] | None
) -> list[Any]:
    """The scenario at each of the loads and rates; at its own rate where none is given."""
    base = cli.scenario(name, settings, None)
    found = [at_load(base, load) for load in loads or ()]
    found += [base.at_rate(rate) for rate in rates or ()]
    check_different("rates", tuple(problem.arrival_rate_per_s for problem in found))
    return found or [base]


@app.command()
def tune(
    scenario: cli.ScenarioName = "latency",
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    load: cli.Loads = None,
    rate: cli.Rates = None,
    generations: Annotated[int, typer.Option(help="Rounds of the search.")] = 10,
    population: Annotated[int, typer.Option(help="Parameter vectors in each round.")] = 32,
    late_weight: Annotated[
        float,
        typer.Option(
            help="Cost of each percent of requests beyond the TTFT target, after the first."
        ),
    ] = 0.0,
    goodput_weight: Annotated[
        float, typer.Option(help="Cost of each percent of requests that miss a target.")
    ] = 0.0,
    settings: cli.Set = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Tune the tile index by cross-entropy search. With --out a search that was stopped resumes."""
    from llmgym.agents.index_search import Settings as SearchSettings
    from llmgym.agents.index_search import search
    from llmgym.baselines.index import PARAMETERS
    from llmgym.theory.capacity import capacity

    base = cli.scenario(scenario, settings, None)
    limit = capacity(base).requests_per_s
    loads = [*(load or ()), *(r / limit for r in rate or ())]
    chosen = SearchSettings(
        objective=objective,
        generations=generations,
        population=population,
        elites=max(1, population // 5),
        late_weight=late_weight,
        goodput_weight=goodput_weight,
        seed=seed,
    )
    with cli.bar(as_json, steps=True) as bar:
        task = bar.add_task("first generation", total=generations)
        found = search(
            base,
            loads or [None],
            chosen,
            path=None if out is None else out / "search.json",
            progress=lambda done, total, line: bar.update(task, completed=done, description=line),
        )
    numbers = {name: getattr(found.policy, name) for name in PARAMETERS}
    if as_json:
        return cli.print_json({"parameters": numbers, "figures": found.figures})
    rule = "index:" + ",".join(f"{k}={v:g}" for k, v in numbers.items())
    cli.show(rule, tables.search_table(found.figures))
