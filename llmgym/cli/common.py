"""What the commands share: options, scenarios from options, folders of results, progress, output."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llmgym.cli.output import print_json, say, show, told
from llmgym.cli.progress import bar, busy, counter
from llmgym.core.errors import LLMGymError
from llmgym.core.folders import alone_in
from llmgym.evaluation.benchmark import slug
from llmgym.evaluation.policies import value_of

TEXTS = ("name", "description", "source", "batch_time", "router", "seq_limit", "first_token")
"""Settings of a scenario that are texts, also where they look like numbers or lists."""

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
        key = key.strip()
        changes[key] = value.strip() if key in TEXTS else parse(value.strip())
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


def results_folder(what: str, name: str) -> Path:
    """Where a command writes by default: a folder inside results, whatever the name holds.

    Args:
        what: the command's word for it, such as "benchmark".
        name: of the scenario or the trace.
    """
    return Path("results") / slug(f"{what}-{name}")


def repeated(context: typer.Context, what: str, repeat: Path, goes_with: tuple[str, ...]) -> Path:
    """Where the repetition of a result folder goes: --out, or a folder in results named after it.

    Args:
        context: of the command, which knows what was typed.
        what: the command, which begins the name of the folder.
        repeat: the result folder, or its config.json.
        goes_with: names of the parameters that may stand beside --repeat.

    Raises:
        LLMGymError: an option that the configuration of the folder overrules, or --out is that folder,
            where nothing would be repeated.
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        typed = source is not None and source.name == "COMMANDLINE"
        if typed and option.name not in ("repeat", *goes_with):
            raise LLMGymError(
                f"{option.opts[0]} does not go with --repeat, which takes every setting from "
                f"{repeat}: leave one of the two out."
            )
    folder = repeat.parent if repeat.name == "config.json" else repeat
    out: Path = context.params["out"] or results_folder(f"{what}-repeated", folder.resolve().name)
    if out.resolve() == folder.resolve():
        raise LLMGymError(
            f"{out} holds the results that --repeat names, so nothing would be run: give another --out."
        )
    return out


__all__ = [
    "Jobs",
    "Json",
    "Load",
    "Loads",
    "Out",
    "Rates",
    "ScenarioName",
    "Seed",
    "Set",
    "Window",
    "alone_in",
    "at_rates",
    "bar",
    "busy",
    "counter",
    "parse",
    "print_json",
    "read_replay",
    "repeated",
    "results_folder",
    "say",
    "scenario",
    "show",
    "told",
    "window_of",
]
