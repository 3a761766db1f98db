"""Calibration: batch-time models fitted to measured batches, judged and written as presets.

``llmgym measure-batch-time`` makes such a file; ``llmgym calibrate`` is the command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from llmgym.calibration.data import OPTIONAL, predict, read_measurements
from llmgym.calibration.fits import (
    TERMS,
    TILES,
    fit_affine,
    fit_hinge,
    fit_roofline,
    fit_staircase,
    fit_table,
    identifiable_terms,
)
from llmgym.calibration.picture import draw
from llmgym.calibration.result import Calibration, Fit
from llmgym.core.errors import check_number
from llmgym.scenario.batch_time import BatchTime, MeasuredTable

FOLDS, SEED = 5, 0
ALIKE = 1e-5
"""Errors below this share of the mean batch time count as none: constants are rounded to six digits."""

Fitter = Callable[[pd.DataFrame], BatchTime]


def calibrate(
    measurements: pd.DataFrame | str | os.PathLike[str], tile: int | None = None
) -> Calibration:
    """Fit every form of batch time to measured batches, and rank them.

    Columns: ``tokens`` and ``ms``, and where attention was measured ``decode_context`` and
    ``prefill_pairs`` as in ``Attention``; others are ignored. Fits minimise squared errors in ms.

    The order is by the error on left-out batch sizes. Forms whose squared errors there exceed those of
    the best by no more than a standard error are as good as it: the one with the fewest constants
    goes first (the rule of Breiman, Friedman, Olshen and Stone, 1984).

    Args:
        measurements: a table, or the path of a CSV file.
        tile: that of the staircase; by default the best of TILES.

    Raises:
        LLMGymError: no such file, a missing column, a bad row (named), fewer than 8 rows or 3
            different batch sizes.
    """
    if tile is not None:
        tile = check_number("tile", tile, low=1, high=2**20, integer=True)
    data, source = read_measurements(measurements)
    terms = identifiable_terms(data)
    tiles = TILES if tile is None else (tile,)
    forms: dict[str, tuple[Fitter, int]] = {
        "affine": (fit_affine, 2),
        "hinge": (fit_hinge, 3),
        "staircase": (partial(fit_staircase, tiles=tiles), 2 + (tile is None)),
        "roofline": (partial(fit_roofline, terms=terms), 3 + len(terms)),
        "table": (fit_table, 0),
    }
    folds = list(_folds(data))
    unseen = np.array([_errors_left_out(fitter, data, folds) for fitter, _ in forms.values()])
    fits = [
        _judged(fitter(data), constants, data, errors)
        for (fitter, constants), errors in zip(forms.values(), unseen, strict=True)
    ]
    order = _ranked(fits, unseen**2, float(data["ms"].mean()))
    return Calibration(tuple(fits[n] for n in order), _notes(data, terms), data, source)


def _folds(data: pd.DataFrame) -> Iterator[np.ndarray]:
    """Masks of the rows left out in turn: whole batch sizes, so that repeats stay together."""
    sizes = np.random.default_rng(SEED).permutation(np.unique(data["tokens"]))
    for fold in np.array_split(sizes, min(FOLDS, len(sizes))):
        yield data["tokens"].isin(fold).to_numpy()


def _errors_left_out(fitter: Fitter, data: pd.DataFrame, folds: list[np.ndarray]) -> np.ndarray:
    """Error in ms of every row under the fit to the other folds."""
    errors = np.empty(len(data))
    for left_out in folds:
        unseen = data[left_out]
        errors[left_out] = predict(fitter(data[~left_out]), unseen) - unseen["ms"]
    return errors


def _judged(model: BatchTime, constants: int, data: pd.DataFrame, unseen: np.ndarray) -> Fit:
    ms = data["ms"].to_numpy()
    error = predict(model, data) - ms
    if isinstance(model, MeasuredTable):
        constants = len(model.times_ms)
    spread, squares = float(np.sum((ms - ms.mean()) ** 2)), float(error @ error)
    nothing_to_explain = spread <= ALIKE**2 * float(ms @ ms)
    return Fit(
        model,
        constants,
        r2=float(squares <= spread) if nothing_to_explain else 1 - squares / spread,
        mape=float(np.mean(np.abs(error) / ms)),
        largest_ms=float(np.abs(error).max()),
        cv_ms=float(np.sqrt(np.mean(unseen**2))),
    )


def _ranked(fits: list[Fit], squares: np.ndarray, mean_ms: float) -> list[int]:
    """Numbers of the fits, best first; ``squares`` (forms, rows) are their squared errors on unseen rows."""
    best = int(np.argmin(squares.mean(axis=1)))
    worse = squares - squares[best]
    doubt = worse.std(axis=1) / np.sqrt(worse.shape[1]) + (ALIKE * mean_ms) ** 2
    alike = worse.mean(axis=1) <= doubt

    def key(n: int) -> tuple[bool, float, float, int]:
        constants, error = fits[n].constants, fits[n].cv_ms
        return (not alike[n], *((constants, error) if alike[n] else (error, constants)), n)

    return sorted(range(len(fits)), key=key)


def _notes(data: pd.DataFrame, terms: tuple[str, ...]) -> tuple[str, ...]:
    """What the roofline leaves out, and why."""
    *separate, mixed = TERMS
    what = dict(zip(separate, OPTIONAL, strict=True))
    if set(separate) <= set(terms):
        what[mixed] = "decode_context of mixed batches"
    notes = []
    for name in what.keys() - set(terms):
        why = "does not vary" if np.ptp(TERMS[name](data)) == 0 else "moves in step with the others"
        notes.append(f"{what[name]} {why}: the roofline is fitted without {name}.")
    return tuple(sorted(notes))


__all__ = ["Calibration", "Fit", "calibrate", "draw"]
