"""Never open a tile that is not filled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.tiles import TilePolicy, tiles_for, tokens_waiting
from llmgym.engine.view import View


@dataclass(frozen=True)
class TileAlign(TilePolicy):
    """k = floor((y + P) / tile) between max(1, ceil(y / tile)) and K, where y = min(D, K*tile) decodes.

    Decodes always run; prefill fills whole tiles only, and waits where it would open one for less.
    """

    name: ClassVar[str] = "tile_align"
    saturates: ClassVar[bool] = True

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        decodes, prefill = tokens_waiting(view)
        running = jnp.minimum(decodes, most * tile)
        return jnp.clip((running + prefill) // tile, tiles_for(running, tile), most)
