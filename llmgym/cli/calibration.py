"""The commands that fit and check models: ``fit-trace``, ``calibrate`` and ``validate``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables
from llmgym.core.errors import LLMGymError, UnservableWarning

app = typer.Typer()


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
    window: cli.Window = None,
    points: Annotated[int, typer.Option(help="Quantiles of prompts and of outputs.")] = 129,
    settings: cli.Set = None,
    seed: cli.Seed = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Scenario to write, a TOML file.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Fit arrivals and lengths to a trace, say how good the fits are, and write a scenario."""
    from llmgym.scenario import toml_writer
    from llmgym.traces import arrival_fits
    from llmgym.traces import fits as trace_fits

    if out is not None and os.path.realpath(out) == os.path.realpath(file):
        raise LLMGymError(f"--out {out} is the trace itself; name another file.")
    replay, engine = cli.read_replay(file, window), cli.scenario(scenario, settings, None)
    kinds = tuple(arrival_fits.FITS) if kind is None else (kind,)
    with cli.busy(as_json, f"fitting arrivals to {file.name}"):
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
        return cli.print_json(found.record() | {"description": fitted.description})
    cli.show(tables.arrival_fits_table(found), fitted.description)
    if out is not None:
        cli.show(cli.told([out]))


@app.command()
def calibrate(
    file: Annotated[
        Path, typer.Argument(help="CSV: tokens, ms, and perhaps decode_context, prefill_pairs.")
    ],
    form: Annotated[
        str | None, typer.Option(help="Form to write; by default the best one.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Tile of the staircase; else searched.")] = None,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Fit batch-time models to measured batches. --out writes batch_time.toml and calibration.png."""
    from llmgym.calibration.calibrate import calibrate as fit_all
    from llmgym.calibration.calibrate import draw

    with cli.busy(as_json, f"fitting batch times to {file.name}"):
        found = fit_all(file, tile)
    chosen = found.fit(form)
    paths = [] if out is None else [out / "batch_time.toml", out / "calibration.png"]
    if paths:
        with cli.alone_in(out):
            found.write(paths[0], form)
            draw(found, paths[1])
    if as_json:
        fits = [fit.record() for fit in found.fits]
        return cli.print_json({"chosen": chosen.form, "fits": fits, "notes": found.notes})
    cli.show(tables.fits_table(found), *found.notes)
    constants = ", ".join(f"{k} = {v}" for k, v in vars(chosen.model).items())
    cli.show(f"{chosen.form}: {constants}")
    if paths:
        cli.show(cli.told(paths))


@app.command()
def validate(
    folder: Annotated[Path, typer.Argument(help="A recorded run: requests.jsonl and meta.json.")],
    batch_time: Annotated[
        str, typer.Option(help="Batch time of its GPU and model: a preset, or a TOML file.")
    ],
    as_json: cli.Json = False,
) -> None:
    """Simulate a recorded run of vLLM and print how far the latencies are from those measured."""
    from llmgym.calibration.validate import compare, read_vllm_run
    from llmgym.evaluation.simulate import simulate as run_simulation

    recorded = read_vllm_run(folder)
    warnings.simplefilter("error", UnservableWarning)
    with cli.busy(as_json, f"simulating {recorded.name}"):
        run = run_simulation(recorded.scenario(batch_time), recorded.policy)
    found = compare(recorded, run)
    if as_json:
        facts = {
            "requests": len(recorded.replay),
            "preemptions": int(run.requests.preemptions.sum()),
        }
        return cli.print_json(facts | found.to_dict("index"))
    cli.show(tables.comparison_table(recorded, batch_time, found))
