"""Running items: resumable measurements, and verdicts and tables from what they left behind."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from llmgym.core.reading import as_written
from llmgym.evaluation.benchmark import VERSIONED, Progress, Task, measure, read_result, slug
from llmgym.reporting.table import Cell, Column, Emphasis, Section, Table
from llmgym.reproduce.items import FAIL, Check, Data, Effort, Item, verdict_of

LOOKS: dict[str, Emphasis] = {"pass": "good", "fail": "bad", "skipped": ""}


@dataclass(frozen=True)
class Result:
    """An item that was run.

    Attributes:
        item: what it is.
        data: its measurements by part.
        checks: every figure beside the one that was measured.
        seconds, cpu_seconds: of all parts, compilation included; CPU time is summed over cores.
    """

    item: Item
    data: Data
    checks: list[Check]
    seconds: float
    cpu_seconds: float

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"fail"`` or ``"skipped"``."""
        return verdict_of(self.checks)

    def record(self) -> dict[str, Any]:
        """The result without its measurements, as JSON."""
        return {
            "item": self.item.name,
            "title": self.item.title,
            "source": self.item.source,
            "verdict": self.verdict,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "checks": [asdict(check) for check in self.checks],
        }


def config(effort: Effort) -> dict[str, Any]:
    """What all items of a result folder have in common."""
    return {
        "reproduce": "quick" if effort.quick else "full",
        "seed": effort.seed,
        "versions": {name: metadata.version(name) for name in VERSIONED},
        "python": platform.python_version(),
    }


def run(
    items: Sequence[Item],
    effort: Effort,
    out: Path,
    progress: Progress | None = None,
    jobs: int = 1,
) -> list[Result]:
    """Measure what is not in the result folder yet, and judge; one result for each item, in their order.

    Args:
        items: what to run.
        effort: how much is simulated.
        out: the result folder.
        progress: called with the parts done, the parts in all and the name of one.
        jobs: parts that run in parallel, each in a process of its own.

    Raises:
        LLMGymError: ``out`` holds a run of another length, seed or version, or cannot be written.
    """
    parts = {item.name: item.parts(effort) for item in items}
    todo = [
        Task(
            file_name(name, part), f"{name} {part}".strip(), partial(_timed, several[part], n == 0)
        )
        for name, several in parts.items()
        for n, part in enumerate(several)
    ]
    found = measure(config(effort), todo, out, progress, jobs)
    return [
        _result(item, {part: found[file_name(item.name, part)] for part in parts[item.name]})
        for item in items
    ]


def file_name(item: str, part: str) -> str:
    """The raw file of a part, without its ending."""
    return slug(f"{item}.{part}" if part else item)


def _timed(part: Callable[[], Any], first: bool) -> dict[str, Any]:
    """The measurement with its costs. The first of an item drops what was compiled before, to free memory."""
    if first:
        jax.clear_caches()
    clock, cpu = time.perf_counter(), time.process_time()
    data = part()
    return {
        "data": data,
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
    }


def _result(item: Item, raw: dict[str, Any]) -> Result:
    with as_written(f"raw of {item.name}"):
        data = {part: found["data"] for part, found in raw.items()}
        seconds, cpu = (sum(f[k] for f in raw.values()) for k in ("seconds", "cpu_seconds"))
        return Result(item, data, item.judge(data), float(seconds), float(cpu))


def failed(results: Sequence[Result]) -> bool:
    """Whether any item fails."""
    return any(result.verdict == FAIL for result in results)


def text(value: float | str) -> str:
    """A figure with the digits that matter."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.6g}" if abs(value) >= 0.001 or value == 0 else f"{value:.2g}"


def interval(check: Check) -> str:
    """The interval of a check in brackets; empty where there is none."""
    if check.low is None or check.high is None:
        return ""
    return f"[{check.low:.4g}, {check.high:.4g}]"


def verdict_cell(verdict: str) -> Cell:
    """A verdict that stands out where it is bad news."""
    return Cell(verdict, verdict.upper() if verdict == FAIL else None, emphasis=LOOKS[verdict])


def table(results: Sequence[Result]) -> Table:
    """The checks of each item: published or derived figure, measured figure with interval, verdict."""
    rows: list[Any] = []
    for result in results:
        rows.append(Section(f"{result.item.name}: {result.item.title}, {result.seconds:.1f} s"))
        for check in result.checks:
            long = max(len(str(check.expected)), len(str(check.measured))) > 24
            expected, measured = text(check.expected), text(check.measured)
            rows.append(
                (
                    check.what,
                    "batches" if long else expected,
                    _same(expected, measured) if long else f"{measured} {interval(check)}".strip(),
                    verdict_cell(check.verdict),
                )
            )
    return Table(
        (
            Column("figure", text=True),
            Column("expected"),
            Column("measured [interval]"),
            Column("verdict"),
        ),
        tuple(rows),
        "Published results, shown again",
        ("Seconds of an item: by the clock on the wall, compilation included.",),
    )


def _same(expected: str, measured: str) -> str:
    return "the same" if expected == measured else "others"


def read(out: Path, items: Sequence[Item], effort: Effort) -> list[Result]:
    """The items that a result folder holds in full, judged again from its files.

    Args:
        out: the result folder.
        items: those to look for.
        effort: that of the run: it decides which parts an item has.

    Raises:
        LLMGymError: a file is damaged.
    """
    results = []
    for item in items:
        parts = item.parts(effort)
        paths = {part: out / "raw" / f"{file_name(item.name, part)}.json" for part in parts}
        if all(path.exists() for path in paths.values()):
            results.append(_result(item, {p: read_result(path) for p, path in paths.items()}))
    return results
