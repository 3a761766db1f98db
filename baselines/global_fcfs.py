"""First come, first served by the age of the job: longest in the system first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.engine.fill import oldest_first, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class GlobalFCFS(Policy):
    """Requests in order of the arrival of their job in the network; decodes before prefill.

    On one engine it is Sarathi-Serve. Work-conserving, apart from limits on requests.
    """

    name: ClassVar[str] = "global_fcfs"
    work_conserving: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        decodes = oldest_first(view, view.empty(), view.decode, view.job_age, budget)
        return oldest_first(view, decodes, view.prefill, view.job_age, budget)
