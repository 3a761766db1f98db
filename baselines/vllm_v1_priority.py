"""The batches that vLLM 0.33 forms under its priority policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class VLLMV1Priority(VLLMV1):
    """As ``vllm_v1``, but waiting requests stand in order of priority, and the least urgent is preempted.

    The priorities are those of the request classes; at a tie the earlier arrival is more urgent. Running
    requests still go in order of admission, so one that is preempted may be in the batch already: it
    leaves it, and its tokens return to the budget.
    """

    name: ClassVar[str] = "vllm_v1_priority"

    def __call__(self, key: jax.Array, view: View) -> Batch:
        return self._one_by_one(view, view.urgency)
