"""The class of policies that Theorem 2 of arXiv:2504.07347v3 is about: K-FCFS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.core.errors import unknown
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View

ORDERS = ("decode", "prefill", "arrival")


@dataclass(frozen=True)
class KFCFS(Policy):
    """Only the first ``k`` requests in order of arrival may contribute tokens; the budget is filled.

    Args:
        k: number of requests; None: all of them.
        order: which phase fills first, ``"decode"`` (Sarathi-Serve's order), ``"prefill"`` (Orca's) or
            neither: ``"arrival"`` takes requests strictly in order of arrival.

    Work-conserving when k is large enough to fill the budget; one token a request is the least that
    each can give, so k >= token budget always is.
    """

    name: ClassVar[str] = "k_fcfs"
    saturates: ClassVar[bool] = True
    k: int | None = None
    order: str = "arrival"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None:
            keep_number(self, "k", low=1, integer=True, arrays=True)
        if self.order not in ORDERS:
            raise unknown("phase order", self.order, ORDERS)

    @property
    def work_conserving(self) -> bool:  # type: ignore[override]
        """Whether every batch is certain to obey Eqs. (8)-(9)."""
        return self.k is None or (self.token_budget is not None and self.k >= self.token_budget)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        first = view.live
        if self.k is not None:
            first &= prefix_sum(view.live) <= self.k
        decode, prefill = jnp.where(first, view.decode, 0), jnp.where(first, view.prefill, 0)
        if self.order == "arrival":
            return fill(view, view.empty(), decode + prefill, self.token_budget)
        phases = (decode, prefill) if self.order == "decode" else (prefill, decode)
        batch = fill(view, view.empty(), phases[0], self.token_budget)
        return fill(view, batch, phases[1], self.token_budget)
