"""Least laxity first: the deadline less the time that the request still needs to meet it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.edf import EDF
from llmgym.baselines.ranking import MOST, batch_ticks
from llmgym.engine.view import View


@dataclass(frozen=True)
class LLF(EDF):
    """As ``edf``, in order of laxity: deadline - now - ceil(l / B) * t, l the prompt tokens left.

    A decode needs one batch. t is the time of a batch; with no memory of past ones, that of the
    batch that would take the present requests, up to the budget B (completed).
    """

    name: ClassVar[str] = "llf"

    def slack(self, view: View, budget: jax.Array) -> jax.Array:
        batches = (view.prefill + budget - 1) // budget + view.decode
        duration = batch_ticks(view, budget)
        # Bounded so that the product cannot leave 32 bits.
        return super().slack(view, budget) - batches.clip(max=MOST // duration) * duration
