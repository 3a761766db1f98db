"""SLAI, service-level aware inference (arXiv:2508.01002, Bari, Hegde, de Veciana)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import (
    MOST,
    batch_ticks,
    by_class,
    class_ticks,
    least_first,
    progress,
    whole,
)
from llmgym.core.errors import check_number, unknown
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View

PREFILL_ORDERS = ("fcfs", "shortest")


@dataclass(frozen=True)
class SLAI(Policy):
    """Decodes run when their time-between-tokens limit makes them critical; until then prefill runs.

    The last schedulable time of a decode is LST = end of its last batch + TBT limit - offset * t, t
    the typical batch time. A batch takes the decodes with now >= LST, earliest LST first; then paused
    prefills FCFS; then new prefills while seats and budget last; then the other decodes by LST.

    The paper averages past batch times with weight 0.1. A policy here has no memory, so t is the time
    of the batch that would take the present requests, up to the budget. Completed: the limit on KV
    use, and the default of ``tbt_ms``.

    Args:
        tbt_ms: TBT limit, one number or one for each class.
        offset: in batch times, while the share of KV memory in use is below ``memory_limit`` (and
            where memory has no limit).
        scarce_offset: the same from there on: decodes become critical earlier, and free memory.
        memory_limit: that share.
        max_decodes: most decodes in a batch; None: no limit.
        prefill_order: of the new prefills, "fcfs" or "shortest".
    """

    tbt_ms: Any = 500.0
    offset: float = 5.0
    scarce_offset: float = 10.0
    memory_limit: float = 0.9
    max_decodes: int | None = 128
    prefill_order: str = "fcfs"
    name: ClassVar[str] = "slai"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tbt_ms", by_class("tbt_ms", self.tbt_ms))
        check_number("offset", self.offset, low=0)
        check_number("scarce_offset", self.scarce_offset, low=0)
        check_number("memory_limit", self.memory_limit, low=0, high=1)
        if self.max_decodes is not None:
            check_number("max_decodes", self.max_decodes, low=1, integer=True)
        if self.prefill_order not in PREFILL_ORDERS:
            raise unknown("prefill order", self.prefill_order, PREFILL_ORDERS)

    @property
    def work_conserving(self) -> bool:  # type: ignore[override]
        """Whether every batch obeys Eqs. (8)-(9): only the limit on decodes can forbid it."""
        return self.max_decodes is None

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        slack = self._slack(view, budget)
        decodes = budget if self.max_decodes is None else jnp.minimum(budget, self.max_decodes)
        critical = jnp.where(slack <= 0, view.decode, 0)
        batch = least_first(view, view.empty(), critical, slack, decodes)
        urgent = batch.size
        batch = fill(view, batch, jnp.where(view.started, view.prefill, 0), budget)
        new = jnp.where(view.started, 0, view.prefill)
        if self.prefill_order == "fcfs":
            batch = fill(view, batch, new, budget)
        else:
            batch = least_first(view, batch, new, view.prefill, budget)
        room = jnp.minimum(budget, batch.size + decodes - urgent)
        others = jnp.where(slack > 0, view.decode, 0)
        return progress(view, least_first(view, batch, others, slack, room), budget)

    def _slack(self, view: View, budget: jax.Array) -> jax.Array:
        """Ticks until the last schedulable time of each request (slots, ...)."""
        offset: Any = self.offset
        if view.memory is not None:
            used = (view.memory.blocks - view.memory.free).astype(jnp.float32)
            scarce = used >= self.memory_limit * view.memory.blocks
            offset = jnp.where(scarce, self.scarce_offset, self.offset)
        ahead = whole(offset * batch_ticks(view, budget).astype(jnp.float32))
        return class_ticks("tbt_ms", view, self.tbt_ms) - ahead - jnp.minimum(view.unserved, MOST)
