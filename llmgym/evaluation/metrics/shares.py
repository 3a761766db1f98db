"""What the statistics of service levels have in common: time, drops, and shares of the decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmgym.evaluation.run import Record


def elapsed_s(run: Record) -> float:
    """Simulated seconds after the warm-up, over all environments."""
    ticks = (run.raw["end_clock"] - run.raw["warm_clock"]).sum()
    return max(float(ticks * run.tick_ms / 1000), 1e-9)


def dropped_of(run: Record, job_class: int | None) -> int:
    """Requests (of a network: jobs) of a class that were dropped after the warm-up; None: of all."""
    raw, name = run.raw, "dropped_of_class"
    if job_class is None or f"end_{name}" not in raw:
        end, warm = raw["end_dropped"], raw["warm_dropped"]
    else:
        end, warm = raw[f"end_{name}"][job_class], raw[f"warm_{name}"][job_class]
    return int(end.sum() - (warm.sum() if run.warmup_s > 0 else 0))


def counted_share(met: np.ndarray, missed: int) -> float:
    """The share of 1 among the decided of ``met`` (1, 0; NaN: undecided) and ``missed`` more that are 0."""
    decided = (~np.isnan(met)).sum() + missed
    return float(np.nansum(met) / decided) if decided else float("nan")
