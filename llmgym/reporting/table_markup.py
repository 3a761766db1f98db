"""Tables as Markdown and as HTML. Every text is escaped: it reads as it is, whatever it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from llmgym.core.text import visible
from llmgym.reporting.table_parts import Column, Shown

Rows = Sequence[Sequence[Shown]]


def markdown(columns: Sequence[Column], rows: Rows) -> str:
    """A table in GitHub's Markdown, numbers to the right."""
    lines = [
        _line(markdown_text(column.header) for column in columns),
        "|" + "".join("---|" if column.text else "---:|" for column in columns),
    ]
    for row in rows:
        cells = [_markdown_cell(cell) for cell in row]
        lines.append(_line(cells + [""] * (len(columns) - len(cells))))
    return "\n".join(lines)


def html(columns: Sequence[Column], rows: Rows, title: str) -> str:
    """A ``table`` element inside a ``div``; the style sheet of the page says what its classes look like.

    Args:
        columns: their headings, and whether they hold texts or numbers.
        rows: cells; a row of fewer than there are columns is a section's title.
        title: the caption; none where it is empty.
    """
    head = "".join(
        _element("th", escape(column.header), _kind(column), 'scope="col"') for column in columns
    )
    body = "\n".join(_html_row(columns, row) for row in rows)
    caption = f"<caption>{escape(title)}</caption>\n" if title else ""
    return (
        f'<div class="wide"><table>\n{caption}<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, inside a table and outside."""
    text = visible(text)
    text = re.sub(r"\\(?=[!-/:-@\[-`{-~])", r"\\\\", text)  # a backslash before punctuation
    # Marks of cells, emphasis, code and deletion; underscores inside words and brackets that no link
    # can follow mean nothing.
    text = re.sub(r"[|*`~]|(?<!\w)_|_(?!\w)|\[(?=.*\][(\[:])", r"\\\g<0>", text, flags=re.DOTALL)
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text)
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text).replace("\n", "<br>")
    return text.replace("$", "<span>$</span>")  # GitHub takes dollars for formulas


def markdown_code(text: str) -> str:
    """A name in code, inside a table and outside."""
    text = visible(text).replace("\n", " ")
    if re.search(r"\\\||`.*`|^`|`$", text):
        # A backslash of its own before the mark of cells would undo ours; a fence would end early.
        return f"<code>{''.join(map(_entity, text))}</code>"
    fence = "``" if "`" in text else "`"
    return fence + text.replace("|", "\\|") + fence


def html_note(text: str) -> str:
    """A paragraph below a table."""
    return f'<p class="note">{escape(text)}</p>'


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Shown) -> str:
    text = markdown_code(cell.text) if cell.code and cell.text else markdown_text(cell.text)
    if cell.link:
        text = f"[{text}]({cell.link})"
    return f"**{text}**" if text and cell.emphasis in ("strong", "bad") else text


def _entity(character: str) -> str:
    """A character that neither Markdown nor HTML reads as a mark."""
    return character if character.isalnum() else f"&#{ord(character)};"


def _html_row(columns: Sequence[Column], row: Sequence[Shown]) -> str:
    if len(row) < len(columns):
        title = escape(row[0].text)
        return f'<tr class="head"><td colspan="{len(columns)}">{title}</td></tr>'
    return f"<tr>{''.join(map(_html_cell, columns, row))}</tr>"


def _html_cell(column: Column, cell: Shown) -> str:
    text = escape(cell.text).replace("\n", "<br>")
    if cell.code and cell.text:
        text = f"<code>{text}</code>"
    if cell.link:
        text = f'<a href="{escape(cell.link)}">{text}</a>'
    if cell.emphasis == "strong":
        text = f"<strong>{text}</strong>"
    colour = cell.emphasis if cell.emphasis in ("good", "bad") else ""
    return _element("td", text, f"{_kind(column)} {colour}".strip())


def _kind(column: Column) -> str:
    return "" if column.text else "number"


def _element(tag: str, inner: str, kind: str, more: str = "") -> str:
    given = "".join(f" {x}" for x in (more, f'class="{kind}"' if kind else "") if x)
    return f"<{tag}{given}>{inner}</{tag}>"
