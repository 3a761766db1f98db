"""The command ``llmgym reproduce``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables

if TYPE_CHECKING:
    from llmgym.reproduce.items import Item

app = typer.Typer()

MOST_JOBS = 4
"""The most that run in parallel by default, as a process holds about 2 GB."""

COMPILE_FAST = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"
"""XLA_FLAGS of a quick run, which is mostly compilation; with them that takes two thirds of the time."""


@app.command()
def reproduce(
    item: Annotated[
        list[str] | None, typer.Argument(help="Items to run; by default all. See --list.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Short runs: a few minutes in all.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the items and stop.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="LLMGYM_SHARED_DATA", help="Folder of recorded runs, for items that need one."
        ),
    ] = None,
    seed: cli.Seed = 0,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Measurements to run in parallel, each in a process of its own; by default one per core, "
            f"at most {MOST_JOBS}.",
        ),
    ] = None,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Reproduce published results and judge every figure. Resumes; exit code 1 if an item fails."""
    from llmgym import reproduce as reproduction
    from llmgym.core.blocks import cores
    from llmgym.reproduce import page as report
    from llmgym.reproduce import run as running

    items = reproduction.select(tuple(item or ()))
    if list_:
        return _list(items, as_json)
    effort = reproduction.Effort(quick, seed, data)
    if quick:  # before XLA starts, here and in other processes
        os.environ.setdefault("XLA_FLAGS", COMPILE_FAST)
    name = f"reproduce-{'quick-' if quick else ''}seed-{seed}"
    out = out or Path("results") / name
    with cli.alone_in(out):
        with cli.counter(as_json) as progress:
            results = running.run(items, effort, out, progress, jobs or min(cores(), MOST_JOBS))
        # The report holds whatever the folder has, be it from this call or from an earlier one.
        every = running.read(out, tuple(reproduction.ITEMS.values()), effort)
        paths = report.publish(every, running.config(effort), out)
    if as_json:
        cli.print_json([result.record() for result in results])
    else:
        more = f"Wrote {paths[0]} and {len(paths) - 1} more files; raw numbers in {out / 'raw'}."
        cli.show(running.table(results), more)
    if running.failed(results):
        raise typer.Exit(1)
    return None


def _list(items: tuple[Item, ...], as_json: bool) -> None:
    """Names, titles and sources."""
    if as_json:
        return cli.print_json(
            [{"item": i.name, "title": i.title, "source": i.source} for i in items]
        )
    cli.show(tables.facts_table("", {one.name: one.title for one in items}))
    return None
