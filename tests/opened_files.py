"""Whether files that commands wrote open, and hold what their formats allow: CSV, Markdown, HTML, SVG."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from html_pages import Page

from llmgym.core.text import HIDDEN
from llmgym.reporting.model_card import END, MEASURED
from llmgym.scenario import toml_reader, toml_writer
from llmgym.scenario.toml_tables import load_batch_time

ESCAPED = re.compile(r"\\[!-/:-@\[-`{-~]")
"""What Markdown reads as one character."""

ELEMENTS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "figure", "figcaption", "div",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "pre", "code", "strong", "br",
    "svg", "defs", "g", "path", "use", "clippath", "rect", "image",
}  # fmt: skip
"""All that a report is made of."""


def no_hidden(text: str) -> None:
    """Nothing that a reader does not see, but line ends."""
    assert not {c for c in text if unicodedata.category(c) in HIDDEN} - {"\n"}


def opens_csv(path: Path) -> None:
    rows = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
    assert {len(row) for row in rows} == {len(rows[0])}, path
    for cell in (cell for row in rows for cell in row):
        if cell.lstrip()[:1] in tuple("=+-@") and cell.strip():
            float(cell)


def opens_markdown(path: Path) -> None:
    text = path.read_text()
    no_hidden(text)
    wide = None
    for line in text.split("\n"):
        if not line.startswith("|"):
            wide = None
            continue
        count = ESCAPED.sub("", line).count("|")
        assert count == (wide or count), line
        wide = count
    fenced = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    for mark in (MEASURED, END):  # comments of a model card
        fenced = fenced.replace(mark, "")
    outside = re.sub(r"(`+).+?\1", "", ESCAPED.sub("", fenced))
    assert set(re.findall(r"<(/?[a-zA-Z!?]\w*)", outside)) <= {
        "br",
        "span",
        "/span",
        "code",
        "/code",
    }


def opens_html(path: Path) -> None:
    text = path.read_text()
    no_hidden(text)
    page = Page(text)
    assert {tag.lower() for tag in page.tags} <= ELEMENTS, set(page.tags) - ELEMENTS
    assert all(reference.startswith("#") for reference in page.references)


def opens_svg(path: Path) -> None:
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(path.read_bytes()).iter()}
    assert not {"script", "foreignObject", "a"} & tags


def opens_toml(path: Path) -> None:
    if path.name == "batch_time.toml":
        assert load_batch_time(path).ms(1) > 0
        return
    scenario = toml_reader.load(path)
    assert toml_reader.loads(toml_writer.dumps(scenario)) == scenario


def opens_npz(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        assert all(array.dtype != object for array in arrays.values())


OPENS: dict[str, Callable[[Path], object]] = {
    ".csv": opens_csv,
    ".md": opens_markdown,
    ".html": opens_html,
    ".svg": opens_svg,
    ".png": plt.imread,
    ".pdf": lambda path: path.read_bytes().index(b"%PDF-"),
    ".json": lambda path: json.loads(path.read_text()),
    ".toml": opens_toml,
    ".npz": opens_npz,
}


def check(folder: Path) -> set[str]:
    """Open all files of a folder; the formats that were there."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in found:
        OPENS[path.suffix](path)
    return {path.suffix for path in found}
