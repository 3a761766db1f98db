"""Measurements of batches that a known batch time would give."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmgym.scenario.batch_time import (
    Attention,
    BatchTime,
    Roofline,
)

MIXED = Roofline(16.6, 0.0909, 97, 0.221, 4.19, 0.3)


def batches(size: int = 200, seed: int = 0) -> pd.DataFrame:
    """Batches of decodes, of prefill, and of both, with what attention reads in them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, size)
    decodes = np.where(kind != 1, rng.integers(1, 257, size), 0)
    chunk = np.where(kind != 0, rng.integers(1, 1025, size), 0)
    context, prefix = rng.integers(10, 3000, size), rng.integers(0, 4000, size)
    return pd.DataFrame(
        {
            "tokens": decodes + chunk,
            "decode_context": decodes * context,
            "prefill_pairs": chunk * (prefix + chunk / 2),
        }
    )


def measured(model: BatchTime, noise: float = 0.0, size: int = 200, seed: int = 0) -> pd.DataFrame:
    """What a stopwatch would say if the model were true, with ``noise`` as a share of the time."""
    frame = batches(size, seed)
    read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
    error = noise * np.random.default_rng(seed + 1).standard_normal(size)
    return frame.assign(ms=model.ms(frame["tokens"].to_numpy(), read) * (1 + error))
