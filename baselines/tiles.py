"""Batches counted in tiles: what the tile rules share.

The batch time is a staircase with one step per tile of b_0 tokens, so the number of tiles k is what an
iteration costs and k * b_0 what it can carry.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.engine.fill import fill, longest_unserved, own_budget
from llmgym.engine.view import Batch, View

DEFAULT_TILE = 128
"""Tokens of a tile where the batch time has none of its own."""


def tokens_waiting(view: View) -> tuple[jax.Array, jax.Array]:
    """D, the requests that decode, and P, the prompt tokens left (counted up to 2**15 a request)."""
    decodes = jnp.sum(view.decode, axis=0)
    return decodes, jnp.sum(jnp.minimum(view.prefill, 1 << 15), axis=0)


def admissible_prefill(view: View) -> jax.Array:
    """P, the prompt tokens that may run now: of all waiting requests no more than have a seat.

    Where k_max counts the batch, decodes take their seats first.
    """
    prefill = jnp.minimum(view.prefill, 1 << 15)
    if view.max_num_seqs is not None:
        taken = view.started if view.resident_limit else view.decoding
        newcomer = (view.prefill > 0) & ~taken
        seats = view.max_num_seqs - jnp.sum(taken.astype(jnp.int32), axis=0)
        prefill = jnp.where(newcomer & (prefix_sum(newcomer) > seats), 0, prefill)
    return jnp.sum(prefill, axis=0)


def decodes_in_turn(view: View, room: jax.Array) -> jax.Array:
    """One token for each decoding request; where ``room`` does not suffice, for those served longest ago.

    Where k_max counts the batch, its seats limit the room too; where it counts residents, requests that
    have not begun (they came without a prompt) take part while seats last.
    """
    room, decoding = jnp.maximum(room, 0), view.decoding
    if view.max_num_seqs is not None and view.resident_limit:
        newcomer = decoding & ~view.started
        seats = view.max_num_seqs - jnp.sum(view.started.astype(jnp.int32), axis=0)
        decoding = decoding & ~(newcomer & (prefix_sum(newcomer) > seats))
    elif view.max_num_seqs is not None:
        room = jnp.minimum(room, view.max_num_seqs)

    def excess(decodes: jax.Array) -> jax.Array:
        return jnp.any(jnp.sum(decodes, axis=0) > room)

    def some(decodes: jax.Array) -> jax.Array:
        return jnp.where(longest_unserved(view, decoding, room), decodes, 0)

    # A loop that runs only where the decodes do not all fit.
    return jax.lax.while_loop(excess, some, decoding.astype(jnp.int32))


def tile_batch(view: View, tokens: jax.Array) -> Batch:
    """A batch of up to ``tokens`` tokens: decodes in turn first, then prefill FCFS."""
    tokens = jnp.minimum(tokens, view.token_budget)
    batch = fill(view, view.empty(), decodes_in_turn(view, tokens), tokens)
    return fill(view, batch, view.prefill, tokens)


@dataclass(frozen=True)
class TilePolicy(Policy):
    """Base of the tile rules: a rule says how many of the K = ceil(b_max / tile) tiles to open.

    ``tile`` is b_0 in tokens; None: that of the engine's batch time.
    """

    tile: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile is not None:
            keep_number(self, "tile", low=1, integer=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        tile = self.tile or getattr(view.batch_time, "tile", DEFAULT_TILE)
        tile = jnp.broadcast_to(jnp.asarray(tile, jnp.int32), view.token_budget.shape)
        budget = own_budget(view, self.token_budget)
        most = (budget + tile - 1) // tile
        return tile_batch(view, jnp.minimum(self.tiles(view, tile, most) * tile, budget))

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        """How many tiles to open (...), 1 .. ``most``, int32.

        Args:
            view: what the engine shows.
            tile: b_0, tokens of a tile (...), int32.
            most: K, the tiles of a full batch (...), int32.
        """
        raise TypeError("a tile rule must define tiles(view, tile, most)")


def tiles_for(tokens: jax.Array, tile: jax.Array) -> jax.Array:
    """ceil(tokens / tile), at least 1."""
    return jnp.maximum((tokens + tile - 1) // tile, 1)
