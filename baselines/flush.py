"""One tile until a backlog of prompts has built up, then up to all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.tiles import TilePolicy, tiles_for, tokens_waiting
from llmgym.core.checks import keep_number
from llmgym.engine.view import View


@dataclass(frozen=True)
class Flush(TilePolicy):
    """Open k_0 = max(1, ceil(D / tile)) tiles, and fill the room that the decodes leave with prefill.

    A further tile opens for every ``tile`` tokens by which the prefill that finds no room exceeds
    ``threshold`` tokens: the largest k <= K with P - room >= threshold + tile * (k - k_0).
    """

    name: ClassVar[str] = "flush"
    saturates: ClassVar[bool] = True
    threshold: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "threshold", low=0, integer=True, arrays=True)

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        decodes, prefill = tokens_waiting(view)
        needed = jnp.minimum(tiles_for(decodes, tile), most)
        homeless = prefill - (needed * tile - decodes)
        return jnp.clip(needed + (homeless - self.threshold) // tile, needed, most)
