"""The commands ``llmgym simulate`` and ``llmgym capacity``."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables
from llmgym.core.errors import LLMGymError, UnservableWarning

app = typer.Typer()


@app.command()
def simulate(
    scenario: cli.ScenarioName = "paper-figure-1",
    policy: Annotated[str, typer.Option("--policy", "-p", help="See `llmgym list`.")] = "sarathi",
    load: cli.Load = None,
    duration_s: Annotated[float | None, typer.Option(help="Simulated seconds.")] = None,
    warmup_s: Annotated[float, typer.Option(help="Seconds that averages leave out.")] = 0.0,
    num_envs: Annotated[int, typer.Option(help="Independent replications.")] = 1,
    trace: Annotated[Path | None, typer.Option(help="Replay this trace on the engine.")] = None,
    window: cli.Window = None,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    out: cli.Out = None,
    allow_unservable: Annotated[
        bool, typer.Option(help="Run even if the policy can never serve some of the requests.")
    ] = False,
    as_json: cli.Json = False,
) -> None:
    """Run one policy and print its summary. --out writes requests.csv, batches.csv and summary.json."""
    from llmgym.evaluation.simulate import simulate as run_simulation

    if out is not None:
        _check_folder(out, scenario, trace)
    chosen = cli.scenario(scenario, settings, trace, window)
    if duration_s is None and chosen.demand.end_s is None:
        duration_s = 600.0
    if not allow_unservable:
        warnings.simplefilter("error", UnservableWarning)
    with cli.alone_in(out):
        with cli.bar(as_json) as bar:
            task = bar.add_task(f"{policy} on {chosen.name}", total=1.0)
            run = run_simulation(
                chosen,
                policy,
                load=load,
                duration_s=duration_s,
                num_envs=num_envs,
                seed=seed,
                warmup_s=warmup_s,
                progress=lambda done: bar.update(task, completed=done),
            )
        if out is not None:
            _write(run, out)
    if as_json:
        stages = {"stages": run.stages.to_dict("records")} if chosen.is_network else {}
        return cli.print_json(run.summary | stages)
    cli.show(*tables.run_tables(run))


def _check_folder(out: Path, scenario: str, trace: Path | None) -> None:
    """Refuse a folder whose files another command needs: what is read here, and results of other kinds."""
    inputs = [Path(scenario)] if scenario.endswith(".toml") else []
    for path in inputs if trace is None else [*inputs, trace]:
        if os.path.realpath(path.parent) == os.path.realpath(out):
            raise LLMGymError(
                f"{out} is the folder of {path}; choose another --out, such as {out / 'run'}."
            )
    kept = [
        name
        for name in ("config.json", "meta.json", "requests.jsonl")
        if os.path.exists(out / name)
    ]
    if kept:
        raise LLMGymError(
            f"{out} holds {kept[0]}, the results of another command or a recorded run; choose another --out."
        )


def _write(run: Any, out: Path) -> None:
    """The summary and the tables of a run as files."""
    from llmgym.core.files import csv_of, to_json, write

    write(out / "summary.json", to_json(run.summary))
    names = ("requests", "batches", *(("jobs", "stages") if run.scenario.is_network else ()))
    for name in names:
        write(out / f"{name}.csv", csv_of(getattr(run, name)))


@app.command()
def capacity(
    scenario: cli.ScenarioName = "paper-figure-1",
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Also measure the capacity of this policy.")
    ] = None,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    as_json: cli.Json = False,
) -> None:
    """Find the load that no policy can exceed (the planning LP), and what a policy reaches."""
    from llmgym.evaluation.capacity import estimate_capacity
    from llmgym.theory.capacity import capacity as limit_of

    chosen = cli.scenario(scenario, settings, None)
    limit = limit_of(chosen)
    found: dict[str, Any] = {
        "scenario": chosen.name,
        "requests_per_s": limit.requests_per_s,
        "tokens_per_ms": limit.tokens_per_ms,
        "load_factor": limit.load_factor,
        "bottleneck": limit.bottleneck,
    }
    if chosen.is_network:
        found |= tables.network_facts(chosen, limit)
    if policy is not None:
        with cli.bar(as_json) as bar:
            task = bar.add_task(f"capacity of {policy}", total=1.0)
            estimate = estimate_capacity(
                chosen,
                policy,
                seed=seed,
                progress=lambda done: bar.update(task, completed=done),
            )
        found["policy"] = {"name": policy, **asdict(estimate)}
    if as_json:
        return cli.print_json(found)
    cli.show(*tables.capacity_tables(found))
