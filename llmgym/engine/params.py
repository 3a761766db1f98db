"""A scenario as arrays: the parameters of its engines, of what arrives, and of how calls go on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import GROUP
from llmgym.core.errors import LLMGymError
from llmgym.core.precision import in_32_bits
from llmgym.core.pytree import register
from llmgym.engine.mixed_times import stacked_times
from llmgym.engine.plan import CHOICE, Plan
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.engine import Engine
from llmgym.scenario.prefixes import Sources
from llmgym.scenario.request_size import longest_call
from llmgym.scenario.scenario import Scenario

COMPACT_EVERY = 16
"""Steps between compactions of the table. Empty rows are inert, so when it happens changes no result."""

CHAINS_TAKEN, JOBS_TAKEN = (8, 8), (2, 4)
"""Most jobs that begin, and most calls that are passed on, in one round: where all jobs are chains of
calls, and where they are not. If there are more, another round follows."""

CHAINS_JOIN, JOBS_JOIN = 8, 6
"""Most calls that join the queues in one round, likewise; or as many as one event starts, if that is more."""

NO_LIMIT = 2**20
"""Requests in a batch of an engine without a limit, where other engines have one."""

NO_MEMORY_LIMIT = 2**30
"""Tokens that fit into an engine without KV memory, where other engines have one."""


@register
@dataclass(frozen=True)
class Params:
    """A scenario lowered to arrays. Every number is traced; sizes and structure are static.

    Arrays of engines have shape (engines,), or () where one engine serves all by itself (``lone``):
    tables, views and batches then have no axis of engines either.
    """

    batch_time: BatchTime
    token_budget: jax.Array
    max_num_seqs: jax.Array | None
    kv_blocks: jax.Array | None  # of KV memory; None: no engine has a limit
    swap_tokens_per_ms: jax.Array | None  # 0: preemption is by recompute; None: everywhere
    tick_ms: jax.Array  # ()
    burst: jax.Array  # () or (...) requests or jobs of each type that are there at time 0
    first: jax.Array  # () or (...) number of the request with which a list of them begins
    arrivals: tuple[Any, ...]  # of each job type
    lengths: tuple[Any, ...]  # of each job type; of a network the different ones
    means: jax.Array  # (2, classes) mean prompt and output tokens
    priority: jax.Array  # (classes,)
    follows: jax.Array  # (classes, classes) calls that a call brings on, delays skipped
    service_weights: jax.Array | None  # (2,) of a prompt and of an output token; None: not counted
    prefixes: Sources | None  # with prefix caching: what requests begin with
    plan: Plan = field(metadata={"static": True})
    lone: bool = field(metadata={"static": True})
    length_of: tuple[int, ...] = field(metadata={"static": True})  # of each class, in ``lengths``
    slots: int = field(metadata={"static": True})  # most requests of a lone engine, or most jobs
    rows: int = field(metadata={"static": True})  # of the table of an engine
    fresh: int = field(metadata={"static": True})  # rows behind them, for requests that join
    coming: int = field(metadata={"static": True})  # jobs drawn in advance
    pool_size: int = field(metadata={"static": True})  # room for kv_blocks, with prefix caching
    block_size: int = field(metadata={"static": True})
    limited: tuple[bool, ...] = field(metadata={"static": True})  # engines with KV memory
    prompt_samples: bool = field(metadata={"static": True})  # the end of a prompt yields a token
    resident_limit: bool = field(metadata={"static": True})
    lengths_known: bool = field(metadata={"static": True})

    @property
    def classes(self) -> int:
        """Number of request classes."""
        return self.means.shape[1]

    @property
    def joining(self) -> int:
        """Most calls that join the queues in one round."""
        return _joining(self.plan)

    @property
    def taken(self) -> tuple[int, int]:
        """Most jobs that begin, and most calls that are passed on, in one round."""
        jobs, calls = JOBS_TAKEN if self.plan.routes else CHAINS_TAKEN
        # A job that is refused, as memory could never hold its call, leaves its slot to the next.
        return (jobs if self.kv_blocks is None else 1), calls

    def total(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """The sum over the engines, which stand in ``axis``."""
        return x if self.lone else jnp.sum(x, axis=axis)


@in_32_bits
def lower(scenario: Scenario, burst: int = 0, as_network: bool = False) -> Params:
    """The scenario as traced parameters: one compilation serves every load and every constant.

    Args:
        scenario: one engine or a network of them.
        burst: requests (jobs) of each type that are there at time 0: a start from a backlog.
        as_network: give one engine the queues of a network too: slower, and with the same results.

    Raises LLMGymError for what a network of engines cannot have.
    """
    plan, lone = Plan.of(scenario), not (scenario.is_network or as_network)
    engines = [e for e in scenario.engines for _ in range(e.replicas)]
    _check(scenario, plan, engines)
    demand, classes = scenario.demand, scenario.classes
    arrivals, lengths = demand.gap_samplers(1000.0 / scenario.tick_ms), demand.length_samplers()
    if lone:  # one law for each stream
        lengths = tuple(lengths[k] for k in demand.length_of[: len(arrivals)])
    capped = [e for e in engines if e.max_num_seqs is not None]
    caches = [e.kv_cache for e in engines]
    limited = [c for c in caches if c is not None]
    swaps = [0.0 if c is None else c.swap_tokens_per_ms or 0.0 for c in caches]

    def each(values: list[Any], kind: Any) -> jax.Array:
        return jnp.asarray(values[0] if lone else values, kind)

    seqs = [e.max_num_seqs or NO_LIMIT for e in engines]
    block_size = limited[0].block_size if limited else 1
    blocks = [NO_MEMORY_LIMIT // block_size if c is None else c.blocks for c in caches]
    weights = scenario.service_weights
    return Params(
        batch_time=stacked_times([e.batch_time for e in engines], lone),
        token_budget=each([e.token_budget for e in engines], jnp.int32),
        max_num_seqs=each(seqs, jnp.int32) if capped else None,
        kv_blocks=each(blocks, jnp.int32) if limited else None,
        swap_tokens_per_ms=each(swaps, jnp.float32) if any(swaps) else None,
        tick_ms=jnp.float32(scenario.tick_ms),
        burst=jnp.int32(burst),
        first=jnp.int32(0),
        arrivals=arrivals,
        lengths=lengths,
        means=jnp.asarray([[one.mean_prefill, one.mean_decode] for one in classes], jnp.float32).T,
        priority=jnp.asarray([one.priority for one in classes], jnp.int32),
        follows=jnp.asarray(_follows(scenario, plan), jnp.float32),
        service_weights=None if weights is None else jnp.asarray(weights, jnp.int32),
        prefixes=_prefixes(scenario) if any(c.prefix_caching for c in limited) else None,
        plan=plan,
        lone=lone,
        length_of=demand.length_of,
        pool_size=-(-max((c.blocks for c in limited), default=0) // 64) * 64,
        block_size=block_size,
        limited=tuple(c is not None for c in caches),
        prompt_samples=engines[0].prompt_samples,
        resident_limit=bool(capped) and capped[0].seq_limit == "resident",
        lengths_known=scenario.lengths_known,
        **_sizes(scenario, plan, lone),
    )


def _check(scenario: Scenario, plan: Plan, engines: list[Engine]) -> None:
    if plan.classes > CHOICE and scenario.is_network:
        raise LLMGymError(f"A network has at most {CHOICE} stages in all, got {plan.classes}.")
    caching = [e.kv_cache is not None and e.kv_cache.prefix_caching for e in engines]
    if any(caching) and not all(caching):
        raise LLMGymError(
            "Either all engines have prefix caching or none: give every engine a kv_cache with it."
        )


def _joining(plan: Plan) -> int:
    return max(plan.most_begun, JOBS_JOIN if plan.routes else CHAINS_JOIN)


def _sizes(scenario: Scenario, plan: Plan, lone: bool) -> dict[str, int]:
    """Rows of the tables and of the queue of jobs to come."""
    # Room for the calls that full batches bring between two compactions; more only cost another pass.
    per_batch = COMPACT_EVERY * _calls_per_batch(scenario)
    names = [engine.name for engine in scenario.engines]
    rows = scenario.slots * (1 if lone else scenario.demand.most_at_once(names))
    if rows > 2**15:
        raise LLMGymError(f"{scenario.slots} slots make tables of {rows} rows; at most {2**15}.")
    share = 1.25 if lone else (3 if plan.routes else 2)
    fresh = int(np.clip(np.ceil(share * per_batch), 16, 256))
    if not lone:
        fresh = max(fresh, _joining(plan))
    fresh += -(rows + fresh) % GROUP
    coming = 0 if lone else int(np.clip(np.ceil(1.25 * per_batch), 16, 256))
    return {"slots": scenario.slots, "rows": rows, "fresh": fresh, "coming": coming}


def _calls_per_batch(scenario: Scenario) -> float:
    """Calls that join an engine in the time of a full batch, about."""
    tokens = (scenario.mean_prefill + scenario.mean_decode) / scenario.demand.calls_per_job
    return max(e.token_budget for e in scenario.engines) / max(tokens, 1.0)


def _follows(scenario: Scenario, plan: Plan) -> np.ndarray:
    """R over all classes, with delays skipped."""
    found = scenario.demand.follows
    delay = np.array(plan.is_delay)
    if delay.any():
        through = np.linalg.inv(np.eye(delay.sum()) - found[np.ix_(delay, delay)])
        skipped = found[:, delay] @ through @ found[delay, :]
        found = np.where(delay[None, :] | delay[:, None], 0, found + skipped)
    return found


def _prefixes(scenario: Scenario) -> Sources:
    """What requests begin with, for prefix caching: a source for each class, or for a replay one."""
    caches = [e.kv_cache for e in scenario.engines if e.kv_cache is not None]
    size = caches[0].block_size
    longest = min(
        max(longest_call(scenario, e) for e in scenario.engines), max(c.tokens for c in caches)
    )
    # In steps, so that engines of about the same size share what was compiled.
    most = -(-int(-(-longest // size)) // 8) * 8
    sources = scenario.demand.prefix_sources(size)
    first = np.concatenate([[0], np.cumsum([source.count for source in sources])])
    drawn = tuple(source.drawn for source in sources)
    return Sources(drawn, jnp.asarray(first, jnp.int32), most, size)
