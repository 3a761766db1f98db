"""The columns of a list of requests: what may stand in them, and the device form of the lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError, shown
from llmgym.core.pytree import register
from llmgym.scenario.stage import flat_column


@register
@dataclass(frozen=True)
class ListedLengths:
    """Device form of a replay: request n has the lengths in row n."""

    prefill: jax.Array
    decode: jax.Array
    request_class: jax.Array | None = None

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = jnp.minimum(index, self.prefill.shape[0] - 1)
        return jnp.take(self.prefill, row), jnp.take(self.decode, row)

    def classes(self, index: jax.Array) -> jax.Array:
        """The class of each request."""
        assert self.request_class is not None
        return jnp.take(self.request_class, jnp.minimum(index, self.prefill.shape[0] - 1))


def time_column(arrival_s: Any) -> np.ndarray:
    """A flat list of seconds as an array. Raises LLMGymError for anything else."""
    must = "must be a flat list of seconds"
    try:
        return flat_column("arrival_s", arrival_s, must).astype(float)
    except OverflowError:
        raise LLMGymError(f"arrival_s {must}, got {shown(arrival_s)}.") from None


def check_times(arrival: np.ndarray) -> None:
    """Raise LLMGymError for times that are negative, infinite, or out of order."""
    bad = np.flatnonzero(~np.isfinite(arrival) | (arrival < 0))
    if bad.size:
        raise LLMGymError(
            f"arrival_s[{bad[0]}] is {arrival[bad[0]]!r}; times are seconds from the start, 0 or more."
        )
    unsorted = np.flatnonzero(np.diff(arrival) < 0)
    if unsorted.size:
        at = unsorted[0] + 1
        raise LLMGymError(
            f"arrival_s[{at}] = {arrival[at]:g} is before arrival_s[{at - 1}] = {arrival[at - 1]:g}; "
            "sort the requests by arrival time."
        )


def priority_column(priority: Any, requests: int) -> np.ndarray:
    """The priority of each request as an array (requests,).

    Raises:
        LLMGymError: not one whole number for each request, a priority out of range, or more than 64
            different ones.
    """
    column = flat_column("priority", priority)
    if column.dtype.kind == "f" and (column == np.rint(column)).all():
        column = np.clip(column, -(2.0**40), 2.0**40).astype(np.int64)
    if column.shape != (requests,) or not np.issubdtype(column.dtype, np.integer):
        raise LLMGymError("priority must be a list of whole numbers, one for each request.")
    if np.abs(column.astype(float)).max() > 2**20 or len(np.unique(column)) > 64:
        raise LLMGymError("A replay has at most 64 different priorities between -2**20 and 2**20.")
    return column
