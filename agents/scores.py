"""A learned order of requests: which prompts go first, on top of how many tiles to open.

The choice falls in parts, one after the other, which loses nothing against choosing a batch as a whole
(arXiv:2510.06033, arXiv:2502.13392): first the number of tiles, then prompt after prompt to fill the
room that the decodes leave. The next prompt is drawn among those that are left with the weight
exp(score): the Plackett-Luce model. Orders that fill the room alike are one choice, so its likelihood
counts only the prompts that were drawn before the room was full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.agents.choice import Sight
from llmgym.agents.neural import Layers, best_choice, init_mlp, log_prob_of, mlp
from llmgym.agents.tile_choice import OLD_S, TileChoice, of_class, tile_of
from llmgym.baselines.ranking import least_first
from llmgym.baselines.tiles import decodes_in_turn
from llmgym.core.arrays import first_rows, prefix_sum
from llmgym.core.checks import keep_number
from llmgym.core.errors import LLMGymError
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View

REQUEST_FEATURES = ("prompt_left", "begun", "waited", "output", "priority")


@dataclass(frozen=True)
class ScoreChoice(TileChoice):
    """Observation and action of a learned order, beside those of TileChoice.

    Features of each of the first ``requests`` prompts in order of arrival: log1p(prompt tokens left /
    tile); whether it has begun; log1p of its age in seconds, capped at OLD_S; log1p(output tokens /
    tile), of those to come where lengths are known, else of the mean of its class; the priority of its
    class. The prompts behind them are pooled in the features of TileChoice, and are served FCFS once
    none of the first is left.

    The network is a set network (Deep Sets, arXiv:1703.06114): a score depends on a prompt, on the mean
    of an embedding of all prompts, and on the features of TileChoice, not on the place in the line.

    Args:
        requests: M, the prompts that are scored.
        order: strength of the prior scores, -order * log(prompt tokens left): untrained, the
            shortest goes first. 0: none.
    """

    requests: int = 16
    order: float = 2.0
    kind: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "requests", low=1, high=256, integer=True)
        keep_number(self, "order", low=0)
        if self.shares != 1:
            raise LLMGymError(
                f"A learned order has no shares for prefill, got shares={self.shares}."
            )

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Number of tiles, number of prompts."""
        return (self.tiles, self.requests)

    @cached_property
    def inputs(self) -> int:
        """Entries of an observation."""
        return len(self.features) + len(REQUEST_FEATURES) * self.requests

    def look(self, view: View, memory: Any = None) -> Sight:
        """Features, mask and prior: those of the tiles, then those of prompt after prompt."""
        sight = self.of_tiles(view)
        slot, exists = first_rows(view.prefill > 0, self.requests)
        left = _at(view.prefill, slot, exists).astype(jnp.float32)
        features = _request_features(view, slot, exists, left).reshape(-1, *left.shape[1:])
        prior = -self.order * jnp.log(jnp.maximum(left, 1.0))
        return Sight(
            jnp.concatenate([sight.features, features]),
            jnp.concatenate([sight.mask, exists]),
            jnp.concatenate([sight.prior, prior]),
        )

    def init_actor(self, key: jax.Array, hidden: int) -> Mapping[str, Layers]:
        """Networks for the tiles and for the scores: the untrained policy is nearly its prior."""
        tiles, embed, context, score = jax.random.split(key, 4)
        own, shared = len(REQUEST_FEATURES), len(self.features)
        return {
            "tiles": init_mlp(tiles, (shared, hidden, hidden, self.tiles), 0.01),
            "embed": init_mlp(embed, (own, hidden, hidden), 1.0),
            "context": init_mlp(context, (hidden + shared, hidden, hidden), 1.0),
            "score": init_mlp(score, (own + hidden, hidden, 1), 0.01),
        }

    def logits(self, actor: Mapping[str, Layers], features: jax.Array) -> jax.Array:
        """Logits of the tiles, then scores of the prompts (..., choices)."""
        shared = features[..., : len(self.features)]
        own = features[..., len(self.features) :]
        own = own.reshape(*own.shape[:-1], len(REQUEST_FEATURES), self.requests)
        own = jnp.moveaxis(own, -2, -1)
        exists = own[..., :1] > 0  # a prompt with tokens left
        embedded = jnp.where(exists, jnp.tanh(mlp(actor["embed"], own)), 0.0)
        pooled = jnp.sum(embedded, axis=-2) / jnp.maximum(jnp.sum(exists, axis=-2), 1)
        context = jnp.tanh(mlp(actor["context"], jnp.concatenate([pooled, shared], axis=-1)))
        around = jnp.broadcast_to(context[..., None, :], (*own.shape[:-1], context.shape[-1]))
        score = mlp(actor["score"], jnp.concatenate([own, around], axis=-1))[..., 0]
        return jnp.concatenate([mlp(actor["tiles"], shared), score], axis=-1)

    def choose(self, view: View, scores: jax.Array) -> jax.Array:
        """The best number of tiles, then the rank of every prompt; M where there is no room for it."""
        tiles = best_choice((self.tiles,), scores)
        slot, exists = first_rows(view.prefill > 0, self.requests)
        tokens = self.tokens(view, jnp.moveaxis(tiles, -1, 0)[0])
        room = jnp.maximum(tokens - jnp.sum(view.decode, axis=0), 0)
        wanted = jnp.minimum(_at(view.prefill, slot, exists), room + 1)
        wanted, exists = (jnp.moveaxis(x, 0, -1) for x in (wanted, exists))
        score = jnp.where(exists, scores[..., self.tiles :], -jnp.inf)
        number = jnp.arange(self.requests)
        mine, other = score[..., :, None], score[..., None, :]
        earlier = number[None, :] < number[:, None]
        ahead = (other > mine) | ((other == mine) & earlier)
        rank = jnp.sum(ahead.astype(jnp.int32), axis=-1)
        before = jnp.sum(jnp.where(ahead, wanted[..., None, :], 0), axis=-1)
        drawn = exists & (before < room[..., None])
        return jnp.concatenate([tiles, jnp.where(drawn, rank, self.requests)], axis=-1)

    def log_prob_of(self, log_p: jax.Array, choice: jax.Array) -> jax.Array:
        """Log probability of a choice (..., 1 + M): of its tiles, and of the prompts drawn."""
        tiles = log_prob_of((self.tiles,), log_p, choice)
        rank, score = choice[..., 1:], log_p[..., self.tiles :]
        left = rank[..., None, :] >= rank[..., :, None]  # what each was drawn from
        among = jnp.where(left, score[..., None, :], -jnp.inf)
        drawn = score - jax.nn.logsumexp(among, axis=-1)
        return tiles + jnp.sum(jnp.where(rank < self.requests, drawn, 0.0), axis=-1)

    def batch(self, view: View, choice: jax.Array) -> Batch:
        """The batch of a choice (1 + M, ...): decodes in turn, then prompts in their order."""
        tokens = self.tokens(view, choice[0])
        batch = fill(view, view.empty(), decodes_in_turn(view, tokens), tokens)
        waiting = view.prefill > 0
        number = prefix_sum(waiting) - 1
        scored = waiting & (number < self.requests)
        place = jnp.clip(number, 0, self.requests - 1)
        rank = jnp.take_along_axis(choice[1:], place, axis=0)
        rank = jnp.where(scored, rank, self.requests)
        return least_first(view, batch, view.prefill, rank, tokens)


def _at(column: jax.Array, slot: jax.Array, exists: jax.Array) -> jax.Array:
    return jnp.where(exists, jnp.take_along_axis(column, slot, axis=0), 0)


def _request_features(view: View, slot: jax.Array, exists: jax.Array, left: jax.Array) -> jax.Array:
    """The features named in REQUEST_FEATURES (features, M, ...); zeros where there is no prompt."""
    output = view.decode_left
    if output is None:
        output = of_class(view, view.classes.mean_decode)
    tile, waited = tile_of(view), view.waited * (view.tick_ms / 1000)
    columns = [
        jnp.log1p(left / tile),
        _at(view.prefill < view.prompt, slot, exists),
        jnp.log1p(jnp.minimum(_at(waited, slot, exists), OLD_S)),
        jnp.log1p(_at(output, slot, exists) / tile),
        _at(view.urgency, slot, exists),
    ]
    return jnp.stack([x.astype(jnp.float32) for x in columns])
