"""What a self-contained HTML page has to be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a page refers to, and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.figures: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open
        assert len(self.ids) == len(set(self.ids)), "an id is used twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        if tag == "figure":
            self.figures.append(found["id"].removeprefix("figure-"))
        links = ("href", "xlink:href", "src", "srcset", "data", "action", "poster")
        self.references += [found[name] for name in links if name in found]
        for value in found.values():
            self.references += re.findall(r"url\(\s*['\"]?([^'\")]+)", value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag


def check_self_contained(text: str, figures: set[str]) -> None:
    """Well-formed, nothing from outside, no script, every reference found, and all figures drawn."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert set(page.figures) == figures
    assert page.tags.count("svg") == len(figures)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert "@import" not in text
    for reference in page.references:
        assert reference.startswith("#"), f"{reference} is outside the page"
        assert reference[1:] in page.ids, f"nothing has the id {reference}"
    assert "url(http" not in text
