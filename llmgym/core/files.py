"""Writing results: whole files or none, names that stay in their folder, JSON and CSV for every reader."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmgym.core.errors import LLMGymError
from llmgym.core.locks import lock

UMASK = os.umask(0o077)
"""Rights that new files of this process do not give; it can only be read by setting it."""
os.umask(UMASK)

PART = ".part-"
"""How the names of files begin that are being written."""

MOST_OF_A_NAME = 96
"""Characters of a name that go into the name of a file."""


def to_json(value: Any) -> str:
    """Sorted, indented JSON; NaN and infinities, which JSON lacks, become null."""
    return json.dumps(_plain(value), indent=1, sort_keys=True, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def slug(name: str) -> str:
    """A name as part of a file name: letters, digits and ``_.-`` alone, and another for every name.

    Where characters had to be replaced, or capitals would be the same to some file systems, a digest of
    the name follows.
    """
    kept = re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:MOST_OF_A_NAME]
    if kept == name and kept == kept.lower() and kept[:1] not in ("", "."):
        return kept
    found = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{kept.lstrip('.')}-{found}"


def write(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all. Raises LLMGymError where that is not possible."""
    # Names of files that are not UTF-8 have half characters, which no text file can hold.
    data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=PART)
        try:
            with os.fdopen(handle, "wb") as file:
                lock(handle)  # else it would be taken for one that a killed process left
                file.write(data)
            os.chmod(temporary, 0o666 & ~UMASK)  # as any other new file, which mkstemp's are not
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LLMGymError(f"Cannot write {path}: {reason}. Choose another --out folder.") from error


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV file: a text that a spreadsheet would compute gets an apostrophe before it.

    Numbers stay as they are, also those that are written as text.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("=", "+", "-", "@")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def csv_of(frame: pd.DataFrame, **settings: Any) -> str:
    """A table as CSV, its texts as ``csv_cell`` has them.

    Args:
        frame: the table; its index is left out.
        settings: of ``DataFrame.to_csv``.
    """
    texts = {
        name: _cells(frame[name]) for name in frame.columns if frame[name].dtype.kind not in "biuf"
    }
    return frame.assign(**texts).to_csv(index=False, **settings)


def _cells(column: Iterable[Any]) -> list[Any]:
    """The cells of a column, each different text looked at once."""
    known: dict[Any, Any] = {}
    return [known[x] if x in known else known.setdefault(x, csv_cell(x)) for x in column]
