"""The choice of a learned tile policy: what it sees, what it may do, and what it would do untrained.

A choice has two parts: how many tiles of b_0 tokens to open, decodes first, and which share of the
room that the decodes leave goes to prefill. All functions work on a View with any batch axes behind
the slots; axis 0 of their results counts features or choices.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from llmgym.agents.choice import Choice
from llmgym.baselines.tiles import DEFAULT_TILE, decodes_in_turn, tile_batch, tokens_waiting
from llmgym.core.checks import keep_number
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.interface import Sight

WINDOW_S = 5.0
"""The arrival rate is estimated from the requests younger than this: few leave before that age."""

MANY, OLD_S = 8, 10.0
"""Features are capped at MANY times b_max prompt tokens, and at ages of OLD_S seconds."""

FEATURES = (
    "prompt_tokens",
    "prompts",
    "decodes",
    "decode_sawtooth",
    "work_sawtooth",
    "oldest_prompt",
    "oldest_gap",
    "arriving_load",
    "progress",
    "about_to_finish",
    "free_seats",
    "free_memory",
)


class Options(NamedTuple):
    """The batches from which a decision chooses: one for each number of tiles (tiles, ...)."""

    decodes: jax.Array  # D
    prompts: jax.Array  # P, all prompt tokens left
    available: jax.Array  # decode tokens that seats and memory let run
    runnable: jax.Array  # prompt tokens that they let run
    tile: jax.Array  # b_0
    sizes: jax.Array  # tokens that the tiles hold (tiles, ...)
    decoded: jax.Array  # d_k, decode tokens (tiles, ...)
    prefilled: jax.Array  # p_k, prompt tokens (tiles, ...)
    ms: jax.Array  # t_k (tiles, ...)
    limited: bool  # whether requests or memory are limited


@dataclass(frozen=True)
class TileChoice(Choice):
    """Observation and action of a learned tile policy.

    Features, of D decodes and P prompt tokens that wait (prompts are capped at MANY * b_max tokens and
    b_max requests, ages at OLD_S): log1p(P / tile); log1p of the number of requests with prompt left;
    D / tile; (D mod tile) / tile; ((D + P) mod tile) / tile; log1p of the age in seconds of the oldest
    prompt; seconds since the longest unserved decode got a token; work of the requests of the last
    WINDOW_S seconds as a fraction of what the engine can serve; output so far over the mean output of
    the class, averaged over the requests that decode; how many of these have more than 3/4 of it, over
    the tile; free seats and free KV memory (fractions; 1 without a limit); the rate of tokens of each
    k, as a fraction of the best.

    Args:
        tiles: K, the most tiles; the last choice is a full batch, whatever the token budget.
        shares: choice s of ``shares`` gives prefill (s + 1) / shares of its room.
        prior: strength c of the prior logits c * log(score_k), score_k = (d_k + w * p_k) / t_k with
            d_k decode and p_k prompt tokens of a batch of k tiles and w = prompt_weight +
            age_weight * age of the oldest prompt in seconds (1 and 0: the rate of tokens). 0: none.
        guard: where D + P >= guard * b_max the choice is forced: to the full batch, which keeps every
            load below capacity stable (Theorem 2), or, where requests or memory are limited, to the
            best score_k with w = guard_weight. None: no guard.
    """

    tiles: int = 4
    shares: int = 1
    prior: float = 9.0
    prompt_weight: float = 1.0
    age_weight: float = 0.0
    guard: float | None = 8.0
    guard_weight: float = 0.8
    kind: ClassVar[str] = "tiles"

    def __post_init__(self) -> None:
        keep_number(self, "tiles", low=1, high=64, integer=True)
        keep_number(self, "shares", low=1, high=64, integer=True)
        for name in ("prior", "prompt_weight", "age_weight", "guard_weight"):
            keep_number(self, name, low=0)
        if self.guard is not None:
            keep_number(self, "guard", above=0)

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Number of choices in each part; a part with a single choice is left out."""
        return (self.tiles,) if self.shares == 1 else (self.tiles, self.shares)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return (*FEATURES, *(f"rate_{k + 1}" for k in range(self.tiles)))

    def look(self, view: View, memory: Any = None) -> Sight:
        """Features, mask and prior of a view."""
        return self.of_tiles(view)

    def of_tiles(self, view: View) -> Sight:
        """Features, mask and prior of the tiles, and of the shares where there are several."""
        options = self._options(view)
        seconds = view.tick_ms / 1000
        age = jnp.max(jnp.where(view.prefill > 0, view.waited, 0), axis=0) * seconds
        number = _count(self.tiles, age)
        mask = (number == 0) | (
            number * options.tile
            < jnp.minimum(options.available + options.runnable, view.token_budget)
        )
        weight = self.prompt_weight + self.age_weight * age
        prior = self.prior * jnp.log(jnp.maximum(_score(options, weight), 1e-6))
        forced = jnp.zeros(age.shape, bool)
        if self.guard is not None:
            forced = options.decodes + options.prompts >= self.guard * view.token_budget
            mask = jnp.where(forced, number == self._guarded(options, mask), mask)
        if self.shares > 1:
            share = _count(self.shares, age)
            most = share == self.shares - 1
            mask = jnp.concatenate([mask, most | ((options.runnable > 0) & ~forced)])
            less = jnp.broadcast_to(
                jnp.where(most, 0.0, -self.prior / 3), (self.shares, *age.shape)
            )
            prior = jnp.concatenate([prior, less])
        rate = _score(options, 1.0) / jnp.max(options.sizes / _ms(view, options.sizes), axis=0)
        features = jnp.concatenate([jnp.stack(_features(view, options, age)), rate])
        return Sight(features.astype(jnp.float32), mask, prior)

    def batch(self, view: View, choice: jax.Array) -> Batch:
        """The batch of a choice (parts, ...)."""
        tokens = self.tokens(view, choice[0])
        if self.shares == 1:
            return tile_batch(view, tokens)
        batch = fill(view, view.empty(), decodes_in_turn(view, tokens), tokens)
        room = jnp.maximum(tokens - batch.size, 0)
        given = (room * (choice[1] + 1) + self.shares - 1) // self.shares
        return fill(view, batch, view.prefill, batch.size + given)

    def tokens(self, view: View, tiles: jax.Array) -> jax.Array:
        """Tokens that a choice of tiles (...) may fill."""
        opened = jnp.minimum((tiles + 1) * tile_of(view), view.token_budget)
        return jnp.where(tiles == self.tiles - 1, view.token_budget, opened)

    def _options(self, view: View) -> Options:
        decodes, prompts = tokens_waiting(view)
        limited = view.max_num_seqs is not None or view.memory is not None
        available, runnable = decodes, prompts
        if limited:
            full = tile_batch(view, view.token_budget)
            available = jnp.sum(jnp.where(view.decoding, full.tokens, 0), axis=0)
            runnable = full.size - available
        tile = tile_of(view)
        number = _count(self.tiles, decodes)
        sizes = self.tokens(view, number)
        decoded = jnp.minimum(available, sizes)
        prefilled = jnp.minimum(runnable, sizes - decoded)
        ms = _ms(view, decoded + prefilled)
        waiting = (decodes, prompts, available, runnable)
        return Options(*waiting, tile, sizes, decoded, prefilled, ms, limited)

    def _guarded(self, options: Options, mask: jax.Array) -> jax.Array:
        """The forced choice of tiles."""
        if not options.limited:
            return jnp.sum(mask.astype(jnp.int32), axis=0) - 1
        score = jnp.where(mask, _score(options, self.guard_weight), -1.0)
        return jnp.argmax(score, axis=0)


def _features(view: View, options: Options, age: jax.Array) -> list[jax.Array]:
    """The features named in FEATURES, in that order."""
    decodes, prompts, tile = options.decodes, options.prompts, options.tile
    seconds = view.tick_ms / 1000
    young = view.live & (view.waited * seconds < WINDOW_S)
    mean = view.classes.mean_prefill + view.classes.mean_decode
    arriving = sum(_total(young & (view.job_class == k)) * mean[k] for k in range(mean.shape[0]))
    best = jnp.max(options.sizes / _ms(view, options.sizes), axis=0) * 1000  # tokens a second
    output = of_class(view, view.classes.mean_decode)
    done = jnp.where(view.decoding, view.generated / jnp.maximum(output, 1.0), 0.0)
    gap = jnp.max(jnp.where(view.decoding, view.unserved, 0), axis=0) * seconds
    seats, memory = jnp.ones_like(best), jnp.ones_like(best)
    if view.max_num_seqs is not None:
        seats = 1 - _total(view.started) / view.max_num_seqs
    if view.memory is not None:
        memory = view.memory.free / view.memory.blocks
    return [
        jnp.log1p(jnp.minimum(prompts, MANY * view.token_budget) / tile),
        jnp.log1p(jnp.minimum(_total(view.prefill > 0), view.token_budget)),
        decodes / tile,
        (decodes % tile) / tile,
        ((decodes + prompts) % tile) / tile,
        jnp.log1p(jnp.minimum(age, OLD_S)),
        jnp.minimum(gap, OLD_S),
        arriving / WINDOW_S / best,
        jnp.sum(done, axis=0) / jnp.maximum(decodes, 1),
        _total(done > 0.75) / tile,
        seats,
        memory,
    ]


def of_class(view: View, of_classes: jax.Array) -> jax.Array:
    """A number of each class (classes, ...) for every slot."""
    found = jnp.broadcast_to(of_classes[0], view.job_class.shape)
    for k in range(1, of_classes.shape[0]):
        found = jnp.where(view.job_class == k, of_classes[k], found)
    return found


def _score(options: Options, weight: jax.Array | float) -> jax.Array:
    """(d_k + weight * p_k) / t_k for every number of tiles."""
    return (options.decoded + weight * options.prefilled) / options.ms


def _ms(view: View, tokens: jax.Array) -> jax.Array:
    ms: jax.Array = view.batch_time.formula(jnp.maximum(tokens, 1).astype(jnp.float32), jnp)
    return ms


def tile_of(view: View) -> jax.Array:
    """b_0, tokens of a tile (...)."""
    tile = getattr(view.batch_time, "tile", DEFAULT_TILE)
    return jnp.broadcast_to(jnp.asarray(tile, jnp.int32), view.token_budget.shape)


def _count(choices: int, like: jax.Array) -> jax.Array:
    return jnp.arange(choices, dtype=jnp.int32).reshape((-1,) + (1,) * like.ndim)


def _total(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask.astype(jnp.int32), axis=0)
