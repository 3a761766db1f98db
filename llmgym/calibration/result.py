"""What a calibration found: the fits, and the errors on what they did not see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from llmgym.core.errors import LLMGymError, unknown
from llmgym.core.files import write
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.toml_writer import dumps_batch_time


@dataclass(frozen=True)
class Fit:
    """One form fitted to all measurements.

    ``constants``: how many were fitted. ``r2``: share of the variance explained. ``mape``: mean
    absolute error as a share of the measured time. ``largest_ms``: largest absolute error.
    ``cv_ms``: root mean squared error on batch sizes left out of the fit, five folds.
    """

    model: BatchTime
    constants: int
    r2: float
    mape: float
    largest_ms: float
    cv_ms: float

    @property
    def form(self) -> str:
        """Name of the form: the kind of the model."""
        return self.model.kind

    def record(self) -> dict[str, Any]:
        """Everything in plain values; the constants under ``batch_time``."""
        own = {k: v for k, v in vars(self).items() if k != "model"}
        return {"form": self.form, "batch_time": {"kind": self.form, **vars(self.model)}, **own}


@dataclass(frozen=True)
class Calibration:
    """What ``calibrate`` found: the fits, best first, and notes on what was left out.

    ``data`` has the columns tokens, ms, decode_context and prefill_pairs of the measurements.
    """

    fits: tuple[Fit, ...]
    notes: tuple[str, ...]
    data: pd.DataFrame
    source: str

    @property
    def best(self) -> Fit:
        """The fit that comes first."""
        return self.fits[0]

    def fit(self, form: str | None = None) -> Fit:
        """The fit of a form, by default the best. Raises LLMGymError for an unknown form."""
        found = {fit.form: fit for fit in self.fits}
        if form is None:
            return self.best
        if form not in found:
            raise unknown("form", form, found)
        return found[form]

    def write(self, path: str | Path, form: str | None = None) -> None:
        """Write a fit as a TOML file, whole or not at all, that serves as a ``batch_time``.

        ``llmgym.scenario(name, batch_time=path)`` and ``batch_time = "path"`` in a scenario read it.

        Raises:
            LLMGymError: an unknown form, a name that does not end in .toml, or an unwritable file.
        """
        if Path(path).suffix != ".toml":
            raise LLMGymError(f"Cannot write {path}: let its name end in .toml.")
        fit = self.fit(form)
        write(
            Path(path),
            f"# Fitted by llmgym to {len(self.data)} batches of {self.source!r}:\n"
            f"# R^2 {fit.r2:.4f}, mean error {100 * fit.mape:.2f} %, largest {fit.largest_ms:.4g} ms.\n"
            + dumps_batch_time(fit.model),
        )
