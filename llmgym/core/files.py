"""Writing results: whole files or none, and JSON that every reader takes."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.core.errors import LLMGymError


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


def write(path: Path, text: str | bytes) -> None:
    """Write a file whole or not at all. Raises LLMGymError where that is not possible."""
    data = text.encode() if isinstance(text, str) else text
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise LLMGymError(
            f"Cannot write {path}: {error.strerror}. Choose another --out folder."
        ) from error
