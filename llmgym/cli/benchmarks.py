"""The commands ``llmgym benchmark`` and ``llmgym replay``: policies side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmgym.cli import common as cli

app = typer.Typer()


@app.command()
def benchmark(
    context: typer.Context,
    scenario: cli.ScenarioName = "paper-figure-1",
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
    window: cli.Window = None,
    replications: Annotated[int | None, typer.Option(help="Environments of each run.")] = None,
    arrivals: Annotated[int | None, typer.Option(help="Requests of each latency run.")] = None,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    jobs: cli.Jobs = 1,
    out: cli.Out = None,
    repeat: Annotated[
        Path | None, typer.Option(help="Repeat the benchmark of this result folder.")
    ] = None,
    html: Annotated[
        bool, typer.Option("--report", help="Also write report.html, one file that opens offline.")
    ] = False,
    as_json: cli.Json = False,
) -> None:
    """Judge policies: capacity against the limit, stability, latency. Resumes where it was stopped."""
    from llmgym.core.files import write
    from llmgym.evaluation import benchmark as benchmarks
    from llmgym.reporting import benchmark_page
    from llmgym.reporting import benchmark_report as report
    from llmgym.reporting.benchmark_tables import tables

    if repeat is not None:
        out = cli.repeated(context, "benchmark", repeat, ("out", "jobs", "html", "as_json"))
        chosen = benchmarks.from_config(repeat)
    else:
        base = cli.scenario(scenario, settings, trace, window)
        given = {"replications": replications, "arrivals": arrivals}
        names = tuple(policy) if policy else benchmarks.DEFAULT_POLICIES
        chosen = benchmarks.Benchmark(
            base,
            benchmarks.servable(names, base),
            tuple(load) if load else benchmarks.DEFAULT_LOADS,
            seed=seed,
            **{k: v for k, v in given.items() if v is not None},
        )
    out = out or cli.results_folder("benchmark", chosen.scenario.name)
    with cli.alone_in(out):
        with cli.counter(as_json) as progress:
            results = benchmarks.run(chosen, out, progress, jobs)
        paths = report.publish(chosen, results, out)
        if html:
            paths.append(out / "report.html")
            write(paths[-1], benchmark_page.page(chosen, results))
    if as_json:
        return cli.print_json(report.rows(chosen, results))
    cli.show(*tables(chosen, results), cli.told(paths, out / "raw"))


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="A request trace: Azure, Mooncake, vLLM or CSV.")],
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", help="Whose engine serves the trace.")
    ] = "a100-llama-3-8b",
    policy: Annotated[
        list[str] | None, typer.Option("--policy", "-p", help="Repeatable; by default all.")
    ] = None,
    window: cli.Window = None,
    load: Annotated[
        float | None, typer.Option(help="Stretch time to this load; by default real time.")
    ] = None,
    ttft_ms: Annotated[float, typer.Option(help="Target of the time to first token.")] = 2000.0,
    tpot_ms: Annotated[float, typer.Option(help="Target of the time per output token.")] = 100.0,
    drain_s: Annotated[float, typer.Option(help="Seconds after the last arrival.")] = 60.0,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Run policies on a trace at its own times: goodput, latency, preemptions. Resumes where it stopped."""
    from llmgym import baselines
    from llmgym.evaluation import traffic
    from llmgym.reporting import traffic_tables

    slots = [] if any(s.startswith("slots=") for s in settings or []) else ["slots=2048"]
    engine = cli.scenario(scenario, [*(settings or []), *slots], None)
    part = None if window is None else cli.window_of(window)
    chosen = traffic.Traffic(engine, trace, part, load, ttft_ms, tpot_ms, drain_s, seed)
    out = out or cli.results_folder("replay", trace.stem)
    with cli.alone_in(out):
        with cli.counter(as_json) as progress:
            records = traffic.run(chosen, tuple(policy or baselines.names()), out, progress)
        paths = traffic_tables.publish(records, out)
    if as_json:
        return cli.print_json(records)
    title = f"{trace.name} on {engine.name}: {chosen.scenario.arrival_rate_per_s:.2f} requests/s"
    caption = (
        f"targets: TTFT {ttft_ms:g} ms and TPOT {tpot_ms:g} ms; latencies of finished requests; left: "
        "unfinished; CPU s: processor time of the run, compilation included"
    )
    table = traffic_tables.table(records, title, (caption,))
    cli.show(table, cli.told(paths, out / "raw"))
