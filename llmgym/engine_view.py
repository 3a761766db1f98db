"""What policies see of an engine; ``network_view`` has the same for a network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from llmgym import stream as streams
from llmgym.composition import Classes, View
from llmgym.kv_cache import Memory, cached_tokens
from llmgym.physics import Physics
from llmgym.precision import in_32_bits
from llmgym.prefixes import Contents
from llmgym.state import State, Table


def request_columns(
    table: Table, now: jax.Array, job_arrival: jax.Array, lengths_known: bool
) -> dict[str, Any]:
    """The entries of a View that the request table alone gives, at clock word ``now``."""
    live = table.live

    def since(time: jax.Array) -> jax.Array:
        return jnp.where(live, (now - time).astype(jnp.int32), 0)

    return {
        "prefill": table.prefill,
        "decoding": (table.prefill == 0) & (table.decode > 0),
        "prompt": jnp.where(live, table.prompt, 0),
        "generated": jnp.where(live, table.output - table.decode, 0),
        "waited": since(table.arrival),
        "unserved": since(table.last_token),
        "job_age": since(job_arrival),
        "job_class": table.job_class,
        "decode_left": table.decode if lengths_known else None,
    }


def class_columns(table: Table, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each class (classes, ...): requests in prefill, in decode, and prompt tokens left (float32)."""
    mine = [table.job_class == k for k in range(count)]

    def tally(values: jax.Array) -> jax.Array:
        return jnp.stack([jnp.sum(jnp.where(m, values, 0), axis=0) for m in mine])

    in_prefill = tally((table.prefill > 0).astype(jnp.int32))
    in_decode = tally(((table.prefill == 0) & (table.decode > 0)).astype(jnp.int32))
    # In two parts: all prompts together may have more than 2**31 tokens.
    high, low = tally(table.prefill >> 12), tally(table.prefill & 0xFFF)
    return in_prefill, in_decode, high.astype(jnp.float32) * 4096 + low.astype(jnp.float32)


@in_32_bits
def view(physics: Physics, state: State) -> View:
    """What a policy sees of the state."""
    table, shape = state.table, state.present.shape

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, shape)

    seqs = physics.max_num_seqs
    memory = None
    if physics.kv_blocks is not None:
        cached = cached_tokens(table, physics.prompt_samples)
        assert table.admitted is not None
        blocks = spread(physics.kv_blocks)
        memory = Memory(
            cached,
            table.admitted,
            blocks,
            physics.block_size,
            physics.prompt_samples,
            table.swapped,
            state.pool,
            _contents(physics, state),
        )
    return View(
        **request_columns(table, state.clock.low, table.arrival, physics.lengths_known),
        started=table.started if memory is None else memory.resident,
        token_budget=spread(physics.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(spread, physics.batch_time),
        tick_ms=spread(physics.tick_ms),
        batches=state.totals.batches,
        resident_limit=physics.resident_limit,
        classes=_classes(physics, state),
        free=jnp.ones(shape, bool),
        memory=memory,
    )


def _contents(physics: Physics, state: State) -> Contents | None:
    """What the blocks of every request hold, with prefix caching."""
    if physics.prefixes is None:
        return None
    table, key, shape = state.table, state.stream.key, state.present.shape
    drawn = physics.prefixes.drawn
    replay = len(drawn) < physics.means.shape[1]  # its classes have one source
    source = jnp.zeros_like(table.job_class) if replay else table.job_class
    word = jnp.zeros(table.request.shape, jnp.uint32)
    for k in range(len(drawn)):
        word = jnp.where(source == k, streams.words(key, k, table.request, 2)[3], word)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(*x.shape, *[1] * len(shape)), (*x.shape, *shape))

    sources = jax.tree.map(spread, physics.prefixes)
    return Contents(sources, table.request, source, word, table.prompt)


def _classes(physics: Physics, state: State) -> Classes:
    """The request classes and how many requests of each are present."""
    table, weights = state.table, physics.service_weights
    shape, count = table.prefill.shape[1:], physics.means.shape[1]

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(*x.shape, *[1] * len(shape)), (*x.shape, *shape))

    none = spread(jnp.zeros(count, jnp.int32))
    in_prefill, in_decode, prompt_tokens = class_columns(table, count)
    return Classes(
        mean_prefill=spread(physics.means[0]),
        mean_decode=spread(physics.means[1]),
        in_prefill=in_prefill,
        in_decode=in_decode,
        requests_behind=none,
        prompt_tokens=prompt_tokens,
        tokens_behind=none,
        hop=none,
        priority=spread(physics.priority),
        here=none == 0,
        most=count,
        counter=None if state.counters is None else state.counters.value,
        service_weights=None if weights is None else spread(weights),
    )
