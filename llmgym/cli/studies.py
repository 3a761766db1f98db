"""The commands ``llmgym study`` and ``llmgym ship-agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmgym.cli import common as cli
from llmgym.cli import tables
from llmgym.core.errors import LLMGymError

app = typer.Typer()


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(help="See --list.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the studies and stop.")] = False,
    policy: Annotated[
        str | None,
        typer.Option("--policy", "-p", help="A trained policy instead of the one that ships."),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Only write the page, from what the folder holds.")
    ] = False,
    out: cli.Out = None,
    as_json: cli.Json = False,
) -> None:
    """Repeat a published page of results: measure what --out does not hold yet, and write README.md."""
    from llmgym import studies

    if list_:
        titles = {one.name: one.title for one in studies.STUDIES.values()}
        return cli.print_json(titles) if as_json else cli.show(tables.facts_table("", titles))
    if name is None:
        raise LLMGymError(f"Name a study: {', '.join(studies.STUDIES)}.")
    chosen = studies.select(name)
    out, policy = out or Path("results") / f"study-{name}", policy or chosen.policy
    if page and not out.is_dir():
        raise LLMGymError(f"{out} holds no results. Name their folder with --out.")
    with cli.alone_in(out):
        if not page:
            with cli.counter(as_json) as progress:
                chosen.measure(out, policy, progress)
        paths = studies.publish(chosen, out, policy)
    if as_json:
        return cli.print_json({"study": name, "policy": policy, "files": list(map(str, paths))})
    return cli.show(cli.told(paths))


@app.command("ship-agent")
def ship_agent(
    agent: Annotated[Path, typer.Argument(help="The checkpoint, an .npz file.")],
    results: Annotated[Path, typer.Argument(help="Folder of its evaluation, or of its study.")],
    name: Annotated[str, typer.Argument(help="Its name among the policies.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; by default the package's own.")
    ] = None,
    as_json: cli.Json = False,
) -> None:
    """For maintainers: add a trained policy to those that ship, with its measured figures in its header."""
    from llmgym.studies.ship import ship

    path, digest = ship(agent, results, name, out)
    if as_json:
        return cli.print_json({"file": str(path), "name": name, "digest": digest})
    return cli.show(cli.told([path]))
