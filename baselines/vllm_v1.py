"""The batches that vLLM 0.33 forms (its V1 scheduler, first come, first served)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.vllm_v1_scan import Rules, capped, form, watermark_blocks
from llmgym.core.arrays import one_by_one, prefix_sum, rows
from llmgym.core.checks import keep_number
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class VLLMV1(Policy):
    """Running requests first, in order of admission; then waiting ones, up to the first that does not fit.

    A running request that needs a block when none is free preempts the last one, itself at worst; then
    nobody is admitted in that iteration. Batches equal those recorded from vLLM 0.33.0.

    Args:
        chunked_prefill: whether prompts are cut at the token budget; else a prompt that does not fit
            what is left of it stops the admission.
        long_prefill_cap: most tokens of a request in one batch if it is not the only one; 0: no cap.
        reserve_full: admit a request only where the blocks for all its known tokens are free, not
            just those for its first chunk.
        watermark: share of all blocks that an admission leaves free unless nobody runs.
    """

    chunked_prefill: bool = True
    long_prefill_cap: int = 0
    reserve_full: bool = True
    watermark: float = 0.0
    name: ClassVar[str] = "vllm_v1"
    saturates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "long_prefill_cap", low=0, integer=True)
        keep_number(self, "watermark", low=0, high=1, arrays=True)

    def unservable(self, longest_prompt: float, token_budget: int) -> str | None:
        budget = min(token_budget, self.token_budget or token_budget)
        if self.chunked_prefill or self.long_prefill_cap or longest_prompt <= budget:
            return None
        return (
            f"{self.name} without chunked prefill never admits prompts above its token budget, "
            f"{budget}, and there are some of up to {longest_prompt:g} tokens."
        )

    def __call__(self, key: jax.Array, view: View) -> Batch:
        if view.memory is not None and view.memory.pool is not None:
            return self._one_by_one(view, jnp.zeros_like(view.prefill))
        demand = self._demand(view)
        running = view.started
        batch = fill(view, view.empty(), jnp.where(running, demand, 0), self.token_budget)
        if view.memory is None:
            return Batch(batch.tokens + self._admitted(view, batch, demand, None))
        # A request that does not fit takes the last one's blocks, and so on: as many of the first
        # stay as fit with their new tokens.
        after = jnp.where(running, view.memory.needed(batch.tokens), 0)
        stays = running & (prefix_sum(after) <= view.memory.blocks)
        preempt = running & ~stays
        kept = Batch(jnp.where(stays, batch.tokens, 0))
        free = view.memory.blocks - jnp.sum(jnp.where(stays, after, 0), axis=0)
        admitted = self._admitted(view, kept, demand, free)
        nobody = jnp.any(preempt, axis=0)
        return Batch(kept.tokens + jnp.where(nobody, 0, admitted), preempt)

    def _one_by_one(self, view: View, urgency: jax.Array) -> Batch:
        """Request by request: with priorities or prefix caching each depends on those before it."""
        scan = partial(form, rules=self._rules)
        if view.memory is not None and view.memory.pool is not None:
            batch: Batch = one_by_one(scan, view.batches.shape, view, urgency)
            return batch
        for _ in view.batches.shape:
            scan = jax.vmap(scan, in_axes=-1, out_axes=-1)
        return scan(view, urgency)

    @property
    def _rules(self) -> Rules:
        return Rules(
            self.token_budget,
            self.chunked_prefill,
            self.long_prefill_cap,
            self.reserve_full,
            self.watermark,
        )

    def _demand(self, view: View) -> jax.Array:
        """Most tokens of each request in this batch."""
        return capped(view, view.demand, self.long_prefill_cap)

    def _admitted(
        self, view: View, batch: Batch, demand: jax.Array, free: jax.Array | None
    ) -> jax.Array:
        """Tokens of the waiting requests that are admitted, where ``free`` blocks are left."""
        waiting = view.live & ~view.started
        room = own_budget(view, self.token_budget) - batch.size
        demand = jnp.where(waiting, jnp.minimum(demand, room + 1), 0)  # sums stay inside 32 bits
        left = room - (prefix_sum(demand) - demand)
        tokens = jnp.clip(left, 0, demand)
        fits = tokens > 0 if self.chunked_prefill else (demand <= left) & (demand > 0)
        if view.max_num_seqs is not None:
            seats = view.max_num_seqs - jnp.sum(view.started.astype(jnp.int32), axis=0)
            fits = fits & (prefix_sum(waiting) <= seats)
        if view.memory is not None:
            takes = jnp.where(waiting, view.memory.needed(tokens), 0)
            must = view.memory.needed(view.prefill + view.decode) if self.reserve_full else takes
            assert free is not None
            first = (prefix_sum(waiting) == 1) & ~jnp.any(view.started, axis=0)
            spare = jnp.where(first, 0, watermark_blocks(self.watermark, view.memory.blocks))
            fits = fits & (must + spare + prefix_sum(takes) - takes <= free)
        row = rows(waiting)
        stop = jnp.min(jnp.where(waiting & ~fits, row, row.shape[0]), axis=0)
        return jnp.where(waiting & (row < stop), tokens, 0)
