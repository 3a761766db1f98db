"""RAD, resource-aware dynamic scheduling (arXiv:2508.01002, Bari, Hegde, de Veciana)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import progress
from llmgym.baselines.tiles import DEFAULT_TILE, decodes_in_turn
from llmgym.core.checks import keep_number
from llmgym.engine.fill import choose, fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class RAD(Policy):
    """Prefill in chunks of one tile until b_col requests decode; then a batch of decodes.

    So both phases run at the size where the matrix units are full. Without prompts all decodes run.

    Completed: batches are of one phase; prompts go FCFS; decodes go in whole multiples of b_col,
    those served longest ago first; where seats keep every prompt out, the decodes run.

    Args:
        tile: tokens of a prefill chunk; None: the tile of the engine's batch time.
        b_col: requests that fill a tile of decodes; None: as many as ``tile``.
    """

    tile: int | None = None
    b_col: int | None = None
    name: ClassVar[str] = "rad"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tile", "b_col"):
            if getattr(self, name) is not None:
                keep_number(self, name, low=1, integer=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        budget = own_budget(view, self.token_budget)
        tile = self.tile or getattr(view.batch_time, "tile", DEFAULT_TILE)
        tile = jnp.minimum(budget, jnp.asarray(tile, jnp.int32))
        columns = tile if self.b_col is None else jnp.minimum(budget, self.b_col)
        prefills = fill(view, view.empty(), view.prefill, tile)
        prompts = prefills.size > 0
        decoding = jnp.sum(view.decode, axis=0)
        full = jnp.minimum(decoding, budget) // columns * columns
        room = jnp.where(prompts & (full > 0), full, budget)
        decodes = fill(view, view.empty(), decodes_in_turn(view, room), room)
        batch = choose(prompts & (decoding < columns), prefills, decodes)
        return progress(view, batch, budget, decodes)
