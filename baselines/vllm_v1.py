"""The batches that vLLM 0.33 forms (its V1 scheduler, first come, first served)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.arrays import prefix_sum, rows
from llmgym.baselines.policy import Policy
from llmgym.composition import Batch, View, fill, own_budget
from llmgym.errors import check_number


@dataclass(frozen=True)
class VLLMV1(Policy):
    """Running requests first, in order of admission; then waiting ones, up to the first that does not fit.

    A running request that needs a block when none is free preempts the last one, itself at worst; then
    nobody is admitted in that iteration. Batches equal those recorded from vLLM 0.33.0, but for its
    priority queue and its prefix cache.

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
        check_number("long_prefill_cap", self.long_prefill_cap, low=0, integer=True)
        check_number("watermark", self.watermark, low=0, high=1)

    def unservable(self, longest_prompt: float, token_budget: int) -> str | None:
        budget = min(token_budget, self.token_budget or token_budget)
        if self.chunked_prefill or self.long_prefill_cap or longest_prompt <= budget:
            return None
        return (
            f"{self.name} without chunked prefill never admits prompts above its token budget, "
            f"{budget}, and there are some of up to {longest_prompt:g} tokens."
        )

    def __call__(self, key: jax.Array, view: View) -> Batch:
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

    def _demand(self, view: View) -> jax.Array:
        """Most tokens of each request in this batch."""
        if not self.long_prefill_cap:
            return view.demand
        alone = jnp.sum(view.live.astype(jnp.int32), axis=0) == 1
        return jnp.where(alone, view.demand, jnp.minimum(view.demand, self.long_prefill_cap))

    def _admitted(
        self, view: View, batch: Batch, demand: jax.Array, free: jax.Array | None
    ) -> jax.Array:
        """Tokens of the waiting requests that are admitted, with so many ``free`` blocks."""
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
            spare = jnp.where(first, 0, self._spare(view.memory.blocks))
            fits = fits & (must + spare + prefix_sum(takes) - takes <= free)
        row = rows(waiting)
        stop = jnp.min(jnp.where(waiting & ~fits, row, row.shape[0]), axis=0)
        return jnp.where(waiting & (row < stop), tokens, 0)

    def _spare(self, blocks: jax.Array) -> jax.Array:
        """The watermark in blocks; vLLM counts its null block with the others."""
        # A product that should be whole may come out just below it in 32 bits.
        return jnp.floor(self.watermark * (blocks + 1) + 1e-4).astype(jnp.int32)
