"""What policies see of every engine."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.precision import in_32_bits
from llmgym.core.wide import Wide
from llmgym.engine import stream as streams
from llmgym.engine.memory.paged import cached_tokens
from llmgym.engine.params import Params
from llmgym.engine.plan import CHOICE, Plan
from llmgym.engine.state import State, Table, ticks_since
from llmgym.engine.view import Classes, Memory, View
from llmgym.scenario.prefixes import Contents


@in_32_bits
@jax.jit
def view(params: Params, state: State) -> View:
    """What policies see; of a network every array has an axis of engines before the batch axes."""
    table, shape = engine_table(params.plan, state.table), state.busy.shape

    def spread(x: jax.Array) -> jax.Array:
        return _spread(x, shape)

    seqs, memory = params.max_num_seqs, _memory(params, state, table)
    started = table.started if memory is None else memory.resident
    if table.planned is not None:
        started = started | (table.planned > 0)
    return View(
        **_request_columns(table, state.clock, params.lengths_known),
        started=started,
        token_budget=spread(params.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(spread, params.batch_time),
        tick_ms=spread(params.tick_ms),
        batches=state.batches,
        resident_limit=params.resident_limit,
        classes=_classes(params, state, table),
        # A lone engine is free at every decision; said as a constant, it costs nothing.
        free=jnp.ones(shape, bool) if params.lone and memory is None else state.busy == 0,
        memory=memory,
        busy=state.busy,
        present=jnp.broadcast_to(state.present, shape),
        arrived=jnp.broadcast_to(state.totals.arrived, shape),
        clock=jax.tree.map(lambda x: jnp.broadcast_to(x, shape), state.clock),
        rows_move=not params.lone,
    )


def engine_table(plan: Plan, table: Table) -> Table:
    """The stations that are engines."""
    if plan.stations == plan.engines:
        return table
    return jax.tree.map(lambda c: c[:, : plan.engines], table)


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A parameter () or (engines,) for every engine and environment."""
    return jnp.broadcast_to(x.reshape(*x.shape, *[1] * (len(shape) - x.ndim)), shape)


def _over(x: Any, shape: tuple[int, ...]) -> jax.Array:
    """A parameter (classes,) or of other leading axes for every engine and environment."""
    x = jnp.asarray(x)
    return jnp.broadcast_to(x.reshape(*x.shape, *[1] * len(shape)), (*x.shape, *shape))


def _request_columns(table: Table, now: Wide, lengths_known: bool) -> dict[str, Any]:
    """The entries of a View that the request table alone gives, at the clock ``now``."""
    live = table.live
    waited = jnp.where(live, ticks_since(now, table.arrival, table.arrival_high), 0)
    served = jnp.where(live, (now.low - table.last_token).astype(jnp.int32), 0)
    job_age = waited
    if table.job_arrival is not None:
        assert table.job_arrival_high is not None
        job_age = jnp.where(live, ticks_since(now, table.job_arrival, table.job_arrival_high), 0)
    return {
        "prefill": table.prefill,
        "decoding": (table.prefill == 0) & (table.decode > 0),
        "prompt": jnp.where(live, table.prompt, 0),
        "generated": jnp.where(live, table.output - table.decode, 0),
        "waited": waited,
        "unserved": jnp.where(table.last_token == table.arrival, waited, served),
        "job_age": job_age,
        "job_class": table.job_class,
        "decode_left": table.decode if lengths_known else None,
    }


def _memory(params: Params, state: State, table: Table) -> Memory | None:
    """The KV memory of every engine, where any is limited."""
    if params.kv_blocks is None:
        return None
    assert table.admitted is not None
    return Memory(
        cached=cached_tokens(table, params.prompt_samples),
        admitted=table.admitted,
        blocks=_spread(params.kv_blocks, state.busy.shape),
        block_size=params.block_size,
        prompt_samples=params.prompt_samples,
        swapped=table.swapped,
        pool=state.pool,
        contents=_contents(params, state, table),
    )


def _contents(params: Params, state: State, table: Table) -> Contents | None:
    """What the blocks of every request hold, with prefix caching."""
    if params.prefixes is None:
        return None
    key, drawn, closes = state.stream.key, params.prefixes.drawn, params.plan.closes_loop
    listed = len(drawn) < params.classes  # a replay: its classes have one source
    source = jnp.zeros_like(table.job_class) if listed else table.job_class
    word = jnp.zeros(table.request.shape, jnp.uint32)
    for k in range(len(drawn)):
        if closes[k]:  # the words of its class say whether it goes round again
            own = streams.words(key, k + CHOICE, table.request, 1, table.visit)[1]
        else:
            own = streams.words(key, k, table.request, 2, table.visit)[3]
        word = jnp.where(source == k, own, word)
    sources = jax.tree.map(lambda x: _over(x, state.busy.shape), params.prefixes)
    return Contents(sources, table.request, source, word, table.prompt, table.visit)


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


def _classes(params: Params, state: State, table: Table) -> Classes:
    """The request classes, and how many requests of each are at each engine and on their way there."""
    plan, shape, count = params.plan, state.busy.shape, params.classes
    in_prefill, in_decode, prompt_tokens = class_columns(table, count)
    serves = np.array(plan.group_of)[:, None] == np.array(plan.engine_group())[None]
    batch_axes = len(state.present.shape)

    def behind(here: jax.Array) -> jax.Array:
        total = params.total(here, axis=1).astype(jnp.float32)
        ahead = jnp.tensordot(params.follows, total, axes=1)
        return jnp.broadcast_to(ahead if params.lone else ahead[:, None], (count, *shape))

    here = serves[:, 0] if params.lone else serves
    weights = params.service_weights
    return Classes(
        mean_prefill=_over(params.means[0], shape),
        mean_decode=_over(params.means[1], shape),
        in_prefill=in_prefill,
        in_decode=in_decode,
        requests_behind=behind(in_prefill),
        prompt_tokens=prompt_tokens,
        tokens_behind=behind(prompt_tokens),
        hop=_over(np.array(plan.hop, np.int32), shape),
        priority=_over(params.priority, shape),
        here=jnp.broadcast_to(here.reshape(*here.shape, *[1] * batch_axes), (count, *shape)),
        most=int(serves.sum(axis=0).max()),
        counter=None if state.counters is None else state.counters.value,
        service_weights=None if weights is None else _over(weights, shape),
    )
