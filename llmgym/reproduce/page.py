"""The report of a reproduction: pictures as files, the table as CSV, and all of it as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmgym.core.files import to_json, write
from llmgym.core.reading import as_written
from llmgym.reporting.benchmark_report import save_picture
from llmgym.reporting.html import Page, inline_svg
from llmgym.reporting.table import Column, Table, csv_text
from llmgym.reproduce.run import Result, interval, text, verdict_cell

CHECKS = (
    Column("figure", text=True),
    Column("published or derived", text),
    Column("measured", text),
    Column("interval"),
    Column("rule", text=True),
    Column("verdict", text=True),
)
ITEMS = (
    *(Column(name, text=True) for name in ("item", "what", "source", "verdict")),
    Column("seconds", ".1f"),
    Column("CPU seconds", ".1f"),
)


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A record for each check: the content of ``results.csv``."""
    return [
        {"item": result.item.name, "seconds": result.seconds, "cpu_seconds": result.cpu_seconds}
        | {k: getattr(check, k) for k in
           ("what", "expected", "measured", "low", "high", "rule", "verdict")}
        for result in results
        for check in result.checks
    ]  # fmt: skip


def publish(results: Sequence[Result], config: dict[str, Any], out: Path) -> list[Path]:
    """Write report.html, results.csv, results.json and the pictures; their paths in this order.

    Args:
        results: the items in the order of the report.
        config: what they have in common, of ``llmgym.reproduce.run.config``.
        out: the folder, made where it does not exist.

    Raises:
        LLMGymError: a file cannot be written.
    """
    paths = [out / name for name in ("report.html", "results.csv", "results.json")]
    page = _page(results, config)
    for result in results:
        page.heading(f"{result.item.name}: {result.item.title}", _told(result))
        page.table(Table(CHECKS, tuple(_row(check) for check in result.checks)))
        for picture in result.item.pictures if result.data else ():
            with as_written(out / "raw"):
                figure = picture.draw(result.data)
            page.picture(inline_svg(figure, picture.name), picture.name, picture.caption)
            files = [out / f"{picture.name}.{kind}" for kind in ("png", "svg")]
            save_picture(figure, files)
            paths += files
    page.heading("Configuration")
    page.listing(to_json(config))
    write(paths[0], page.html())
    write(paths[1], csv_text(rows(results)))
    write(paths[2], to_json({"config": config, "items": [r.record() for r in results]}))
    return paths


def _page(results: Sequence[Result], config: dict[str, Any]) -> Page:
    """The head of the report: how many pass, and a line for each item."""
    count = {v: sum(r.verdict == v for r in results) for v in ("pass", "fail", "skipped")}
    seconds, cpu = (sum(getattr(r, k) for r in results) for k in ("seconds", "cpu_seconds"))
    page = Page(
        "llmgym: published results, shown again",
        f"{count['pass']} items pass, {count['fail']} fail, {count['skipped']} were skipped. "
        f"A {config['reproduce']} run with seed {config['seed']} and llmgym "
        f"{config['versions']['llmgym']}: {seconds:.0f} s, {cpu:.0f} s of processor time, "
        "compilation included.",
    )
    lines = tuple(
        (
            r.item.name,
            r.item.title,
            r.item.source,
            verdict_cell(r.verdict),
            r.seconds,
            r.cpu_seconds,
        )
        for r in results
    )
    page.table(Table(ITEMS, lines))
    return page


def _told(result: Result) -> str:
    return f"{result.item.source}. {result.seconds:.1f} s, {result.cpu_seconds:.1f} s of processor time."


def _row(check: Any) -> tuple[Any, ...]:
    verdict = verdict_cell(check.verdict)
    return (check.what, check.expected, check.measured, interval(check), check.rule, verdict)
