"""Always open every tile: Sarathi-Serve with fair turns among decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.tiles import TilePolicy
from llmgym.engine.view import View


@dataclass(frozen=True)
class AlwaysFull(TilePolicy):
    """All K tiles in every iteration, decodes first. Work-conserving, hence throughput-optimal."""

    name: ClassVar[str] = "always_full"
    work_conserving: ClassVar[bool] = True
    saturates: ClassVar[bool] = True

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        return most
