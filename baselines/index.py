"""The tile index: how many tiles to open, by weighted tokens per power of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.tiles import TilePolicy, admissible_prefill, tokens_waiting
from llmgym.core.checks import keep_number
from llmgym.engine.view import View


@dataclass(frozen=True)
class Index(TilePolicy):
    """k = argmax over 1..K of (d_k + w * p_k) / t_k^g, the smallest k at a tie; decodes first.

    d_k and p_k are the decode and prefill tokens that k tiles would hold, t_k the time in ms of that
    batch, and w what a prompt token is worth in decode tokens::

        w = prefill_weight + age_weight * age + urgency_weight * age^2
            + backlog_weight * P / tile + decode_weight * D / tile

    with age that of the oldest prompt in seconds, P the prompt tokens that may run and D the requests
    that decode. The plain rule is Index(w0, w1) = Index(prefill_weight, age_weight) with g = 1: w0 =
    0.4 and w1 = 0.5 keep mean latency low, w0 = 0.7..0.9 and w1 = 0 throughput high where resident
    requests are capped. ``power`` = g. w = 1, g = 1 is the greedy rate of tokens.
    ``llmgym.agents.index_search`` tunes all six.
    """

    name: ClassVar[str] = "index"
    saturates: ClassVar[bool] = True
    prefill_weight: float = 0.4
    age_weight: float = 0.5
    urgency_weight: float = 0.0
    backlog_weight: float = 0.0
    decode_weight: float = 0.0
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in PARAMETERS:
            keep_number(self, name, arrays=True)
        keep_number(self, "power", low=0, arrays=True)

    def tiles(self, view: View, tile: jax.Array, most: jax.Array) -> jax.Array:
        decodes, _ = tokens_waiting(view)
        prefill = admissible_prefill(view)
        weight = self._weight(view, decodes / tile, prefill / tile)

        def score(tiles: jax.Array) -> jax.Array:
            tokens = jnp.minimum(decodes + prefill, tiles * tile)
            held = jnp.minimum(decodes, tokens)
            size = jnp.maximum(tokens, 1).astype(jnp.float32)
            gain = held + weight * (tokens - held)
            return gain / view.batch_time.formula(size, jnp) ** self.power

        def better(
            state: tuple[jax.Array, jax.Array, jax.Array],
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            tiles, best, highest = state
            found = score(tiles)
            wins = (tiles <= most) & (found > highest) & (decodes + prefill > (tiles - 1) * tile)
            return tiles + 1, jnp.where(wins, tiles, best), jnp.where(wins, found, highest)

        one = jnp.ones_like(most)
        start = (one + 1, one, score(one))
        return jax.lax.while_loop(lambda s: jnp.any(s[0] <= most), better, start)[1]

    def _weight(self, view: View, decodes: jax.Array, prefill: jax.Array) -> jax.Array:
        """w, from the tiles that decodes and prompts would fill."""
        waited = jnp.max(jnp.where(view.prefill > 0, view.waited, 0), axis=0)
        age = waited * view.tick_ms / 1000
        return (
            self.prefill_weight
            + self.age_weight * age
            + self.urgency_weight * age**2
            + self.backlog_weight * prefill
            + self.decode_weight * decodes
        )


PARAMETERS = (
    "prefill_weight",
    "age_weight",
    "urgency_weight",
    "backlog_weight",
    "decode_weight",
    "power",
)
"""The numbers that a search tunes."""
