"""Shared by the tools that write shipped scenarios: their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(doc: str | None, holds: str, given: list[str] | None) -> tuple[Path, Path]:
    """The folder to read and the folder to write to; ``holds`` says in the help what the first contains."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"folder that holds {holds}")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: the shipped scenarios)"
    )
    options = parser.parse_args(given)
    return options.folder, options.out or Path(__file__).parents[1] / "llmgym" / "scenario" / "data"
