"""The command ``llmgym speed``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables

app = typer.Typer()


@app.command()
def speed(
    num_envs: Annotated[int | None, typer.Option(help="Environments of the batch.")] = None,
    slots: Annotated[int | None, typer.Option(help="Rows of the request table.")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Policy in the loop.")
    ] = None,
    load: Annotated[float | None, typer.Option(help="Fraction of the LP capacity.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Engine or network to run.")] = None,
    seed: cli.Seed = 0,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Measure steps per second: one measurement with options, a table of many without."""
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
    with cli.alone_in(out):
        if chosen:
            with cli.busy(as_json, "one measurement of speed"):
                found: Any = speeds.as_json(speeds.measure(seed=seed, **chosen))
        else:
            with cli.counter(as_json) as progress:
                found = speeds.table(progress=progress, seed=seed)
        if out is not None:
            write(out / "speed.json", to_json(found))
    if as_json:
        return cli.print_json(found)
    cli.show(tables.facts_table("speed", found) if chosen else tables.speed_table(found))
