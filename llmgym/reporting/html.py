"""A report that a reader can open offline: one HTML file with its pictures, tables and configuration."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template

import matplotlib.pyplot as plt

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #444; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.head td { background: #f2f5f8; font-weight: 600; }
.pass { color: #00694b; } .fail { color: #b3261e; font-weight: 700; } .skipped { color: #666; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
</style>
</head>
<body>
<h1>$title</h1>
<p>$summary</p>
$sections
</body>
</html>
""")


@dataclass
class Page:
    """A report under construction; every text is escaped."""

    title: str
    summary: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str, note: str = "") -> None:
        """A section's title, and where it comes from."""
        self.parts.append(f"<h2>{escape(text)}</h2>" + (f"\n<p>{escape(note)}</p>" if note else ""))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; a row of one cell is a heading of its own, a cell of numbers stands to the right."""
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings)
        body = "\n".join(_row(row, len(headings)) for row in rows)
        self.parts.append(
            f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
            "</table></div>"
        )

    def picture(self, svg: str, name: str, caption: str) -> None:
        """A figure, drawn into the page itself."""
        told = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
        self.parts.append(
            f'<figure id="figure-{escape(name)}">\n{told}\n'
            f"<figcaption>{escape(caption)}</figcaption>\n</figure>"
        )

    def listing(self, text: str) -> None:
        """Text as it is, such as a configuration."""
        self.parts.append(f"<pre>{escape(text)}</pre>")

    def html(self) -> str:
        """The whole file."""
        return PAGE.substitute(
            title=escape(self.title), summary=escape(self.summary), sections="\n".join(self.parts)
        )


def _row(cells: Sequence[str], width: int) -> str:
    if len(cells) == 1:
        return f'<tr class="head"><td colspan="{width}">{escape(cells[0])}</td></tr>'
    return "<tr>" + "".join(_cell(cell) for cell in cells) + "</tr>"


def _cell(text: str) -> str:
    kind = text if text in ("pass", "fail", "skipped") else "number" if _is_number(text) else ""
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _is_number(text: str) -> bool:
    return bool(text) and all(c in "0123456789.,+-[] e%" for c in text)


def inline_svg(figure: plt.Figure, prefix: str) -> str:
    """A figure as an SVG element; its ids begin with ``prefix``, as a page may hold several."""
    data = io.StringIO()
    with plt.rc_context({"svg.hashsalt": prefix, "svg.fonttype": "path"}):
        figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{prefix}-")
    return text
