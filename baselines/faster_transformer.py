"""FasterTransformer, as section 4 of arXiv:2504.07347v3 describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import WholePromptPolicy
from llmgym.engine.fill import choose, fill
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class FasterTransformer(WholePromptPolicy):
    """While any request decodes, one token for each decoding request; else prefills within the budget.

    First come first served inside each phase. Phases never mix, so batches run far below the budget
    while the last requests of a group finish: not work-conserving, not throughput-optimal.
    """

    name: ClassVar[str] = "faster_transformer"

    def __call__(self, key: jax.Array, view: View) -> Batch:
        decodes = fill(view, view.empty(), view.decode, self.token_budget)
        whole = self.prompts == "whole"
        prefills = fill(view, view.empty(), view.prefill, self.token_budget, whole=whole)
        return choose(jnp.any(view.decoding, axis=0), decodes, prefills)
