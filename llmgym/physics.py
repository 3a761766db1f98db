"""An engine as arrays: its parameters, and what a step of it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.arrays import GROUP
from llmgym.batch_time import BatchTime
from llmgym.composition import Batch
from llmgym.errors import LLMGymError
from llmgym.fairness import Service
from llmgym.pytree import register
from llmgym.scenario import Scenario
from llmgym.state import Table
from llmgym.workload import Replay

COMPACT_EVERY = 16
"""Steps between compactions of the table. Empty rows are inert, so when it happens changes no result."""


@register
@dataclass(frozen=True)
class Physics:
    """A scenario lowered to arrays. Every number is traced; sizes and structure are static."""

    batch_time: BatchTime
    token_budget: jax.Array
    max_num_seqs: jax.Array | None
    tick_ms: jax.Array
    burst: jax.Array  # requests of each job type that arrive at time 0
    arrivals: tuple[Any, ...]
    lengths: tuple[Any, ...]
    means: jax.Array  # (2, classes) mean prompt and output tokens
    priority: jax.Array  # of each class
    kv_blocks: jax.Array | None  # of KV memory; None: no limit
    service_weights: jax.Array | None  # (2,) of a prompt and of an output token; None: not counted
    block_size: int = field(metadata={"static": True})
    prompt_samples: bool = field(metadata={"static": True})  # the end of a prompt yields a token
    slots: int = field(metadata={"static": True})
    fresh: int = field(metadata={"static": True})  # rows behind the slots, for requests to come
    resident_limit: bool = field(metadata={"static": True})
    lengths_known: bool = field(metadata={"static": True})


def lower(scenario: Scenario, burst: int = 0) -> Physics:
    """The scenario as traced parameters: one compilation serves every load and every constant.

    With ``burst`` the first requests of each job type, that many, are there at time 0: a hot start.
    """
    if scenario.is_network:
        raise LLMGymError(
            f"Scenario {scenario.name!r} is a network of engines; use llmgym/Network-v0."
        )
    engine, workload, weights = scenario.engine, scenario.workload, scenario.service_weights
    ticks_per_s = 1000.0 / scenario.tick_ms
    if isinstance(workload, Replay):
        arrivals: tuple[Any, ...] = (workload.gap_sampler(ticks_per_s),)
        lengths: tuple[Any, ...] = (workload.length_sampler(),)
    else:
        arrivals = tuple(j.arrivals.sampler(ticks_per_s) for j in workload)
        lengths = tuple(j.stages[0].sampler() for j in workload)
    # Room for the arrivals that full batches bring between two compactions; more only cost a pass.
    per_batch = engine.token_budget / max(scenario.mean_prefill + scenario.mean_decode, 1.0)
    fresh = int(np.clip(np.ceil(1.25 * COMPACT_EVERY * per_batch), 16, 256))
    fresh += -(scenario.slots + fresh) % GROUP
    return Physics(
        batch_time=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), engine.batch_time),
        token_budget=jnp.int32(engine.token_budget),
        max_num_seqs=None if engine.max_num_seqs is None else jnp.int32(engine.max_num_seqs),
        tick_ms=jnp.float32(scenario.tick_ms),
        burst=jnp.int32(burst),
        arrivals=arrivals,
        lengths=lengths,
        means=jnp.asarray(scenario.class_means, jnp.float32).T,
        priority=jnp.asarray(scenario.class_priorities, jnp.int32),
        kv_blocks=None if engine.kv_cache is None else jnp.int32(engine.kv_cache.blocks),
        service_weights=None if weights is None else jnp.asarray(weights, jnp.int32),
        block_size=1 if engine.kv_cache is None else engine.kv_cache.block_size,
        prompt_samples=engine.prompt_samples,
        slots=scenario.slots,
        fresh=fresh,
        resident_limit=engine.seq_limit == "resident",
        lengths_known=scenario.lengths_known,
    )


@register
@dataclass(frozen=True)
class StepInfo:
    """What happened in one step. Per-slot arrays refer to ``table``, the requests at the batch's end."""

    duration: jax.Array  # ticks, int32
    batch_ticks: jax.Array  # of the batch; 0 if none ran
    prefill_tokens: jax.Array  # in the batch
    decode_tokens: jax.Array
    requests: jax.Array  # in the batch
    completed: jax.Array  # requests
    arrived: jax.Array  # requests, those dropped included
    dropped: jax.Array  # requests
    clipped: jax.Array  # whether the batch asked for had to be cut
    preempted: jax.Array  # requests that lost their KV memory; ``batch.preempt`` says who
    lost: jax.Array  # tokens that they have to compute again
    idle: jax.Array  # whether no token ran
    request_ticks: jax.Array  # integral of the number present over the step, float32
    batch: Batch  # that ran
    finished: jax.Array  # (slots, ...) whether the request completed
    table: Table  # after crediting, before arrivals; finished rows still carry their times
    service: Service | None  # of each client, where the scenario weighs it
