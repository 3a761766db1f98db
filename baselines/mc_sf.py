"""MC-SF, memory-constrained shortest first (arXiv:2502.07115)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import decode_left, least_first, progress
from llmgym.core.checks import keep_number
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View

Carry = tuple[jax.Array, jax.Array, jax.Array]
"""Who is in memory or admitted, tokens left in the batch, and whether admission goes on."""


@dataclass(frozen=True)
class MCSF(Policy):
    """Admit the request with the fewest output tokens whose peak fits all future peaks of memory.

    Memory peaks when a request completes. With everyone served in every iteration a request that now
    has l tokens and d outputs to come holds l + t tokens after t <= d iterations. The waiting requests
    are taken in order of d. One is admitted if, at each completion time t of the requests in memory, of
    those admitted and of its own, the sum of l + t over those with d >= t is at most M. The first
    that is not ends the admission. Those in memory run first, decodes before prefill, then those
    admitted. Needs known lengths. Where memory has no limit everybody fits.

    Completed: memory is counted in whole blocks; the iterations that a prompt takes beyond the first
    are left out of the forecast, and the last output token is counted, which an engine whose prompt
    yields the first token never stores; with nobody in memory the first is admitted in any case.

    Args:
        protection: share of memory kept free (alpha-protection), against forecasts that fail.
    """

    protection: float = 0.0
    name: ClassVar[str] = "mc_sf"
    batched: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "protection", low=0, high=1, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        left = decode_left(self.name, view)
        budget = own_budget(view, self.token_budget)
        running = view.started
        batch = fill(view, view.empty(), jnp.where(running, view.decode, 0), budget)
        batch = fill(view, batch, jnp.where(running, view.prefill, 0), budget)
        waiting = view.live & ~running
        if view.memory is not None:
            waiting = self._admitted(view, waiting, left, budget - batch.size)
        batch = least_first(view, batch, jnp.where(waiting, view.demand, 0), left, budget)
        return progress(view, batch, budget)

    def _admitted(
        self, view: View, waiting: jax.Array, left: jax.Array, room: jax.Array
    ) -> jax.Array:
        """Which of the waiting are admitted (slots,), while the batch has room for tokens."""
        memory = view.memory
        assert memory is not None
        known = view.prompt + view.generated
        blocks = jnp.floor((1 - self.protection) * memory.blocks + 1e-4).astype(jnp.int32)
        # Blocks of request j (column) when request i (row) completes.
        later = left[None] >= left[:, None]
        peaks = jnp.where(later, -(-(known[None] + left[:, None]) // memory.block_size), 0)
        peaks = jnp.minimum(peaks, blocks + 1)  # sums stay inside 32 bits

        def fits(inside: jax.Array) -> jax.Array:
            held = jnp.sum(jnp.where(inside[None], peaks, 0), axis=1)
            return jnp.all(~inside | (held <= blocks)) | (jnp.sum(inside) == 1)

        def goes_on(carry: Carry) -> jax.Array:
            inside, room, open_ = carry
            return open_ & (room > 0) & jnp.any(waiting & ~inside)

        def admit(carry: Carry) -> Carry:
            inside, room, _ = carry
            last = jnp.iinfo(jnp.int32).max
            chosen = jnp.argmin(jnp.where(waiting & ~inside, left, last))
            more = inside | (jnp.arange(left.shape[0]) == chosen)
            fine = fits(more)
            return jnp.where(fine, more, inside), room - view.demand[chosen], fine

        inside, _, _ = jax.lax.while_loop(goes_on, admit, (view.started, room, jnp.array(True)))
        return waiting & inside
