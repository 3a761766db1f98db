"""Any text as a name: no terminal, page or picture reads marks in it, and none of its characters is lost."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from rich.cells import cell_len
from rich.console import Console

from llmgym.core.foreign_names import ELSEWHERE
from llmgym.core.text import HIDDEN, drawable, drawn, one_line, visible
from llmgym.reporting.charts import handles
from llmgym.reporting.html import Page, inline_svg
from llmgym.reporting.table import Column, Estimate, Table

MARKS = st.sampled_from(
    ["[/red]", "[bold]", "$", "\\$", r"\foo", "<b>", "</td>", "<!--", "-->", "]]>", "&amp;", "|", "`", "``",
     "*", "__", "~", "[a](b)", "=1+1", "@x", "\x1b[31m", "\r\n", "\n", "\t", "\0", "\u202e", "\u2028",
     "\ud800", ":smile:", "中文", "é", "a", " ", "${title}", "{0}", "%s", "../"]
)  # fmt: skip
NAMES = st.one_of(
    st.text(max_size=60),
    st.lists(MARKS, max_size=8).map("".join),
    st.text("a", min_size=300, max_size=400),
)


class Texts(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@given(NAMES)
def test_visible_text_has_nothing_hidden(name: str) -> None:
    import unicodedata

    seen = one_line(name)
    assert not [c for c in seen if unicodedata.category(c) in HIDDEN]
    seen.encode()  # no lone surrogate is left
    assert visible(name).replace("\n", "\\n") == seen


@given(NAMES, st.sampled_from([20, 40, 80, 120]))
def test_a_table_fits_every_terminal_and_loses_nothing(name: str, width: int) -> None:
    columns = (Column("name", text=True), Column("figure"), Column("verdict", text=True))
    table = Table(columns, ((name, 12.5, "pass"), ("b", name, name)), name, (name,))
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(cell_len, text.splitlines()), default=0) <= width
    found = "".join(text.split())
    for character in set(visible(name).replace("\t", "")) - {" ", "\n"}:
        if not character.isspace():
            # In the title, the note and three cells.
            assert found.count(character) >= 5 * visible(name).count(character)
    assert "12.5" in found and "pass" in found
    assert "\x1b" not in table.to_text()


@given(NAMES)
def test_a_page_shows_a_name_and_opens(name: str) -> None:
    name = f"x{name}"
    plain, named = (_page(text) for text in ("x", name))
    assert Texts(named).tags == Texts(plain).tags or "\n" in name  # but for its line breaks
    seen = "".join(visible(name).split())
    assert "".join(Texts(named).text.split()).count(seen) >= 4
    named.encode()


def _page(name: str) -> str:
    page = Page(name, name)
    page.heading(name, name)
    page.table(Table((Column("x", text=True),), ((name,),)))
    page.listing(name)
    return page.html()


@given(NAMES, st.booleans())
def test_a_row_of_markdown_stays_a_row(name: str, code: bool) -> None:
    table = Table((Column("x", text=True, code=code), Column("y")), ((name, 1),))
    lines = table.to_markdown().split("\n")
    assert len(lines) == 3 and lines[2].endswith(" | 1 |")
    assert "\r" not in lines[2] and "<script" not in lines[2]


@given(NAMES)
def test_matplotlib_reads_no_formula_in_a_name(name: str) -> None:
    shown, is_formula = Text(0, 0, drawn(name))._preprocess_math(drawn(name))
    assert is_formula is False
    if len(drawable(name)) <= 80:
        assert shown == drawable(name)


@pytest.mark.filterwarnings("error:Glyph")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NAMES)
def test_a_picture_of_any_name_is_drawn(name: str) -> None:
    figure, axes = plt.subplots(figsize=(4, 3))
    axes.set_yticks([0], [drawn(name)])
    figure.legend(handles=handles([name, "sarathi"], lambda text: text))
    figure.savefig(io.BytesIO(), format="png")
    ET.fromstring(inline_svg(figure, "a"))
    plt.close(figure)


def test_an_estimate_without_an_interval_has_no_nan() -> None:
    nan = float("nan")
    column = Column("x", ".1f", " %")
    assert column.shown(Estimate(1.0, nan, nan)) == "1.0 %"
    assert column.shown(Estimate(nan, nan, nan)) == "-"
    assert column.shown(Estimate(1.0, 0.5, 2.0)) == "1.0 [0.5, 2.0] %"


def test_names_elsewhere_lead_somewhere() -> None:
    assert all(name == name.lower() and told for name, told in ELSEWHERE.items())


@pytest.mark.filterwarnings("error:Glyph")
def test_what_a_font_lacks_is_escaped_in_pictures() -> None:
    assert drawable("é 👩\n") == "é \\U0001f469\\n"
    assert drawn("中$") == "\\u4e2d\\$"
