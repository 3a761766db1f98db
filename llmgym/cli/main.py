"""The command line of llmgym: ``llmgym --help`` lists its commands."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from llmgym.cli import optimum as cli_optimum
from llmgym.cli import reproduction as cli_reproduce
from llmgym.cli import tables
from llmgym.cli import training as cli_agents
from llmgym.cli.common import (
    Jobs,
    Json,
    Load,
    Out,
    ScenarioName,
    Seed,
    Set,
    Window,
    console,
    messages,
    read_replay,
    window_of,
)
from llmgym.cli.common import bar as _bar
from llmgym.cli.common import counter as _counter
from llmgym.cli.common import print_json as _print_json
from llmgym.cli.common import scenario as _scenario
from llmgym.core.errors import LLMGymError, UnservableWarning
from llmgym.core.precision import in_32_bits

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Reinforcement-learning environments for scheduling LLM inference.",
)
app.add_typer(cli_agents.app)
app.add_typer(cli_optimum.app)
app.add_typer(cli_reproduce.app)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """What there is: scenarios, policies, environments, action encodings, rewards."""
    from llmgym import agents, baselines
    from llmgym.envs.interface.actions import ENCODINGS
    from llmgym.envs.registration import ids
    from llmgym.envs.rewards import REWARDS
    from llmgym.scenario import library

    found = {
        "scenarios": {n: library.scenario(n).description for n in library.names()},
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
    from llmgym.reporting import graph

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
    window: Window = None,
    settings: Set = None,
    seed: Seed = 0,
    out: Out = None,
    allow_unservable: Annotated[
        bool, typer.Option(help="Run even if the policy can never serve some of the requests.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run one policy and print its summary. --out writes requests.csv, batches.csv and summary.json."""
    from llmgym.core.files import to_json, write
    from llmgym.evaluation.simulate import simulate as run_simulation
    from llmgym.reporting import service_tables

    chosen = _scenario(scenario, settings, trace, window)
    if duration_s is None and chosen.demand.end_s is None:
        duration_s = 600.0
    if not allow_unservable:
        warnings.simplefilter("error", UnservableWarning)
    with _bar(as_json) as bar:
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
        write(out / "summary.json", to_json(run.summary))
        write(out / "requests.csv", run.requests.to_csv(index=False))
        write(out / "batches.csv", run.batches.to_csv(index=False))
        if chosen.is_network:
            write(out / "jobs.csv", run.jobs.to_csv(index=False))
            write(out / "stages.csv", run.stages.to_csv(index=False))
    if as_json:
        stages = {"stages": run.stages.to_dict("records")} if chosen.is_network else {}
        return _print_json(run.summary | stages)
    apart = {k: run.summary[k] for k in ("slo", "job_slo", "fairness") if k in run.summary}
    facts = {k: v for k, v in run.summary.items() if k not in apart}
    console.print(tables.summary_table(f"{run.policy} on {chosen.name}", facts))
    if "slo" in apart:
        console.print(service_tables.slo_table(run.summary))
    if "job_slo" in apart:
        console.print(tables.job_levels_table(apart["job_slo"]))
    if "fairness" in apart:
        console.print(service_tables.fairness_table(apart["fairness"]))
    if chosen.is_network:
        console.print(tables.stages_table(chosen, run.stages))


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
    from llmgym.evaluation.capacity import estimate_capacity
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
        found |= tables.network_facts(chosen, limit)
    if policy is not None:
        with _bar(as_json) as bar:
            task = bar.add_task(f"capacity of {policy}", total=1.0)
            estimate = estimate_capacity(
                chosen,
                policy,
                seed=seed,
                progress=lambda done: bar.update(task, completed=done),
            )
        found["policy"] = {"name": policy, **asdict(estimate)}
    if as_json:
        return _print_json(found)
    apart = ("policy", "engines", "notes")
    console.print(
        tables.summary_table(
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
        typer.Option(
            "--policy",
            "-p",
            help="Repeatable; sarathi:token_budget=128 for settings, FILE.py:FUNCTION for yours.",
        ),
    ] = None,
    load: Annotated[list[float] | None, typer.Option(help="Repeatable.")] = None,
    trace: Annotated[Path | None, typer.Option(help="A request trace, as the workload.")] = None,
    window: Window = None,
    replications: Annotated[int | None, typer.Option(help="Environments of each run.")] = None,
    arrivals: Annotated[int | None, typer.Option(help="Requests of each latency run.")] = None,
    settings: Set = None,
    seed: Seed = 0,
    jobs: Jobs = 1,
    out: Out = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the benchmark of this result folder.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--report", help="Also write report.html, one file that opens offline.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge policies: capacity against the limit, stability, latency. Resumes where it was stopped."""
    from llmgym.evaluation import benchmark as benchmarks
    from llmgym.reporting import benchmark_report as report

    if repeat is not None:
        chosen = benchmarks.from_config(repeat)
    else:
        base = _scenario(scenario, settings, trace, window)
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
    with _counter(as_json) as progress:
        results = benchmarks.run(
            chosen,
            out,
            progress,
            jobs,
        )
    paths = report.publish(chosen, results, out)
    if html:
        from llmgym.core.files import write
        from llmgym.reporting import benchmark_page

        paths.append(out / "report.html")
        write(paths[-1], benchmark_page.page(chosen, results))
    if as_json:
        return _print_json(report.rows(chosen, results))
    console.print(report.tables(chosen, results))
    console.print(f"Wrote {', '.join(str(p) for p in paths)}; raw numbers in {out / 'raw'}.")


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="A request trace: Azure, Mooncake, vLLM or CSV.")],
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", help="Whose engine serves the trace.")
    ] = "a100-llama-3-8b",
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="Repeatable; by default all.")
    ] = None,
    window: Window = None,
    load: Annotated[
        float | None, typer.Option(help="Stretch time to this load; by default real time.")
    ] = None,
    ttft_ms: Annotated[float, typer.Option(help="Target of the time to first token.")] = 2000.0,
    tpot_ms: Annotated[float, typer.Option(help="Target of the time per output token.")] = 100.0,
    drain_s: Annotated[float, typer.Option(help="Seconds after the last arrival.")] = 60.0,
    settings: Set = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Policies on a trace at its own times: goodput, latency, preemptions. Resumes where it stopped."""
    from llmgym import baselines
    from llmgym.evaluation import traffic
    from llmgym.reporting import traffic_tables

    slots = [] if any(s.startswith("slots=") for s in settings or []) else ["slots=2048"]
    engine = _scenario(scenario, [*(settings or []), *slots], None)
    part = None if window is None else window_of(window)
    chosen = traffic.Traffic(engine, trace, part, load, ttft_ms, tpot_ms, drain_s, seed)
    out = out or Path("results") / f"replay-{trace.stem}"
    with _counter(as_json) as progress:
        records = traffic.run(
            chosen,
            tuple(policy or baselines.names()),
            out,
            progress,
        )
    paths = traffic_tables.publish(records, out)
    if as_json:
        return _print_json(records)
    title = f"{trace.name} on {engine.name}: {chosen.scenario.arrival_rate_per_s:.2f} requests/s"
    caption = (
        f"targets: TTFT {ttft_ms:g} ms and TPOT {tpot_ms:g} ms; latencies of finished requests; left: "
        "unfinished; CPU s: processor time of the run, compilation included"
    )
    console.print(traffic_tables.rich_table(records, title, caption))
    console.print(
        f"Wrote {', '.join(map(str, paths))}; raw numbers in {out / 'raw'}.", markup=False
    )


@app.command("fit-trace")
def fit_trace(
    file: Annotated[Path, typer.Argument(help="A request trace: Azure, Mooncake, vLLM or CSV.")],
    kind: Annotated[
        str | None,
        typer.Option(help="poisson, gamma, bursts, day or bursty-day; by default the best."),
    ] = None,
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", help="Whose engine the new scenario has.")
    ] = "a100-llama-3-8b",
    window: Window = None,
    points: Annotated[int, typer.Option(help="Quantiles of prompts and of outputs.")] = 129,
    settings: Set = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Scenario to write, a TOML file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit arrivals and lengths to a trace, say how good the fits are, and write a scenario."""
    from llmgym.scenario import toml_writer
    from llmgym.traces import arrival_fits
    from llmgym.traces import fits as trace_fits

    replay, engine = read_replay(file, window), _scenario(scenario, settings, None)
    kinds = tuple(arrival_fits.FITS) if kind is None else (kind,)
    found = arrival_fits.compare_fits(replay, kinds, seed)
    source = f"Lengths and arrivals: {file.name}, summarised. Engine: that of {engine.name}."
    fitted = trace_fits.fit_scenario(
        replay,
        found.fits[0].arrivals,
        engine,
        (out or file).stem,
        source=source,
        points=points,
    )
    if out is not None:
        toml_writer.save(fitted, out)
    if as_json:
        return _print_json(found.record() | {"description": fitted.description})
    console.print(tables.arrival_fits_table(found))
    console.print(fitted.description, markup=False, highlight=False)
    if out is not None:
        console.print(f"Wrote {out}.", markup=False)


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
    from llmgym.calibration.calibrate import calibrate as fit_all
    from llmgym.calibration.calibrate import draw

    found = fit_all(file, tile)
    chosen = found.fit(form)
    paths = [] if out is None else [out / "batch_time.toml", out / "calibration.png"]
    if paths:
        found.write(paths[0], form)
        draw(found, paths[1])
    if as_json:
        fits = [fit.record() for fit in found.fits]
        return _print_json({"chosen": chosen.form, "fits": fits, "notes": found.notes})
    console.print(tables.fits_table(found))
    for note in found.notes:
        console.print(f"[yellow]{note}[/yellow]")
    constants = ", ".join(f"{k} = {v}" for k, v in vars(chosen.model).items())
    console.print(f"{chosen.form}: {constants}", highlight=False)
    if paths:
        console.print(f"Wrote {' and '.join(map(str, paths))}.", markup=False)


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="A recorded run: requests.jsonl and meta.json.")],
    batch_time: Annotated[
        str, typer.Option(help="Of its GPU and model: a preset, or a TOML file.")
    ],
    as_json: Json = False,
) -> None:
    """Simulate a recorded run of vLLM and print how far the latencies are from those measured."""
    from llmgym.calibration.validate import compare, read_vllm_run
    from llmgym.evaluation.simulate import simulate as run_simulation

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
    console.print(tables.comparison_table(recorded, batch_time, found))


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
    from llmgym.core.files import to_json, write
    from llmgym.speed import interfaces as speeds

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
        with _counter(as_json) as progress:
            found = speeds.table(progress=progress)
    if out is not None:
        write(out / "speed.json", to_json(found))
    if as_json:
        return _print_json(found)
    console.print(
        tables.summary_table("speed", found)
        if isinstance(found, dict)
        else speeds.rich_table(found)
    )


@in_32_bits
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
        messages.print(
            "Stopped. The same command resumes a benchmark, a training, an evaluation or a reproduction."
        )
        sys.exit(130)


if __name__ == "__main__":
    main()
