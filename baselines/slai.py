"""SLAI, service-level aware inference (arXiv:2508.01002, Bari, Hegde, de Veciana)."""

from __future__ import annotations

from collections.abc import Callable
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
    own_ticks,
    progress,
    whole,
)
from llmgym.core.checks import keep_number
from llmgym.core.errors import unknown
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View

PREFILL_ORDERS = ("fcfs", "shortest")

FINE = 16
"""The average of batch times is kept in whole 16ths of a tick: sums of floating-point products may
differ in the last digit between two compiled forms of one run."""


@dataclass(frozen=True)
class SLAI(Policy):
    """Decodes run when their time-between-tokens limit makes them critical; until then prefill runs.

    The last schedulable time of a decode is LST = end of its last batch + TBT limit - offset * t, t
    the typical batch time. A batch takes the decodes with now >= LST, earliest LST first; then paused
    prefills FCFS; then new prefills while seats and budget last; then the other decodes by LST.

    With ``average_weight`` t is the paper's, an exponentially weighted average of the times of the
    batches so far, and the policy has a memory; the paper's weight is 0.1. Without it t is the time of
    the batch that would take the present requests, up to the budget.

    Completed: the first batch begins the average, and until there is one t is as without it; LST uses
    the present average, not that at the end of a request's last batch; the limit on KV use; the
    default of ``tbt_ms``.

    Args:
        tbt_ms: TBT limit, one number or one for each class.
        offset: in batch times, while the share of KV memory in use is below ``memory_limit`` (and
            where memory has no limit).
        scarce_offset: the same from there on: decodes become critical earlier, and free memory.
        memory_limit: that share.
        max_decodes: most decodes in a batch; None: no limit.
        prefill_order: of the new prefills, "fcfs" or "shortest".
        average_weight: of the last batch in the average of batch times; None: no average.
    """

    tbt_ms: Any = 500.0
    offset: float = 5.0
    scarce_offset: float = 10.0
    memory_limit: float = 0.9
    max_decodes: int | None = 128
    prefill_order: str = "fcfs"
    average_weight: float | None = None
    name: ClassVar[str] = "slai"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tbt_ms", by_class("tbt_ms", self.tbt_ms))
        keep_number(self, "offset", low=0, arrays=True)
        keep_number(self, "scarce_offset", low=0, arrays=True)
        keep_number(self, "memory_limit", low=0, high=1, arrays=True)
        if self.max_decodes is not None:
            keep_number(self, "max_decodes", low=1, integer=True)
        if self.prefill_order not in PREFILL_ORDERS:
            raise unknown("prefill order", self.prefill_order, PREFILL_ORDERS)
        if self.average_weight is not None:
            keep_number(self, "average_weight", above=0, high=1)

    @property
    def work_conserving(self) -> bool:  # type: ignore[override]
        """Whether every batch obeys Eqs. (8)-(9): only the limit on decodes can forbid it."""
        return self.max_decodes is None

    @property
    def start(self) -> Callable[[View], jax.Array] | None:
        """What gives the first memory: the average batch time in FINE parts of a tick, 0 before any."""
        return None if self.average_weight is None else lambda view: jnp.zeros_like(view.batches)

    def __call__(self, key: jax.Array, view: View, memory: Any = None) -> Any:
        """The batch; with ``average_weight`` (Batch, average batch time)."""
        budget = own_budget(view, self.token_budget)
        typical = batch_ticks(view, budget).astype(jnp.float32)
        if self.average_weight is None:
            return self._compose(view, budget, typical)
        batch = self._compose(view, budget, jnp.where(memory > 0, memory / FINE, typical))
        last = FINE * jnp.minimum(own_ticks(view, batch), 2**26)
        change = jnp.round(self.average_weight * (last - memory).astype(jnp.float32))
        average = jnp.where(memory > 0, memory + change.astype(jnp.int32), last)
        return batch, jnp.where(last > 0, jnp.maximum(average, 1), memory)

    def _compose(self, view: View, budget: jax.Array, typical: jax.Array) -> Batch:
        """The batch, for t = ``typical`` ticks."""
        slack = self._slack(view, typical)
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

    def _slack(self, view: View, typical: jax.Array) -> jax.Array:
        """Ticks until the last schedulable time of each request (slots, ...)."""
        offset: Any = self.offset
        if view.memory is not None:
            used = (view.memory.blocks - view.memory.free).astype(jnp.float32)
            scarce = used >= self.memory_limit * view.memory.blocks
            offset = jnp.where(scarce, self.scarce_offset, self.offset)
        ahead = whole(offset * typical)
        return class_ticks("tbt_ms", view, self.tbt_ms) - ahead - jnp.minimum(view.unserved, MOST)
