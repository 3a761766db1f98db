"""One table in all its forms: what is written can be read back, whatever the texts hold."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from llmgym.core.files import csv_cell
from llmgym.reporting.table import Cell, Column, Estimate, Section, Table, percent

TABLE = Table(
    (
        Column("policy", text=True, code=True),
        Column("requests/s", ".2f", best="high", key="rate"),
        Column("of the limit", ".1f", " %", 100, key="share"),
        Column("note", text=True),
    ),
    (
        Section("load 0.7"),
        ("sarathi", Estimate(13.871, 13.85, 13.9), 0.9, "fine"),
        ("a|b", Estimate(12, 11, 13), None, Cell(1.5, note=" (3)", emphasis="bad")),
        Section("load 0.9"),
        ("sarathi", 4.0, np.nan, Cell("x", link="page.md")),
        ("a|b", 4.0, 0.25, Cell(3, text="three")),
    ),
    "A [red]title[/red]",
    ("A note.",),
)


def terminal(table: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_text() -> None:
    assert TABLE.to_text().splitlines() == [
        "A [red]title[/red]",
        "policy             requests/s  of the limit  note",
        "-------  --------------------  ------------  -------",
        "load 0.7",
        "sarathi  13.87 [13.85, 13.90]        90.0 %  fine",
        "a|b      12.00 [11.00, 13.00]             -  1.5 (3)",
        "load 0.9",
        "sarathi                  4.00             -  x",
        "a|b                      4.00        25.0 %  three",
        "A note.",
    ]


def test_markdown() -> None:
    assert TABLE.to_markdown().splitlines() == [
        "**A [red]title[/red]**",
        "",
        "| policy | requests/s | of the limit | note |",
        "|---|---:|---:|---|",
        "| **load 0.7** |  |  |  |",
        "| `sarathi` | **13.87 [13.85, 13.90]** | 90.0 % | fine |",
        "| `a\\|b` | 12.00 [11.00, 13.00] | - | **1.5 (3)** |",
        "| **load 0.9** |  |  |  |",
        "| `sarathi` | **4.00** | - | [x](page.md) |",
        "| `a\\|b` | **4.00** | 25.0 % | three |",
        "",
        "A note.",
    ]


def test_csv_and_records_hold_the_values_in_full() -> None:
    records = TABLE.records()
    assert records[0] == {
        "section": "load 0.7", "policy": "sarathi", "rate": 13.871, "rate_low": 13.85,
        "rate_high": 13.9, "share": 0.9, "note": "fine",
    }  # fmt: skip
    assert records[2]["share"] is None and records[2]["rate_low"] is None
    assert (records[1]["note"], records[3]["note"]) == (1.5, 3)
    rows = list(csv.DictReader(io.StringIO(TABLE.to_csv())))
    assert [row["rate"] for row in rows] == ["13.871", "12", "4.0", "4.0"]
    assert [row["share"] for row in rows] == ["0.9", "", "", "0.25"]


class Cells(HTMLParser):
    """The texts of the cells of a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def test_html() -> None:
    text = TABLE.to_html()
    rows = Cells(text).rows
    assert [len(row) for row in rows] == [4, 1, 4, 4, 1, 4, 4]
    assert rows[3][:3] == ["a|b", "12.00 [11.00, 13.00]", "-"]
    assert '<td class="number"><strong>13.87 [13.85, 13.90]</strong></td>' in text
    assert '<td class="bad">1.5 (3)</td>' in text and '<a href="page.md">x</a>' in text
    assert "<caption>A [red]title[/red]</caption>" in text


# No control characters and line ends, which no cell has; and nothing of double width.
TEXT = st.text(st.sampled_from("ab1 |*_`[]()<>&\\#~!\"'="), min_size=1, max_size=12)


@given(TEXT)
def test_every_text_survives_html_csv_and_the_terminal(text: str) -> None:
    table = Table((Column("x", text=True), Column("y")), ((text, 1), (Cell(text), 2)))
    assert Cells(table.to_html()).rows[1][0] == text
    assert next(csv.DictReader(io.StringIO(table.to_csv())))["x"] == csv_cell(text)
    assert text.rstrip() in table.to_text()
    assert text.strip() in terminal(table, 80)


@given(TEXT, st.booleans())
def test_no_text_breaks_a_row_of_markdown(text: str, code: bool) -> None:
    table = Table((Column("x", text=True, code=code), Column("y")), ((text, 1),))
    row = table.to_markdown().splitlines()[2]
    cells = re.split(r"(?<!\\)\|", row.replace("\\\\", ""))
    assert len(cells) == 4 and cells[2] == " 1 "


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("*a* `b`", r"\*a\* \`b\`"),
        ("snake_case", "snake_case"),
        ("_a_", r"\_a\_"),
        ("[1, 2]", "[1, 2]"),
        ("[a](b)", r"\[a](b)"),
        ("<b> 1 < 2", "&lt;b> 1 < 2"),
        ("&amp; a & b", "&amp;amp; a & b"),
        ("two\nlines", "two<br>lines"),
        (r"a\*", r"a\\\*"),
    ],
)
def test_markdown_shows_texts_as_they_are(text: str, shown: str) -> None:
    row = Table((Column("x", text=True),), ((text,),)).to_markdown().splitlines()[2]
    assert row == f"| {shown} |"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_it_fits_the_terminal_and_loses_nothing(width: int) -> None:
    names = [f"column {n}" for n in range(12)]
    long = "a sentence that is much longer than any terminal of this test is wide, so it wraps"
    table = Table(
        (Column("name", text=True), *map(Column, names), Column("what", text=True)),
        tuple((f"row-{r}", *(1000 * r + n for n in range(12)), long) for r in (1, 2)),
    )
    text = terminal(table, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for value in [1000 * r + n for r in (1, 2) for n in range(12)]:
        assert len(re.findall(rf"\b{value}\b", text)) == 1
    assert "…" not in text
    assert all(text.count(word) >= 2 for word in long.split())


def test_markup_of_rich_is_text() -> None:
    assert "A [red]title[/red]" in terminal(TABLE)


def test_best_values_are_bold_in_colour_terminals() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system="standard")
    console.print(TABLE)
    assert "\x1b[1m13.87 [13.85, 13.90]\x1b[0m" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_row_has_a_value_for_every_column() -> None:
    with pytest.raises(ValueError, match="1 values for 2 columns"):
        Table((Column("a"), Column("b")), ((1,),))


def test_numbers() -> None:
    column = Column("x", ",.1f", " ms", 1000)
    assert column.shown(1.2345) == "1,234.5 ms"
    assert column.shown(Estimate(1, 0.5, 1.5)) == "1,000.0 [500.0, 1,500.0] ms"
    assert column.shown("none") == "none"
    assert Column("x", missing="").shown(None) == ""
    assert Column("x", lambda x: f"<{x}>").shown(3) == "<3>"
    assert percent(0.123) == "12.3 %" and percent(None) == percent(float("nan")) == "-"
