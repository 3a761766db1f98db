"""Text from outside on its way to a terminal, a page or a picture: it reads as it is, whatever it holds."""

from __future__ import annotations

import unicodedata

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


def drawn(text: str) -> str:
    """Text that Matplotlib draws as it is: dollar signs begin no formula there; long texts are cut."""
    seen = one_line(text)
    if len(seen) > MOST_IN_A_PICTURE:
        seen = seen[: MOST_IN_A_PICTURE - 1] + "…"
    return seen.replace("$", r"\$")
