"""Orca (OSDI 2022), as section 4 of arXiv:2504.07347v3 describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class Orca(Policy):
    """Fill the budget with prefill tokens, chunking the last prompt, then decodes in the remainder.

    First come first served inside each phase. Work-conserving, hence throughput-optimal (Theorem 2).
    """

    name: ClassVar[str] = "orca"
    work_conserving: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def __call__(self, key: jax.Array, view: View) -> Batch:
        prefills = fill(view, view.empty(), view.prefill, self.token_budget)
        return fill(view, prefills, view.decode, self.token_budget)
