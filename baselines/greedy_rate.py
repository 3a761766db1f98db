"""The tile count with the best rate of tokens, iteration by iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.tiles import TilePolicy, tokens_waiting
from llmgym.engine.view import View


@dataclass(frozen=True)
class GreedyRate(TilePolicy):
    """k = argmax over 1..K of min(D + P, k*tile) / t(min(D + P, k*tile)); the smallest k at a tie."""

    name: ClassVar[str] = "greedy_rate"
    saturates: ClassVar[bool] = True

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        decodes, prefill = tokens_waiting(view)
        waiting = decodes + prefill

        def rate(tiles: jax.Array) -> jax.Array:
            tokens = jnp.minimum(waiting, tiles * tile).astype(jnp.float32)
            return tokens / view.batch_time.formula(jnp.maximum(tokens, 1.0), jnp)

        def better(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            tiles, best = state
            best = jnp.where((tiles <= most) & (rate(tiles) > rate(best)), tiles, best)
            return tiles + 1, best

        one = jnp.ones_like(most)
        return jax.lax.while_loop(lambda s: jnp.any(s[0] <= most), better, (one + 1, one))[1]
