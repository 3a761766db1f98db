"""What commands print: tables and lines fitted to a terminal, or plain text with whole lines in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from llmgym.core.errors import LLMGymError
from llmgym.core.text import one_line, visible
from llmgym.reporting.table import Table

# Names come from outside: nothing in a text is markup.
console = Console(markup=False, emoji=False, highlight=False)
messages = Console(stderr=True, markup=False, emoji=False, highlight=False)

READER_GONE = 141
"""Exit code where nobody reads the output any more, as that of other programs before ``| head``."""


def print_json(value: Any) -> None:
    """Print JSON."""
    from llmgym.core.files import to_json

    say(to_json(value))


def show(*parts: Table | str) -> None:
    """Print tables and lines of text; tables fit the terminal, and have whole lines where there is none."""
    for part in parts:
        if isinstance(part, str):
            say(visible(part))
        elif console.is_terminal:
            console.print(part)
        else:
            say(part.to_text() + "\n")


def say(text: str) -> None:
    """Print a text as it is.

    Where the reader of a pipe has gone, as ``head`` does, the command ends without a word.
    """
    if sys.stdout is None:  # it was closed before Python started
        return
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _discard()
        raise typer.Exit(READER_GONE) from None
    except OSError as error:
        _discard()
        raise LLMGymError(f"Cannot write the output: {error.strerror}.") from None


def complain(text: str) -> None:
    """Print one line on standard error, red on a terminal."""
    messages.print(f"llmgym: {one_line(text)}", style="red", soft_wrap=True)


def told(paths: Iterable[Path], raw: Path | None = None) -> str:
    """What a command wrote, as its last line."""
    return f"Wrote {', '.join(map(str, paths))}" + (f"; raw numbers in {raw}." if raw else ".")


def any_character() -> None:
    """Let output show an escape for what its encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard() -> None:
    """Send further output nowhere, so that Python does not fail once more as it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        pass
