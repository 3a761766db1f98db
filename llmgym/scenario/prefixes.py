"""Which requests begin the same way: names for what the blocks of KV memory hold, for prefix caching.

Every block of a request has a number (uint32) that stands for its tokens and all before them: the same
for requests that share them, its own otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import keep_number
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.pytree import register
from llmgym.scenario.arrivals import uniform

MOST_CELLS = 2**25
"""Largest table of what prompts begin with: requests times the longest list."""


@dataclass(frozen=True)
class SharedPrefix:
    """Prompts that begin with a system prompt of ``tokens``, one of ``variants`` at random.

    A prompt that is shorter is a part of it.
    """

    tokens: int
    variants: int = 1

    def __post_init__(self) -> None:
        limits = {"low": 1, "integer": True}
        keep_number(self, "tokens", "tokens of a shared prefix", high=2**24, **limits)
        keep_number(self, "variants", "variants of a shared prefix", high=2**16, **limits)

    def sampler(self) -> Variants:
        """Its device form."""
        return Variants(jnp.int32(self.tokens), jnp.int32(self.variants))


@register
@dataclass(frozen=True)
class Variants:
    """Device form of a shared prefix (or of none: 0 tokens)."""

    tokens: jax.Array
    variants: jax.Array

    def __call__(self, request: jax.Array, word: jax.Array, most: int, size: int) -> jax.Array:
        """Numbers (most,) of the blocks of a request that are shared, -1 of the others."""
        blocks, row = self.tokens // size, jnp.arange(most, dtype=jnp.int32)
        chosen = jnp.minimum((uniform(word) * self.variants).astype(jnp.int32), self.variants - 1)
        return jnp.where(row < blocks, chosen * blocks + row, -1)


@register
@dataclass(frozen=True)
class Listed:
    """Device form of a list: request n begins with the stretches of text in row n, -1 past its end."""

    ids: jax.Array  # (requests, stretches)
    tokens: int = field(metadata={"static": True})  # of one stretch

    def __call__(self, request: jax.Array, word: jax.Array, most: int, size: int) -> jax.Array:
        per, (rows, stretches) = self.tokens // size, self.ids.shape
        row = jnp.arange(most, dtype=jnp.int32)
        mine = self.ids[jnp.minimum(request, rows - 1)]
        mine = mine[jnp.minimum(row // per, stretches - 1)] if stretches else jnp.full(most, -1)
        return jnp.where((mine >= 0) & (row // per < stretches), mine * per + row % per, -1)


@dataclass(frozen=True)
class PrefixSource:
    """Where the beginnings of some requests come from.

    Args:
        drawn: the device form.
        count: how many different numbers it gives to blocks.
    """

    drawn: Variants | Listed
    count: int


@register
@dataclass(frozen=True)
class Sources:
    """Where the beginnings of requests come from, one source for each class, or one for a replay."""

    drawn: tuple[Any, ...]  # Variants or Listed
    first: jax.Array  # (sources + 1,) first number of each, then of unshared blocks
    most: int = field(metadata={"static": True})  # blocks of a request
    block_size: int = field(metadata={"static": True})


@register
@dataclass(frozen=True)
class Contents:
    """What the blocks of the requests in the table hold. All arrays have batch axes last."""

    sources: Sources
    request: jax.Array  # (slots, ...) number within its job type
    source: jax.Array  # (slots, ...) class
    word: jax.Array  # (slots, ...) random, that chooses among variants
    prompt: jax.Array  # (slots, ...) tokens
    visit: jax.Array | None = None  # (slots, ...) how often the job had been at this call before

    def of(self, row: jax.Array) -> jax.Array:
        """Numbers (most,), uint32, of the blocks of the request in a row, in one environment."""
        most, size = self.sources.most, self.sources.block_size
        request, source, word = self.request[row], self.source[row], self.word[row]
        block = jnp.arange(most, dtype=jnp.int32)
        again = 0 if self.visit is None else self.visit[row] << 20
        whose = ((request + again) * len(self.sources.drawn) + source).astype(jnp.uint32)
        # Numbers may come again after a long time: by then no block holds what they stood for.
        own = self.sources.first[-1].astype(jnp.uint32) + whose * most
        number = own + block.astype(jnp.uint32)
        for k, drawn in enumerate(self.sources.drawn):
            common = drawn(request, word, most, size)
            mine = (common >= 0) & ((block + 1) * size <= self.prompt[row]) & (source == k)
            number = jnp.where(mine, (self.sources.first[k] + common).astype(jnp.uint32), number)
        return number


def no_prefix() -> Variants:
    """The device form for requests that share nothing."""
    return Variants(jnp.int32(0), jnp.int32(1))


def check_ids(ids: Any, tokens: Any, requests: int) -> np.ndarray:
    """The beginnings of listed prompts as a table (requests, stretches) int32, -1 past the end of a row.

    Args:
        ids: for each request a list of numbers, one for each stretch of text; or such a table.
        tokens: of a stretch.
        requests: how many there are.

    Raises:
        LLMGymError: something else, a number out of range, or not one row for each request.
    """
    check_number("prefix_tokens", tokens, low=1, high=2**20, integer=True)
    if isinstance(ids, np.ndarray) and ids.ndim == 2 and np.issubdtype(ids.dtype, np.integer):
        table = ids
    else:
        try:
            lists = [list(row) for row in ids]
            whole = all(
                isinstance(n, (int, np.integer)) and -1 <= n < 2**24 for row in lists for n in row
            )
        except TypeError:
            whole = False
        if not whole:
            raise LLMGymError(
                "prefix_ids must be a list of whole numbers from 0 to 2**24 - 1 for each request."
            )
        width = -(-max(map(len, lists), default=0) // 8) * 8
        if len(lists) * width > MOST_CELLS:
            raise LLMGymError(
                f"prefix_ids has {len(lists):,} rows and one of {width:,} entries: the table of "
                f"{MOST_CELLS:,} cells is too small. Cut the long lists, or take fewer requests."
            )
        table = np.full((len(lists), width), -1, np.int32)
        for row, values in zip(table, lists, strict=True):
            row[: len(values)] = values
    if len(table) != requests:
        raise LLMGymError(f"prefix_ids has {len(table)} rows for {requests} requests.")
    if table.size and not -1 <= table.min() <= table.max() < 2**24:
        raise LLMGymError("prefix_ids must be numbers from 0 to 2**24 - 1; renumber them.")
    return np.asarray(table, np.int32)


def dense(rows: Sequence[Sequence[Any]]) -> list[list[int]]:
    """Hash values of any kind as numbers from 0, in order of appearance."""
    number: dict[Any, int] = {}
    return [[number.setdefault(value, len(number)) for value in row] for row in rows]


def known_tokens(ids: np.ndarray, tokens: int, prompts: np.ndarray, block_size: int) -> np.ndarray:
    """Tokens of each prompt that a memory which never forgets would hold: the most that prefix caching saves.

    Args:
        ids: (requests, stretches), as ``check_ids`` gives them, in the order of arrival.
        tokens: of a stretch, a multiple of ``block_size``.
        prompts: tokens of each prompt, (requests,).
        block_size: tokens in a block.

    Returns:
        (requests,) int64: whole blocks, which leave at least one token of the prompt to compute.
    """
    seen: set[int] = set()
    saved = np.zeros(len(ids), np.int64)
    for n, row in enumerate(ids):
        own = row[row >= 0].tolist()
        hits = next((i for i, value in enumerate(own) if value not in seen), len(own))
        most = max(int(prompts[n]) - 1, 0) // block_size * block_size
        saved[n] = min(hits * tokens, most)
        seen.update(own)
    return saved
