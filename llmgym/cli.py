"""The command line of llmgym: ``llmgym --help`` lists its commands."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmgym import cli_optimum
from llmgym.errors import LLMGymError, UnservableWarning

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reinforcement-learning environments for scheduling LLM inference.",
)
app.add_typer(cli_optimum.app)
console = Console()
messages = Console(stderr=True)

ScenarioName = Annotated[
    str, typer.Option("--scenario", "-s", help="A named scenario, or a TOML file.")
]
Load = Annotated[
    float | None,
    typer.Option(help="Fraction of the LP capacity; by default the scenario's own rate."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of the arrivals and of random policies.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write results.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: token_budget=1024. Repeatable."),
]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """What there is: scenarios, policies, environments, action encodings, rewards."""
    from llmgym import agents, baselines, scenario_files
    from llmgym.envs.actions import ENCODINGS
    from llmgym.envs.functional import ids
    from llmgym.envs.rewards import REWARDS

    found = {
        "scenarios": {n: scenario_files.scenario(n).description for n in scenario_files.names()},
        "policies": {n: _first_line(baselines.POLICIES[n]) for n in baselines.names()},
        "agents": dict.fromkeys(agents.names(), ""),
        "environments": {name: _first_line(form) for name, form in ids().items()},
        "actions": {n: _first_line(ENCODINGS[n]) for n in ENCODINGS},
        "rewards": dict.fromkeys(REWARDS, ""),
    }
    if as_json:
        return _print_json(found)
    for title, entries in found.items():
        if entries:
            table = Table(title=title, show_header=False, title_justify="left", expand=False)
            for name, text in entries.items():
                table.add_row(name, text)
            console.print(table)


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


@app.command()
def show(
    scenario: Annotated[str, typer.Argument(help="A named scenario, or a TOML file.")],
    settings: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Draw the graph to this file: png, svg or pdf.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The graph of a scenario: its engines with their loads, and the stages of its job types."""
    from llmgym import graph

    chosen = _scenario(scenario, settings, None)
    if out is not None:
        graph.save_graph(chosen, out)
    if as_json:
        return _print_json(graph.graph_data(chosen))
    typer.echo(graph.graph_text(chosen))


@app.command()
def simulate(
    scenario: ScenarioName = "paper-figure-1",
    policy: Annotated[str, typer.Option("--policy", "-p", help="See `llmgym list`.")] = "sarathi",
    load: Load = None,
    duration_s: Annotated[float | None, typer.Option(help="Simulated seconds.")] = None,
    warmup_s: Annotated[float, typer.Option(help="Seconds that averages leave out.")] = 0.0,
    num_envs: Annotated[int, typer.Option(help="Independent replications.")] = 1,
    trace: Annotated[Path | None, typer.Option(help="Replay this trace on the engine.")] = None,
    window: Annotated[
        str | None, typer.Option(help="Only this part of the trace, in seconds: START:END.")
    ] = None,
    settings: Set = None,
    seed: Seed = 0,
    out: Out = None,
    allow_unservable: Annotated[
        bool, typer.Option(help="Run even if the policy can never serve some of the requests.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one policy and print its summary. --out writes requests.csv, batches.csv and summary.json."""
    from llmgym.evaluation import benchmark
    from llmgym.evaluation.files import to_json, write
    from llmgym.evaluation.simulate import simulate as run_simulation
    from llmgym.workload import Replay

    chosen = _scenario(scenario, settings, trace, window)
    if duration_s is None and not isinstance(chosen.workload, Replay):
        duration_s = 600.0
    if not allow_unservable:
        warnings.simplefilter("error", UnservableWarning)
    with _bar(as_json) as bar:
        task = bar.add_task(f"{policy} on {chosen.name}", total=1.0)
        run = run_simulation(
            chosen,
            benchmark.resolve(policy),
            load=load,
            duration_s=duration_s,
            num_envs=num_envs,
            seed=seed,
            warmup_s=warmup_s,
            progress=lambda done: bar.update(task, completed=done),
        )
    if out is not None:
        write(out / "summary.json", to_json(run.summary))
        write(out / "requests.csv", run.requests.to_csv(index=False))
        write(out / "batches.csv", run.batches.to_csv(index=False))
        if chosen.is_network:
            write(out / "jobs.csv", run.jobs.to_csv(index=False))
            write(out / "stages.csv", run.stages.to_csv(index=False))
    if as_json:
        stages = {"stages": run.stages.to_dict("records")} if chosen.is_network else {}
        return _print_json(run.summary | stages)
    console.print(_summary_table(f"{run.policy} on {chosen.name}", run.summary))
    if chosen.is_network:
        console.print(_stages_table(chosen, run.stages))


def _network_facts(scenario: Any, limit: Any) -> dict[str, Any]:
    """Engine by engine, and what the nominal load does not tell."""
    from llmgym.theory.networks import CyclicRoutingWarning, check_routing, virtual_station

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


def _stages_table(scenario: Any, stages: Any) -> Table:
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


def _summary_table(title: str, summary: dict[str, Any]) -> Table:
    table = Table(title=title, show_header=False)
    for name, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(f"{k} {v:.1f}" for k, v in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    return table


@app.command()
def capacity(
    scenario: ScenarioName = "paper-figure-1",
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Also measure the capacity of this policy.")
    ] = None,
    settings: Set = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """The load that no policy can exceed (the planning LP), and what a policy reaches."""
    from llmgym.evaluation import benchmark
    from llmgym.evaluation.capacity_estimate import estimate_capacity
    from llmgym.theory.capacity import capacity as limit_of

    chosen = _scenario(scenario, settings, None)
    limit = limit_of(chosen)
    found: dict[str, Any] = {
        "scenario": chosen.name,
        "requests_per_s": limit.requests_per_s,
        "tokens_per_ms": limit.tokens_per_ms,
        "load_factor": limit.load_factor,
        "bottleneck": limit.bottleneck,
    }
    if chosen.is_network:
        found |= _network_facts(chosen, limit)
    if policy is not None:
        with _bar(as_json) as bar:
            task = bar.add_task(f"capacity of {policy}", total=1.0)
            estimate = estimate_capacity(
                chosen,
                benchmark.resolve(policy),
                seed=seed,
                progress=lambda done: bar.update(task, completed=done),
            )
        found["policy"] = {"name": policy, **asdict(estimate)}
    if as_json:
        return _print_json(found)
    apart = ("policy", "engines", "notes")
    console.print(
        _summary_table(
            f"capacity of {chosen.name}", {k: v for k, v in found.items() if k not in apart}
        )
    )
    for engine in found.get("engines", ()):
        console.print(
            f"{engine['name']}: load {engine['load']:.3f}, slack {1 - engine['load']:.3f}, "
            f"alone it carries {engine['jobs_per_s']:,.3f} jobs/s"
        )
    for note in found.get("notes", ()):
        console.print(f"[yellow]{note}[/yellow]")
    if policy is not None:
        console.print(
            f"{policy}: {estimate.requests_per_s:.3f} requests/s "
            f"[{estimate.low:.3f}, {estimate.high:.3f}] by {estimate.method}, "
            f"{100 * estimate.requests_per_s / limit.requests_per_s:.1f} % of the limit"
        )


@app.command()
def benchmark(
    scenario: ScenarioName = "paper-figure-1",
    policy: Annotated[
        list[str] | None,
        typer.Option("--policy", "-p", help="Repeatable; sarathi:token_budget=128 for settings."),
    ] = None,
    load: Annotated[list[float] | None, typer.Option(help="Repeatable.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A request trace, as the workload.")] = None,
    replications: Annotated[int | None, typer.Option(help="Environments of each run.")] = None,
    arrivals: Annotated[int | None, typer.Option(help="Requests of each latency run.")] = None,
    settings: Set = None,
    seed: Seed = 0,
    out: Out = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the benchmark of this result folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge policies: capacity against the limit, stability, latency. Resumes where it was stopped."""
    from llmgym.evaluation import benchmark as benchmarks
    from llmgym.evaluation import report

    if repeat is not None:
        chosen = benchmarks.from_config(repeat)
    else:
        base = _scenario(scenario, settings, trace)
        given = {"replications": replications, "arrivals": arrivals}
        names = tuple(policy) if policy else benchmarks.DEFAULT_POLICIES
        chosen = benchmarks.Benchmark(
            base,
            benchmarks.servable(names, base),
            tuple(load) if load else benchmarks.DEFAULT_LOADS,
            seed=seed,
            **{k: v for k, v in given.items() if v is not None},
        )
    out = out or Path("results") / f"benchmark-{chosen.scenario.name}"
    with _bar(as_json, steps=True) as bar:
        task = bar.add_task("starting", total=None)
        results = benchmarks.run(
            chosen,
            out,
            lambda done, total, label: bar.update(
                task, completed=done, total=total, description=label
            ),
        )
    paths = report.publish(chosen, results, out)
    if as_json:
        return _print_json(report.rows(chosen, results))
    console.print(report.tables(chosen, results))
    console.print(f"Wrote {', '.join(str(p) for p in paths)}; raw numbers in {out / 'raw'}.")


@app.command()
def calibrate(
    file: Annotated[
        Path, typer.Argument(help="CSV: tokens, ms, and perhaps decode_context, prefill_pairs.")
    ],
    form: Annotated[
        str | None, typer.Option(help="Form to write; by default the best one.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Tile of the staircase; else searched.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit batch-time models to measured batches. --out writes batch_time.toml and calibration.png."""
    from llmgym.calibration import calibrate as fit_all
    from llmgym.calibration import draw

    found = fit_all(file, tile)
    chosen = found.fit(form)
    paths = [] if out is None else [out / "batch_time.toml", out / "calibration.png"]
    if paths:
        found.write(paths[0], form)
        draw(found, paths[1])
    if as_json:
        fits = [fit.record() for fit in found.fits]
        return _print_json({"chosen": chosen.form, "fits": fits, "notes": found.notes})
    console.print(_fits_table(found))
    for note in found.notes:
        console.print(f"[yellow]{note}[/yellow]")
    constants = ", ".join(f"{k} = {v}" for k, v in vars(chosen.model).items())
    console.print(f"{chosen.form}: {constants}", highlight=False)
    if paths:
        console.print(f"Wrote {' and '.join(map(str, paths))}.", markup=False)


def _fits_table(found: Any) -> Table:
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


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="A recorded run: requests.jsonl and meta.json.")],
    batch_time: Annotated[
        str, typer.Option(help="Of its GPU and model: a preset, or a TOML file.")
    ],
    as_json: Json = False,
) -> None:
    """Simulate a recorded run of vLLM and print how far the latencies are from those measured."""
    from llmgym.evaluation.simulate import simulate as run_simulation
    from llmgym.vllm_runs import compare, read_vllm_run

    recorded = read_vllm_run(folder)
    warnings.simplefilter("error", UnservableWarning)
    run = run_simulation(recorded.scenario(batch_time), recorded.policy)
    found = compare(recorded, run)
    if as_json:
        facts = {
            "requests": len(recorded.replay),
            "preemptions": int(run.requests.preemptions.sum()),
        }
        return _print_json(facts | found.to_dict("index"))
    console.print(_comparison_table(recorded, batch_time, found))


def _comparison_table(run: Any, batch_time: str, found: Any) -> Table:
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


@app.command()
def speed(
    num_envs: Annotated[int | None, typer.Option(help="Environments of the batch.")] = None,
    slots: Annotated[int | None, typer.Option(help="Rows of the request table.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Policy in the loop.")
    ] = None,
    load: Annotated[float | None, typer.Option(help="Fraction of the LP capacity.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Engine or network to run.")] = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """How many steps per second: one measurement with options, a table of many without."""
    from llmgym.evaluation import speed as speeds
    from llmgym.evaluation.files import to_json, write

    given: dict[str, Any] = {
        "num_envs": num_envs,
        "slots": slots,
        "policy": policy,
        "load": load,
        "scenario": scenario,
    }
    chosen = {k: v for k, v in given.items() if v is not None}
    if chosen:
        found: Any = speeds.as_json(speeds.measure(seed=seed, **chosen))
    else:
        with _bar(as_json, steps=True) as bar:
            task = bar.add_task("starting", total=None)
            found = speeds.table(
                progress=lambda done, total, label: bar.update(
                    task, completed=done, total=total, description=label
                )
            )
    if out is not None:
        write(out / "speed.json", to_json(found))
    if as_json:
        return _print_json(found)
    console.print(
        _summary_table("speed", found) if isinstance(found, dict) else speeds.rich_table(found)
    )


def _scenario(
    name: str, settings: list[str] | None, trace: Path | None, window: str | None = None
) -> Any:
    from llmgym import scenario_files
    from llmgym.traces import read_trace

    changes: dict[str, Any] = {}
    for pair in settings or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LLMGymError(f"--set {pair}: write name=value.")
        changes[key.strip()] = _value(value.strip())
    if window is not None and trace is None:
        raise LLMGymError("--window is a part of a trace; name the file with --trace.")
    if trace is not None:
        replay = read_trace(trace)
        if window is not None:
            replay = replay.window(*_window(window))
        changes |= {"workload": replay, "name": trace.stem}
        changes.setdefault("token_budget", 2048)
        changes.setdefault("slots", 2048)
    return scenario_files.scenario(name, **changes)


def _window(text: str) -> tuple[float, float]:
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError:
        raise LLMGymError(f"--window {text}: write START:END in seconds, such as 60:120.") from None


def _value(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _bar(quiet: bool, steps: bool = False) -> Progress:
    counter = [MofNCompleteColumn()] if steps else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *counter,
        TimeElapsedColumn(),
        console=messages,
        disable=quiet,
        transient=True,
    )


def _print_json(value: Any) -> None:
    from llmgym.evaluation.files import to_json

    typer.echo(to_json(value))


def main() -> None:
    """Entry point: bad input is one line on standard error and exit code 2."""
    try:
        app()
    except (LLMGymError, UnservableWarning) as error:
        messages.print(
            f"llmgym: {error}", style="red", highlight=False, markup=False, soft_wrap=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        messages.print("Stopped. The same command resumes a benchmark.")
        sys.exit(130)


if __name__ == "__main__":
    main()
