"""Sarathi-Serve (arXiv:2403.02310), as section 4 of arXiv:2504.07347v3 describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class SarathiServe(Policy):
    """One token for every decoding request, then prefill chunks from the fewest requests.

    First come first served inside each phase. Work-conserving, hence throughput-optimal (Theorem 2).
    """

    name: ClassVar[str] = "sarathi"
    work_conserving: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def __call__(self, key: jax.Array, view: View) -> Batch:
        decodes = fill(view, view.empty(), view.decode, self.token_budget)
        return fill(view, decodes, view.prefill, self.token_budget)
