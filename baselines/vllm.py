"""Vanilla vLLM, before chunked prefill, as section 4 of arXiv:2504.07347v3 describes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import WholePromptPolicy
from llmgym.baselines.ranking import progress
from llmgym.engine.fill import choose, fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class VanillaVLLM(WholePromptPolicy):
    """While any request has prefill left, a batch of prefills within the budget; else decodes.

    First come first served inside each phase. Where no prefill can enter (its prompt does not fit the
    budget, or no seat is free) the decodes run. Not work-conserving, not throughput-optimal.
    """

    name: ClassVar[str] = "vllm"

    def __call__(self, key: jax.Array, view: View) -> Batch:
        whole = self.prompts == "whole"
        prefills = fill(view, view.empty(), view.prefill, self.token_budget, whole=whole)
        decodes = fill(view, view.empty(), view.decode, self.token_budget)
        # A prompt that was admitted in part may find no room for the rest until others have ended.
        batch = choose(prefills.size > 0, prefills, decodes)
        return progress(view, batch, own_budget(view, self.token_budget), decodes)
