"""Measured batch times: a table with a row for each batch, checked."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from llmgym.core import reading
from llmgym.core.errors import LLMGymError, shown
from llmgym.scenario.batch_time import Attention, BatchTime

NEEDED = ("tokens", "ms")
OPTIONAL = ("decode_context", "prefill_pairs")
COLUMNS = (*NEEDED, *OPTIONAL)

MOST_BYTES, MOST_COLUMNS = 2**24, 1000
"""Largest file of measurements that is read."""

LEAST_ROWS, LEAST_SIZES = 8, 3
"""Measurements, and different batch sizes among them, that a fit needs."""

RANGE = {
    "tokens": (1.0, 2.0**20),
    "ms": (1e-6, 1e9),
    "decode_context": (0.0, 1e12),
    "prefill_pairs": (0.0, 1e12),
}


def read_measurements(
    measurements: pd.DataFrame | str | os.PathLike[str],
) -> tuple[pd.DataFrame, str]:
    """The columns of COLUMNS as float64, 0 where attention was not measured, and the name of the source.

    Raises:
        LLMGymError: a file that is missing or not a table, a missing or repeated column, a row with a
            value that is not a number or out of range, or too few rows or batch sizes.
    """
    if isinstance(measurements, pd.DataFrame):
        frame, source = measurements, "measurements"
    elif isinstance(measurements, (str, os.PathLike)):
        frame, source = _read_csv(Path(measurements)), str(measurements)
    else:
        raise LLMGymError(f"Measurements are a DataFrame or a CSV file, got {shown(measurements)}.")
    names = [str(name).strip() for name in frame.columns]
    for name in COLUMNS:
        if name in NEEDED and name not in names:
            raise LLMGymError(
                f"{source}: column {name} is missing. Needed: {', '.join(NEEDED)}; "
                f"optional: {', '.join(OPTIONAL)}; found: {', '.join(names) or 'none'}."
            )
        if names.count(name) > 1:
            raise LLMGymError(f"{source}: there are several columns {name}; keep one.")
    data = pd.DataFrame(dict.fromkeys(COLUMNS, 0.0), index=range(len(frame)))
    for name in COLUMNS:
        if name in names:
            data[name] = _numbers(source, name, frame.iloc[:, names.index(name)])
    _check_enough(source, data)
    return data, source


def predict(model: BatchTime, data: pd.DataFrame) -> np.ndarray:
    """The times in ms that a model gives the measured batches."""
    attention = Attention(*(data[name].to_numpy() for name in OPTIONAL))
    return model.ms(data["tokens"].to_numpy(), attention)


def _read_csv(path: Path) -> pd.DataFrame:
    hint = f"Give a CSV file with the columns {', '.join(NEEDED)}."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            data = reading.read_bytes(path, "measurements", MOST_BYTES, hint)
            if data.count(b",", 0, data.find(b"\n")) > MOST_COLUMNS:
                raise ValueError(f"its header has more than {MOST_COLUMNS} columns")
            return pd.read_csv(io.BytesIO(data), index_col=False, low_memory=False)
    except LLMGymError:
        raise
    except (ValueError, OverflowError, pd.errors.ParserWarning) as error:
        reason = str(error).strip().split("\n")[0]
        raise LLMGymError(f"Cannot read measurements {path}: {reason}. {hint}") from None


def _numbers(source: str, name: str, column: pd.Series) -> np.ndarray:
    """The column as float64; LLMGymError names the first bad row, counted from 1."""
    try:
        values = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
    except OverflowError:  # a whole number of hundreds of digits
        values = np.array([x if isinstance(x, float) else _float(x) for x in column])
    low, high = RANGE[name]
    good = (values >= low) & (values <= high)
    if name == "tokens":
        good &= values == np.floor(values)
    if not good.all():
        row = int(np.argmin(good))
        kind = "a whole number" if name == "tokens" else "a number"
        raise LLMGymError(
            f"{source}, row {row + 1}: {name} is {column.iloc[row]!s:.40}; "
            f"it must be {kind} from {low:g} to {high:g}."
        )
    return values


def _float(cell: object) -> float:
    """A cell as a float; NaN where it is none."""
    try:
        return float(str(cell))
    except ValueError:
        return np.nan


def _check_enough(source: str, data: pd.DataFrame) -> None:
    sizes = np.unique(data["tokens"])
    if len(data) < LEAST_ROWS:
        raise LLMGymError(
            f"{source} has {len(data)} rows; a fit needs at least {LEAST_ROWS} measured batches."
        )
    if len(sizes) == 1:
        raise LLMGymError(
            f"{source}: tokens is {sizes[0]:g} in every row; measure batches of different sizes."
        )
    if len(sizes) < LEAST_SIZES:
        raise LLMGymError(
            f"{source} has batches of {' and '.join(f'{s:g}' for s in sizes)} tokens alone; "
            f"a fit needs at least {LEAST_SIZES} different sizes."
        )
