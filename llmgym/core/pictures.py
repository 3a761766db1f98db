"""Pictures as bytes that depend on what is drawn alone, also where several threads draw."""

from __future__ import annotations

import io
from threading import RLock
from typing import Any

UNDATED = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
"""Formats, and the metadata that each leaves out: the same picture gives the same file."""

_DRAWING = RLock()
"""Matplotlib's settings belong to the whole process: one thread at a time changes them."""


def bytes_of(figure: Any, kind: str, salt: str = "llmgym", dpi: float | None = None) -> bytes:
    """A figure as a file, without a date and with fixed ids.

    Args:
        figure: of Matplotlib.
        kind: a format of UNDATED.
        salt: what ids are made from; pictures on one page need different ones.
        dpi: dots per inch; None: those of the figure.
    """
    from matplotlib import rc_context

    data = io.BytesIO()
    with _DRAWING, rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(data, format=kind, dpi=dpi or "figure", metadata={UNDATED[kind]: None})
    return data.getvalue()
