"""The commands ``llmgym list`` and ``llmgym show``: what llmgym has to offer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables

app = typer.Typer()


@app.command("list")
def list_(as_json: cli.Json = False) -> None:
    """List the scenarios, policies, environments, action encodings and rewards."""
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
        return cli.print_json(found)
    for title, entries in found.items():
        if entries:
            cli.show(tables.facts_table(title, {k: _sentence(v) for k, v in entries.items()}))


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().split("\n")[0]


def _sentence(text: str) -> str:
    """The first sentence; a list has no room for more, and JSON holds all."""
    first, stop, _ = text.partition(". ")
    return first + stop.strip()


@app.command()
def show(
    scenario: Annotated[str, typer.Argument(help="A named scenario, or a TOML file.")],
    settings: cli.Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Draw the graph to this file: png, svg or pdf.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """Show the graph of a scenario: its engines with their loads, and the stages of its job types."""
    from llmgym.reporting import graph

    chosen = cli.scenario(scenario, settings, None)
    if out is not None:
        graph.save_graph(chosen, out)
    if as_json:
        return cli.print_json(graph.graph_data(chosen))
    cli.show(graph.graph_text(chosen))
