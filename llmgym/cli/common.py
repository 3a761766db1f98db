"""What the commands share: options, scenarios from options, progress bars, JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmgym.core.errors import LLMGymError
from llmgym.evaluation.policies import value_of
from llmgym.reporting.table import Table

console = Console()
messages = Console(stderr=True)

ScenarioName = Annotated[
    str, typer.Option("--scenario", "-s", help="A named scenario, or a TOML file.")
]
Load = Annotated[
    float | None,
    typer.Option(help="Fraction of the LP capacity; by default the scenario's own rate."),
]
Loads = Annotated[
    list[float] | None,
    typer.Option("--load", help="Fraction of the LP capacity. Repeatable."),
]
Rates = Annotated[
    list[float] | None,
    typer.Option("--rate", help="Requests per second, in place of a load. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of the arrivals and of random policies.")]
Window = Annotated[
    str | None, typer.Option(help="Only this part of the trace, in seconds: START:END.")
]
Jobs = Annotated[
    int, typer.Option(min=1, help="Measurements to run in parallel, each in a process of its own.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write results.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting: token_budget=1024. Repeatable."),
]


def scenario(
    name: str, settings: list[str] | None, trace: Path | None, window: str | None = None
) -> Any:
    """The scenario that the options describe.

    Args:
        name: a named scenario, or the path of a TOML file.
        settings: overrides, each ``name=value``.
        trace: a request trace that takes the place of the workload. The scenario is named after it, and has
            a token budget of 2,048 and 2,048 slots unless ``settings`` give others.
        window: the part of the trace to use, START:END in seconds; None: all of it.

    Raises:
        LLMGymError: a setting without ``=``, an unknown name or setting, a trace that cannot be read, or a
            window that is malformed or has no trace.
    """
    from llmgym.scenario import library

    changes: dict[str, Any] = {}
    for pair in settings or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LLMGymError(f"--set {pair}: write name=value.")
        changes[key.strip()] = parse(value.strip())
    if window is not None and trace is None:
        raise LLMGymError("--window is a part of a trace; name the file with --trace.")
    if trace is not None:
        changes |= {"workload": read_replay(trace, window), "name": trace.stem}
        changes.setdefault("token_budget", 2048)
        changes.setdefault("slots", 2048)
    return library.scenario(name, **changes)


def at_rates(
    base: Any, load: list[float] | None, rate: list[float] | None, usual: tuple[float, ...]
) -> list[Any]:
    """The scenario at each rate or load.

    Args:
        base: the scenario.
        load: fractions of the LP capacity.
        rate: requests/s; of a network, jobs/s.
        usual: loads for a command that is given neither.

    Raises:
        LLMGymError: both are given.
    """
    from llmgym.theory.capacity import at_load

    if load and rate:
        raise LLMGymError("Give --load or --rate, not both.")
    if rate:
        return [base.at_rate(r) for r in rate]
    return [at_load(base, x) for x in load or usual]


def read_replay(trace: Path, window: str | None) -> Any:
    """The requests of a trace, or of a part of it."""
    from llmgym.traces.readers import read_trace

    replay = read_trace(trace)
    return replay if window is None else replay.window(*window_of(window))


def window_of(text: str) -> tuple[float, float]:
    """START:END in seconds."""
    start, _, end = text.partition(":")
    try:
        return float(start), float(end)
    except ValueError:
        raise LLMGymError(f"--window {text}: write START:END in seconds, such as 60:120.") from None


def parse(text: str) -> Any:
    """A setting: a number, true, false, none, the text itself, or several with commas between."""
    if text[:1] + text[-1:] in ("()", "[]"):  # as Python and TOML write several
        return tuple(parse(part.strip()) for part in text[1:-1].split(",") if part.strip())
    if "," in text:
        return tuple(parse(part.strip()) for part in text.split(","))
    return value_of(text)


def bar(quiet: bool, steps: bool = False) -> Progress:
    """A progress bar on standard error; ``steps`` adds a count such as 3/8."""
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


@contextmanager
def counter(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A bar that counts measurements; yields a function of how many are done, of how many, and a label."""
    with bar(quiet, steps=True) as shown:
        task = shown.add_task("starting", total=None)

        def progress(done: int, total: int, label: str) -> None:
            shown.update(task, completed=done, total=total, description=label)

        yield progress


def print_json(value: Any) -> None:
    """Print JSON."""
    from llmgym.core.files import to_json

    typer.echo(to_json(value))


def show(*parts: Table | str) -> None:
    """Print tables and lines of text; tables fit the terminal, and have whole lines where there is none."""
    for part in parts:
        if isinstance(part, str):
            console.print(part, markup=False, highlight=False, soft_wrap=True)
        elif console.is_terminal:
            console.print(part)
        else:
            typer.echo(part.to_text() + "\n")


def told(paths: Iterable[Path], raw: Path | None = None) -> str:
    """What a command wrote, as its last line."""
    return f"Wrote {', '.join(map(str, paths))}" + (f"; raw numbers in {raw}." if raw else ".")
