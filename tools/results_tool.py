"""Shared by the tools that write result pages: rows that are measured once, and Markdown tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmgym.core.files import to_json, write

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def read(path: Path) -> dict[str, Any]:
    """The rows of a file; none if the file does not exist."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def row(path: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row ``name`` of a file: as it stands there, or measured now and stored."""
    kept = read(path)
    if name not in kept:
        began = time.perf_counter()
        made = make()
        kept = read(path)  # another process may have added other rows meanwhile
        kept[name] = made | {"took_s": round(time.perf_counter() - began, 1)}
        write(path, to_json(kept))
        print(f"{path.name}: {name}", flush=True)
    return dict(kept[name])


def table(header: str, rows: list[list[str]]) -> list[str]:
    """A Markdown table; ``header`` has | between its columns."""
    return [f"| {header} |", "|" + "---|" * len(rows[0])] + [f"| {' | '.join(r)} |" for r in rows]
