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
from llmgym.precision import in_32_bits
from llmgym.prefixes import Sources, no_prefix
from llmgym.pytree import register
from llmgym.scenario import Scenario
from llmgym.state import Table
from llmgym.theory.memory import longest_request
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
    swap_tokens_per_ms: jax.Array | None  # None: preemption is by recompute
    prefixes: Sources | None  # with prefix caching: what requests begin with
    pool_size: int = field(metadata={"static": True})  # room for kv_blocks, with prefix caching
    block_size: int = field(metadata={"static": True})
    prompt_samples: bool = field(metadata={"static": True})  # the end of a prompt yields a token
    slots: int = field(metadata={"static": True})
    fresh: int = field(metadata={"static": True})  # rows behind the slots, for requests to come
    resident_limit: bool = field(metadata={"static": True})
    lengths_known: bool = field(metadata={"static": True})


@in_32_bits
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
    cache = engine.kv_cache
    caching = cache is not None and cache.prefix_caching
    swap = None if cache is None else cache.swap_tokens_per_ms
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
        kv_blocks=None if cache is None else jnp.int32(cache.blocks),
        swap_tokens_per_ms=None if swap is None else jnp.float32(swap),
        prefixes=_prefixes(scenario) if caching else None,
        pool_size=0 if cache is None else -(-cache.blocks // 64) * 64,
        service_weights=None if weights is None else jnp.asarray(weights, jnp.int32),
        block_size=1 if cache is None else cache.block_size,
        prompt_samples=engine.prompt_samples,
        slots=scenario.slots,
        fresh=fresh,
        resident_limit=engine.seq_limit == "resident",
        lengths_known=scenario.lengths_known,
    )


def _prefixes(scenario: Scenario) -> Sources:
    """What requests begin with, for prefix caching."""
    cache = scenario.engine.kv_cache
    assert cache is not None
    longest = min(longest_request(scenario), cache.tokens)
    # In steps, so that engines of about the same size share what was compiled.
    most = -(-int(-(-longest // cache.block_size)) // 8) * 8
    sources, counts = [], []
    if isinstance(scenario.workload, Replay):
        sources.append(scenario.workload.prefix_sampler(cache.block_size))
        ids, tokens = scenario.workload.prefix_ids, scenario.workload.prefix_tokens
        counts.append(0 if ids is None else (np.max(ids) + 1) * (tokens // cache.block_size))
    for job in scenario.job_types:
        shared = job.stages[0].shared_prefix
        sources.append(no_prefix() if shared is None else shared.sampler())
        counts.append(
            0 if shared is None else shared.variants * (shared.tokens // cache.block_size)
        )
    first = np.concatenate([[0], np.cumsum(counts)])
    return Sources(tuple(sources), jnp.asarray(first, jnp.int32), most, cache.block_size)


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
    found: jax.Array  # (slots, ...) tokens that prefix caching found in memory
    swapped: jax.Array  # tokens that went to the host or back
    free_blocks: jax.Array  # of KV memory while the batch ran
    idle: jax.Array  # whether no token ran
    request_ticks: jax.Array  # integral of the number present over the step, float32
    batch: Batch  # that ran
    finished: jax.Array  # (slots, ...) whether the request completed
    table: Table  # after crediting, before arrivals; finished rows still carry their times
    service: Service | None  # of each client, where the scenario weighs it
