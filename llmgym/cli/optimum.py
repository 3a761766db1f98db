"""The commands ``llmgym optimum`` and ``llmgym tune``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from llmgym.cli.common import bar as progress_bar
from llmgym.cli.common import console, print_json
from llmgym.cli.common import scenario as read_scenario
from llmgym.theory.capacity import at_load

app = typer.Typer()

ScenarioName = Annotated[
    str, typer.Option("--scenario", "-s", help="A named scenario, or a TOML file.")
]
Loads = Annotated[
    list[float] | None, typer.Option("--load", help="Fraction of the LP capacity. Repeatable.")
]
Rates = Annotated[
    list[float] | None,
    typer.Option("--rate", help="Requests per second, in place of a load. Repeatable."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: token_budget=1024. Repeatable."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def optimum(
    scenario: ScenarioName = "latency",
    load: Loads = None,
    rate: Rates = None,
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Compare this policy with the optimum. Repeatable."),
    ] = None,
    residues: Annotated[
        int, typer.Option(help="States between two whole prompts; 0: all, which is exact.")
    ] = 16,
    num_envs: Annotated[int, typer.Option(help="Environments of a simulation.")] = 32,
    duration_s: Annotated[float, typer.Option(help="Simulated seconds after a tenth more.")] = 600,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="Seed of the arrivals.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """The least mean latency that a decode-first policy can reach, and how far policies are from it.

    --out writes optimum.json, and the solution of each load to rate-R.npz.
    """
    from llmgym.agents.dynamic_programming import solve
    from llmgym.agents.optimality import optimality_gaps
    from llmgym.agents.optimum import save
    from llmgym.core.files import to_json, write
    from llmgym.evaluation.policies import resolve

    rows: list[dict[str, Any]] = []
    chosen = [resolve(name) for name in policy or ()]  # a wrong name is told at once
    with progress_bar(as_json) as bar:
        for problem in _problems(scenario, settings, load, rate):
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
            gaps = optimality_gaps(
                problem, [found.policy, *chosen], None, found,
                num_envs, duration_s, duration_s / 10, seed,
            )  # fmt: skip
            labels = ("dynamic_program", *(policy or ()))
            named = [asdict(g) | {"policy": n} for g, n in zip(gaps, labels, strict=True)]
            rows.append(
                {
                    "scenario": problem.name,
                    "rate_per_s": problem.arrival_rate_per_s,
                    "low_s": found.low,
                    "high_s": found.high,
                    "exact": found.exact,
                    "truncation": found.truncation,
                    "policies": named,
                }
            )
            if out is not None:
                save(found, out / f"rate-{problem.arrival_rate_per_s:g}.npz")
    if out is not None:
        write(out / "optimum.json", to_json(rows))
    if as_json:
        return print_json(rows)
    for row in rows:
        console.print(_table(row))


def _problems(
    name: str, settings: list[str] | None, loads: list[float] | None, rates: list[float] | None
) -> list[Any]:
    """The scenario at each of the loads and rates; at its own where there is none."""
    base = read_scenario(name, settings, None)
    found = [at_load(base, load) for load in loads or ()]
    found += [base.at_rate(rate) for rate in rates or ()]
    return found or [base]


def _table(row: dict[str, Any]) -> Table:
    kind = "exact" if row["exact"] else "of the problem with fixed prompts and geometric outputs"
    table = Table(
        title=f"{row['scenario']} at {row['rate_per_s']:g} requests/s: optimum {row['low_s']:.3f} s ({kind})",
        title_justify="left",
    )
    for column in ("policy", "mean E2E s", "above the optimum", "behind its policy", "good"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for found in row["policies"]:
        mean, low, high = found["e2e_s"]
        behind = " .. ".join(f"{100 * x:+.1f}" for x in found["behind"][1:])
        table.add_row(
            found["policy"],
            f"{mean:.3f} [{low:.3f}, {high:.3f}]",
            f"{100 * found['gap'][0]:+.1f} %",
            f"{behind} %",
            f"{100 * found['good']:.1f} %",
        )
    return table


@app.command()
def tune(
    scenario: ScenarioName = "latency",
    objective: Annotated[str, typer.Option(help="latency or throughput.")] = "latency",
    load: Loads = None,
    rate: Rates = None,
    generations: Annotated[int, typer.Option(help="Rounds of the search.")] = 10,
    population: Annotated[int, typer.Option(help="Parameter vectors of a round.")] = 32,
    late_weight: Annotated[
        float, typer.Option(help="Cost of each percent beyond the TTFT target, after the first.")
    ] = 0.0,
    goodput_weight: Annotated[
        float, typer.Option(help="Cost of each percent that misses a target.")
    ] = 0.0,
    settings: Settings = None,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tune the tile index by cross-entropy search. With --out a search that was stopped resumes."""
    from llmgym.agents.index_search import Settings as SearchSettings
    from llmgym.agents.index_search import search
    from llmgym.baselines.index import PARAMETERS
    from llmgym.theory.capacity import capacity

    base = read_scenario(scenario, settings, None)
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
    with progress_bar(as_json, steps=True) as bar:
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
        return print_json({"parameters": numbers, "figures": found.figures})
    console.print("index:" + ",".join(f"{k}={v:g}" for k, v in numbers.items()), highlight=False)
    for row in found.figures:
        where = "its own rate" if row["load"] is None else f"load {row['load']:.3f}"
        e2e, served = row["e2e_s"], row["requests_per_s"]
        console.print(
            f"{where}: mean E2E {e2e[0]:.2f} s [{e2e[1]:.2f}, {e2e[2]:.2f}], "
            f"{served[0]:.3f} requests/s, {100 * row['good'][0]:.1f} % good",
            highlight=False,
        )
