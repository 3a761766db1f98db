"""Batches begin and end: what they hold, how long they run, and what their end credits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.arrays import once
from llmgym.core.wide import Wide
from llmgym.engine.block_pool import BlockPool
from llmgym.engine.make_view import engine_table
from llmgym.engine.memory.admission import admit
from llmgym.engine.memory.paged import cached_tokens
from llmgym.engine.params import Params
from llmgym.engine.state import State, Table
from llmgym.engine.view import Batch, View
from llmgym.scenario.batch_time import NO_ATTENTION, Attention


@dataclass(frozen=True)
class Begun:
    """The batches that start. Arrays are of engines unless they say otherwise."""

    batch: Batch
    table: Table  # of the engines: after preemption, and after what was found in memory
    pool: BlockPool | None
    ticks: jax.Array  # that the batch takes; 0 where none starts
    prefill_tokens: jax.Array
    decode_tokens: jax.Array
    clipped: jax.Array  # whether the batch asked for had to be cut
    preempted: jax.Array  # requests
    lost: jax.Array  # tokens to be computed again
    found: jax.Array  # (slots, engines...) tokens that prefix caching found
    swapped: jax.Array  # tokens to the host or back
    free_blocks: jax.Array  # of KV memory


@dataclass(frozen=True)
class Ended:
    """The batches and delays that end."""

    all: jax.Array  # (rows, stations...) requests and delays that are done
    requests: jax.Array  # (rows, engines...) those at engines
    before: Table  # of the engines before the credit; ``planned`` are the tokens that ended
    prefill_tokens: jax.Array  # credited, over all engines
    decode_tokens: jax.Array


def begin(params: Params, state: State, seen: View, batch: Batch, clipped: jax.Array) -> Begun:
    """Start feasible batches: memory admits and preempts, and what remains gives the batch time.

    Args:
        params: of the scenario.
        state: at the decision.
        seen: the view of it.
        batch: what ``fill.clip`` left of the batches; nothing of engines that are busy.
        clipped: of engines: whether their batch had to be cut; handed on as it is.
    """
    admission = admit(params, state, seen, engine_table(params.plan, state.table), batch)
    batch, table = admission.batch, admission.table
    tokens = batch.tokens
    size = jnp.sum(tokens, axis=0)
    decode_tokens = jnp.sum(jnp.where(seen.decoding, tokens, 0), axis=0)
    prefill_tokens = size - decode_tokens
    ticks = seen.batch_time.ticks(size, seen.tick_ms, _attention(params, seen, table, tokens))
    if params.swap_tokens_per_ms is not None:
        rate = params.swap_tokens_per_ms
        rate = rate.reshape(*rate.shape, *[1] * (size.ndim - rate.ndim))
        moving = admission.swapped / jnp.where(rate > 0, rate, 1) / params.tick_ms
        ticks = ticks + jnp.ceil(moving).astype(jnp.int32)
    return Begun(
        batch=batch,
        table=table,
        pool=admission.pool,
        ticks=jnp.where(size > 0, ticks, 0),
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        clipped=clipped,
        preempted=admission.preempted,
        lost=admission.lost,
        found=admission.found,
        swapped=admission.swapped,
        free_blocks=admission.free,
    )


def running(params: Params, state: State, seen: View, begun: Begun) -> Table:
    """The table (rows, stations...) while the batches run.

    Args:
        params: of the scenario.
        state: at the decision.
        seen: the view of it.
        begun: the batches that start, with the table of the engines after preemption.
    """
    plan, table = params.plan, begun.table
    if params.lone:
        return table
    if plan.stations > plan.engines:  # with the delays behind the engines again
        table = jax.tree.map(
            lambda new, old: jnp.concatenate([new, old[:, plan.engines :]], axis=1),
            table,
            state.table,
        )
    assert table.planned is not None
    assert table.service is not None
    tokens = plan.at_engines(begun.batch.tokens, axis=1)
    assert table.service_high is not None
    starts = plan.at_engines(seen.free)
    # Computed once for both columns.
    begins = once(jnp.any(begun.ticks > 0), lambda _: (tokens > 0) & ~table.started, tokens < 0)
    return replace(
        table,
        planned=jnp.where(starts, tokens, table.planned),
        service=jnp.where(begins, state.clock.low, table.service),
        service_high=jnp.where(begins, state.clock.high.astype(jnp.uint16), table.service_high),
    )


def end(
    params: Params, table: Table, ends: jax.Array, begun: Begun, now: Wide
) -> tuple[Table, Ended]:
    """Credit the batches that end, and end the delays that are over.

    Args:
        params: of the scenario.
        table: while the batches run.
        ends: of engines: whether the batch ends.
        begun: the batches that this step began; those of a lone engine end in the same step.
        now: clock.
    """
    plan = params.plan
    decoding = (table.prefill == 0) & (table.decode > 0)
    planned = begun.batch.tokens if table.planned is None else table.planned
    ends = ends if params.lone else plan.at_engines(ends)
    done = planned if params.lone else jnp.where(ends, planned, 0)  # a lone engine's has just ended
    credited, finished, served = credit(
        table, decoding, done, now, params.prompt_samples, jnp.any(ends)
    )
    requests = finished
    if plan.stations > plan.engines:
        station = jnp.arange(plan.stations).reshape((1, -1) + (1,) * (table.decode.ndim - 2))
        past = (now.low - table.last_token).astype(jnp.int32) >= 0
        over = (station == plan.engines) & (table.decode > 0) & past
        credited = replace(credited, decode=jnp.where(over, 0, credited.decode))
        requests, finished = finished[:, : plan.engines], finished | over
    if table.planned is not None:
        credited = replace(credited, planned=jnp.where(ends, 0, planned))
    prefill_tokens, decode_tokens = served
    if params.lone:
        prefill_tokens, decode_tokens = begun.prefill_tokens, begun.decode_tokens
    return credited, Ended(
        all=finished,
        requests=requests,
        before=engine_table(plan, replace(table, planned=done)),
        prefill_tokens=params.total(prefill_tokens),
        decode_tokens=params.total(decode_tokens),
    )


def _attention(params: Params, seen: View, table: Table, tokens: jax.Array) -> Attention:
    """What attention reads in the batch, where the batch time depends on it."""
    if not params.batch_time.needs_attention:
        return NO_ATTENTION
    before = cached_tokens(table, params.prompt_samples).astype(jnp.float32)
    chunk = tokens.astype(jnp.float32)
    decodes = seen.decoding & (tokens > 0)
    pairs = jnp.where(seen.decoding, 0.0, chunk * (before + chunk / 2))
    return Attention(
        decode_context=jnp.sum(jnp.where(decodes, before + 1, 0.0), axis=0),
        prefill_pairs=jnp.sum(pairs, axis=0),
    )


Pair = tuple[jax.Array, jax.Array]


def credit(
    table: Table,
    decoding: jax.Array,
    tokens: jax.Array,
    now: Wide,
    prompt_samples: bool,
    some: jax.Array,
) -> tuple[Table, jax.Array, Pair]:
    """Credit a table with the ``tokens`` that ran.

    Args:
        table: (rows, stations...) before.
        decoding: (rows, stations...) which requests are decoding.
        tokens: (rows, stations...) of each request, that ran.
        now: clock.
        prompt_samples: whether the last token of a prompt gives the first of the output.
        some: () whether any ran at all.

    Returns:
        The table; which requests completed (rows, stations...); and the prefill and decode tokens of
        each station (stations...).
    """

    def left(ran: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        prefill = jnp.where(decoding, table.prefill, table.prefill - tokens)
        if not prompt_samples:
            return prefill, jnp.where(decoding, table.decode - tokens, table.decode), decoding & ran
        samples = ran & (decoding | ((prefill == 0) & (table.decode > 0)))
        return prefill, table.decode - samples, samples

    def happened(_: Any) -> tuple[jax.Array, Pair]:
        ran = tokens > 0
        prefill, decode, samples = left(ran)
        finished = ran & (prefill == 0) & (decode == 0)
        # A request without output tokens has its answer when its prompt is done.
        first = (samples & (table.decode == table.output)) | (finished & (table.output == 0))
        bits = sum(m.astype(jnp.uint8) << n for n, m in enumerate((ran, finished, first)))
        of_kinds = jnp.where(decoding, 0, tokens), jnp.where(decoding, tokens, 0)
        return jnp.asarray(bits), (jnp.sum(of_kinds[0], axis=0), jnp.sum(of_kinds[1], axis=0))

    # Packed as bits and computed once; otherwise each column that they change would compute them again.
    no, none = jnp.zeros(tokens.shape, jnp.uint8), jnp.zeros(tokens.shape[1:], jnp.int32)
    bits, served = once(some, happened, (no, (none, none)))
    ran, finished, first = (bits & (1 << n) > 0 for n in range(3))
    prefill, decode, _ = left(ran)
    credited = replace(
        table,
        prefill=prefill,
        decode=decode,
        first_token=jnp.where(first, now.low, table.first_token),
        first_high=jnp.where(first, now.high.astype(jnp.uint16), table.first_high),
        last_token=jnp.where(ran, now.low, table.last_token),
    )
    return credited, finished, served
