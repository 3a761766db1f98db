"""Text from outside on its way to a terminal, a page or a picture: it reads as it is, whatever it holds."""

from __future__ import annotations

import unicodedata
from functools import cache

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are not seen: controls, marks of direction, lone surrogates, line separators."""

MOST_IN_A_PICTURE = 80
"""Characters of a name in a picture; the rest of a longer one is cut, as it would push out all else."""


def visible(text: str) -> str:
    """The text with an escape (backslash, x1b) for every character that is not seen, but line ends.

    A name may hold what moves the cursor of a terminal, turns the direction of writing or ends an XML file.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in HIDDEN else escaped(c) for c in text
    )


def one_line(text: str) -> str:
    """The same on one line: line ends are escaped too."""
    return visible(text).replace("\n", "\\n")


def escaped(character: str) -> str:
    """A character as Python writes it inside quotes."""
    return character.encode("unicode_escape").decode()


def drawable(text: str) -> str:
    """The text on one line, with an escape for what the fonts of pictures lack; they would draw a box."""
    seen = one_line(text)
    if seen.isascii():
        return seen
    from matplotlib.font_manager import FontProperties

    families = tuple(FontProperties().get_family())
    return "".join(c if c.isascii() or _has_glyph(c, families) else escaped(c) for c in seen)


@cache
def _has_glyph(character: str, families: tuple[str, ...]) -> bool:
    """Whether Matplotlib finds a character in one of these families, plain and bold."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    def has(family: str, weight: str) -> bool:
        font = get_font(findfont(FontProperties(family=[family], weight=weight)))
        return bool(font.get_char_index(ord(character)))

    return all(any(has(family, w) for family in families) for w in ("normal", "bold"))


def drawn(text: str) -> str:
    """Text that Matplotlib draws as it is: dollar signs begin no formula there; long texts are cut."""
    seen = drawable(text)
    if len(seen) > MOST_IN_A_PICTURE:
        seen = seen[: MOST_IN_A_PICTURE - 1] + "…"
    return seen.replace("$", r"\$")
