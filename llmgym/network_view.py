"""What policies see of a network: the View of an engine with an axis of engines."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.composition import Classes, View
from llmgym.engine_view import class_columns, request_columns
from llmgym.network_plan import Plan
from llmgym.network_state import (
    CallTable,
    Network,
    NetworkState,
)
from llmgym.precision import in_32_bits


@in_32_bits
def network_view(network: Network, state: NetworkState) -> View:
    """What policies see: every array of a View with an axis of engines before the batch axes."""
    plan = network.plan
    table = engine_table(plan, state.table)
    shape = state.busy.shape

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x.reshape(x.shape[0], *[1] * (len(shape) - 1)), shape)

    seqs = network.max_num_seqs
    return View(
        **request_columns(table, state.clock.low, table.job_arrival, network.lengths_known),
        started=table.started | (table.planned > 0),
        token_budget=spread(network.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(spread, network.batch_time),
        tick_ms=jnp.broadcast_to(network.tick_ms, shape),
        batches=state.batches,
        classes=_classes(network, table),
        resident_limit=network.resident_limit,
        free=state.busy == 0,
    )


def engine_table(plan: Plan, table: CallTable) -> CallTable:
    """The stations that are engines."""
    if plan.stations == plan.engines:
        return table
    return jax.tree.map(lambda c: c[:, : plan.engines], table)


def _classes(network: Network, table: CallTable) -> Classes:
    plan = network.plan
    shape = table.prefill.shape[1:]

    def spread(x: Any) -> jax.Array:
        x = jnp.asarray(x)
        return jnp.broadcast_to(x.reshape(-1, *[1] * len(shape)), (x.shape[0], *shape))

    in_prefill, in_decode, prompt_tokens = class_columns(table, plan.classes)
    serves = np.array(plan.group_of)[:, None] == np.array(plan.engine_group())[None]

    def behind(here: jax.Array) -> jax.Array:
        total = jnp.sum(here, axis=1)  # over engines: (classes, ...)
        ahead = jnp.tensordot(network.follows, total.astype(jnp.float32), axes=1)
        return jnp.broadcast_to(ahead[:, None], (plan.classes, *shape))

    return Classes(
        mean_prefill=spread(network.means[0]),
        mean_decode=spread(network.means[1]),
        in_prefill=in_prefill,
        in_decode=in_decode,
        requests_behind=behind(in_prefill),
        prompt_tokens=prompt_tokens,
        tokens_behind=behind(prompt_tokens),
        hop=spread(np.array(plan.hop, np.int32)),
        priority=spread(np.array(plan.priority, np.int32)),
        here=jnp.broadcast_to(
            serves.reshape(*serves.shape, *[1] * (len(shape) - 1)), (plan.classes, *shape)
        ),
        most=int(serves.sum(axis=0).max()),
    )
