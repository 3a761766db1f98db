"""A report that a reader can open offline: one HTML file with its pictures, tables and configuration."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from string import Template

import matplotlib.pyplot as plt

from llmgym.core.pictures import bytes_of
from llmgym.core.text import visible
from llmgym.reporting.table import Table

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
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; } .note { font-size: .85rem; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
tr.head td { background: #f2f5f8; font-weight: 600; }
.good { color: #00694b; } .bad { color: #b3261e; font-weight: 700; }
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


def escape(text: str) -> str:
    """Text as HTML, with an escape for what no reader sees and no file may hold."""
    return html.escape(visible(text))


@dataclass
class Page:
    """A report under construction; every text is escaped."""

    title: str
    summary: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str, note: str = "") -> None:
        """A section's title, with a note below it."""
        self.parts.append(f"<h2>{escape(text)}</h2>" + (f"\n<p>{escape(note)}</p>" if note else ""))

    def table(self, table: Table) -> None:
        """A table with its title and notes."""
        self.parts.append(table.to_html())

    def picture(self, svg: str, name: str, caption: str) -> None:
        """A figure, drawn into the page itself.

        Args:
            svg: an ``svg`` element, such as ``inline_svg`` makes.
            name: becomes the element's id, ``figure-NAME``; unique in the page.
            caption: stands below, and is what screen readers say.
        """
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


def inline_svg(figure: plt.Figure, prefix: str) -> str:
    """A figure as an SVG element; its ids begin with ``prefix``, as a page may hold several."""
    text = bytes_of(figure, "svg", prefix).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        text = text.replace(before, f"{before}{prefix}-")
    return text
