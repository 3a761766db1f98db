"""Least-squares fits of the batch-time models; all their constants are non-negative."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from llmgym.scenario.batch_time import (
    MOST_POINTS,
    Affine,
    BatchTime,
    Hinge,
    MeasuredTable,
    Roofline,
    Staircase,
)

TILES = (16, 32, 64, 96, 128, 192, 256)

TERMS: dict[str, Callable[[pd.DataFrame], np.ndarray]] = {
    "kv_ms_per_kilotoken": lambda d: d["decode_context"].to_numpy() / 1e3,
    "prefill_ms_per_megapair": lambda d: d["prefill_pairs"].to_numpy() / 1e6,
    "mixed_ms_per_kilotoken": lambda d: (
        np.where(d["prefill_pairs"] > 0, d["decode_context"], 0.0) / 1e3
    ),
}
"""What each attention constant of Roofline multiplies."""

GRID = 17
"""Values of free_tokens tried in each round of the search."""


def fit_affine(data: pd.DataFrame) -> BatchTime:
    """The best Affine."""
    c, a = _solve(data, [np.ones(len(data)), data["tokens"]])
    return Affine(_rounded(c), _rounded(a))


def fit_hinge(data: pd.DataFrame) -> BatchTime:
    """The best Hinge."""
    free, (c, a) = _search_free_tokens(data, [])
    return Hinge(_rounded(c), _rounded(a), free)


def fit_staircase(data: pd.DataFrame, tiles: Iterable[int] = TILES) -> BatchTime:
    """The best Staircase of these tiles; the smallest tile of those that fit equally well."""
    tokens = data["tokens"].to_numpy()
    columns = {n: [np.ones(len(data)), np.ceil(tokens / n)] for n in sorted(tiles)}
    floor = _floor(data)
    tile, (c, a) = _best(data, columns, (0.0, floor))
    return Staircase(_rounded(c), _rounded(a), tile)


def fit_roofline(data: pd.DataFrame, terms: Iterable[str]) -> BatchTime:
    """The best Roofline with the attention constants named by ``terms``; the others are 0."""
    terms = tuple(terms)
    free, (c, a, *rest) = _search_free_tokens(data, [TERMS[name](data) for name in terms])
    attention = dict(zip(terms, map(_rounded, rest), strict=True))
    return Roofline(_rounded(c), _rounded(a), free, **attention)


def fit_table(data: pd.DataFrame) -> BatchTime:
    """The medians of each batch size, or of neighbouring ones where there are more than 64."""
    sizes = np.unique(data["tokens"])
    groups = [sizes[:1], *np.array_split(sizes[1:-1], MOST_POINTS - 2), sizes[-1:]]
    rows = [data[data["tokens"].isin(group)] for group in groups if len(group)]
    return MeasuredTable(
        tuple(round(group["tokens"].median()) for group in rows),
        tuple(_rounded(group["ms"].median()) for group in rows),
    )


def identifiable_terms(data: pd.DataFrame) -> tuple[str, ...]:
    """The attention constants whose column is not a linear combination of the columns before it."""
    columns, found = [np.ones(len(data)), data["tokens"].to_numpy()], []
    for name, column in TERMS.items():
        new = column(data)
        more = np.column_stack([*columns, new])
        scaled = more / np.maximum(np.abs(more).max(axis=0), 1e-300)
        if np.linalg.matrix_rank(scaled, tol=1e-9 * np.sqrt(len(data))) == len(columns) + 1:
            columns.append(new)
            found.append(name)
    return tuple(found)


def _search_free_tokens(data: pd.DataFrame, rest: list[np.ndarray]) -> tuple[int, np.ndarray]:
    """The best free_tokens and the other constants, on a grid that narrows down to whole tokens."""
    tokens, floor = data["tokens"].to_numpy(), _floor(data)
    sizes = np.unique(tokens)
    low = (floor, *[0.0] * (1 + len(rest)))

    def columns(free: int) -> list[np.ndarray]:
        return [np.ones(len(data)), np.maximum(tokens - free, 0), *rest]

    # At least two batch sizes count for the slope: a single one could be met by any slope.
    first, last = 0, int(sizes[-2])
    while True:
        grid = np.unique(np.linspace(first, last, GRID).astype(int))
        free, found = _best(data, {int(n): columns(int(n)) for n in grid}, low)
        if last - first < GRID:
            return free, found
        place = int(np.searchsorted(grid, free))
        first, last = int(grid[max(place - 1, 0)]), int(grid[min(place + 1, len(grid) - 1)])


def _best(
    data: pd.DataFrame, columns: dict[int, list[np.ndarray]], low: tuple[float, ...]
) -> tuple[int, np.ndarray]:
    """The first key whose columns fit as well as any, and their factors."""
    ms = data["ms"].to_numpy()
    found = {key: _solve(data, its, low) for key, its in columns.items()}
    loss = {
        key: float(np.sum((np.column_stack(columns[key]) @ factors - ms) ** 2))
        for key, factors in found.items()
    }
    enough = min(loss.values()) * (1 + 1e-9) + 1e-18 * float(ms @ ms)
    key = next(key for key in found if loss[key] <= enough)
    return key, found[key]


def _solve(
    data: pd.DataFrame, columns: list[np.ndarray], low: tuple[float, ...] | None = None
) -> np.ndarray:
    """Factors of the columns, at least ``low`` (by default 0), with the least squared error in ms."""
    matrix = np.column_stack(columns)
    base = np.zeros(matrix.shape[1]) if low is None else np.array(low)
    factors, _ = nnls(matrix, data["ms"].to_numpy() - matrix @ base)
    nothing = factors * matrix.max(axis=0) < 1e-9 * float(data["ms"].mean())  # rounding errors
    return np.where(nothing, 0.0, factors) + base


def _floor(data: pd.DataFrame) -> float:
    """A constant that counts as zero, where a model needs a positive one."""
    return 1e-6 * float(data["ms"].min())


def _rounded(value: float) -> float:
    """Six significant digits: more than measurements hold."""
    return float(f"{value:.6g}")
