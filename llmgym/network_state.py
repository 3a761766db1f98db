"""A network of engines as arrays: its parameters, its state, and what an epoch tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.arrays import GROUP
from llmgym.batch_time import NO_ATTENTION, Attention, BatchTime
from llmgym.composition import Batch
from llmgym.dynamics import COMPACT_EVERY
from llmgym.errors import LLMGymError
from llmgym.jobs import CHOICE, Jobs
from llmgym.network_plan import Plan, rows_per_slot
from llmgym.precision import in_32_bits
from llmgym.pytree import register
from llmgym.scenario import Scenario
from llmgym.state import Stream, Table, Totals
from llmgym.wide import Wide
from llmgym.workload import Replay

JOBS_TAKEN, CALLS_TAKEN = 4, 4
"""Jobs that begin, and calls of an engine that are passed on, in one round; more only cost another."""

NO_LIMIT = 2**20


@register
@dataclass(frozen=True)
class MixedTimes(BatchTime):
    """Batch times of several kinds: entry for entry the model number ``which``."""

    models: tuple[BatchTime, ...]
    which: jax.Array

    @property
    def needs_attention(self) -> bool:  # type: ignore[override]
        return any(model.needs_attention for model in self.models)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        found = self.models[0].formula(tokens, xp, attention)
        for n, model in enumerate(self.models[1:], start=1):
            found = xp.where(self.which == n, model.formula(tokens, xp, attention), found)
        return found


@register
@dataclass(frozen=True)
class Network:
    """A scenario lowered to arrays, as ``dynamics.Physics``; per-engine arrays have shape (engines,)."""

    batch_time: BatchTime
    token_budget: jax.Array
    max_num_seqs: jax.Array | None
    tick_ms: jax.Array
    burst: jax.Array  # jobs of each type that arrive at time 0
    arrivals: tuple[Any, ...]  # of each job type
    lengths: tuple[Any, ...]  # the different ones
    means: jax.Array  # (2, classes) mean prompt and output tokens
    follows: jax.Array  # (classes, classes) calls that a call brings on, delays skipped
    plan: Plan = field(metadata={"static": True})
    length_of: tuple[int, ...] = field(metadata={"static": True})  # of each class
    slots: int = field(metadata={"static": True})  # most jobs
    rows: int = field(metadata={"static": True})  # of the table of an engine
    fresh: int = field(metadata={"static": True})  # rows behind them, for calls that join
    coming: int = field(metadata={"static": True})  # jobs drawn in advance
    resident_limit: bool = field(metadata={"static": True})
    lengths_known: bool = field(metadata={"static": True})

    @property
    def joining(self) -> int:
        """Most calls that join in one round."""
        return self.plan.most_stages if self.plan.routes else JOBS_TAKEN + CALLS_TAKEN


@in_32_bits
def lower_network(scenario: Scenario, burst: int = 0) -> Network:
    """The network of a scenario as traced parameters. ``burst``: as in ``dynamics.lower``."""
    plan, workload = Plan.of(scenario), scenario.workload
    for engine in scenario.engines:
        if engine.needs_memory:
            raise LLMGymError(
                f"Engine {engine.name!r} has KV memory, samples with the prompt, or a batch time "
                "that asks for the context; networks of engines have none of these yet."
            )
    if plan.classes > CHOICE:
        raise LLMGymError(f"A network has at most {CHOICE} stages in all, got {plan.classes}.")
    ticks_per_s = 1000.0 / scenario.tick_ms
    if isinstance(workload, Replay):
        if workload.priority is not None or workload.tenant is not None:
            raise LLMGymError(
                "A replay with priorities or tenants is served by one engine, not by replicas."
            )
        arrivals: tuple[Any, ...] = (workload.gap_sampler(ticks_per_s),)
        lengths: tuple[Any, ...] = (workload.length_sampler(),)
        length_of: tuple[int, ...] = (0,)
        follows = np.zeros((1, 1))
    else:
        arrivals = tuple(j.arrivals.sampler(ticks_per_s) for j in workload)
        # Classes of equal lengths share a sampler: each costs in every draw.
        stages = [stage for j in workload for stage in j.stages]
        drawn = [(s.prefill, s.decode, s.paired, s.delay_ms) for s in stages]
        different = list(dict.fromkeys(drawn))
        lengths = tuple(stages[drawn.index(one)].sampler() for one in different)
        length_of = tuple(different.index(one) for one in drawn)
        follows = _follows(scenario, plan)
    engines = [e for e in scenario.engines for _ in range(e.replicas)]
    capped = [e for e in engines if e.max_num_seqs is not None]
    size = scenario.slots * rows_per_slot(scenario)
    per_batch = _calls_per_batch(scenario)
    fresh = int(np.clip(np.ceil(2 * COMPACT_EVERY * per_batch), 16, 256))
    fresh = max(fresh, plan.most_stages if plan.routes else JOBS_TAKEN + CALLS_TAKEN)
    fresh += -(size + fresh) % GROUP
    if size > 2**15:
        raise LLMGymError(f"{scenario.slots} slots make tables of {size} rows; at most {2**15}.")
    return Network(
        batch_time=_batch_time([e.batch_time for e in engines]),
        token_budget=jnp.asarray([e.token_budget for e in engines], jnp.int32),
        max_num_seqs=(
            jnp.asarray([e.max_num_seqs or NO_LIMIT for e in engines], jnp.int32)
            if capped
            else None
        ),
        tick_ms=jnp.float32(scenario.tick_ms),
        burst=jnp.int32(burst),
        arrivals=arrivals,
        lengths=lengths,
        means=jnp.asarray(scenario.class_means, jnp.float32).T,
        follows=jnp.asarray(follows, jnp.float32),
        plan=plan,
        length_of=length_of,
        slots=scenario.slots,
        rows=size,
        fresh=fresh,
        coming=int(np.clip(np.ceil(1.25 * COMPACT_EVERY * per_batch), 16, 256)),
        resident_limit=bool(capped) and capped[0].seq_limit == "resident",
        lengths_known=scenario.lengths_known,
    )


def _batch_time(models: list[BatchTime]) -> BatchTime:
    """One model whose constants have an axis of engines."""
    # Tables of different lengths are of different kinds, too. (JAX compares no types.)
    structures = [(type(m), jax.tree.structure(m)) for m in models]
    kinds = list(dict.fromkeys(structures))
    which = [kinds.index(s) for s in structures]
    stacked = []
    for kind in range(len(kinds)):
        # Engines of another kind get the constants of some engine of this one; they are not used.
        example = models[which.index(kind)]
        mine = [m if own == kind else example for m, own in zip(models, which, strict=True)]
        stacked.append(jax.tree.map(lambda *xs: jnp.asarray(xs, jnp.float32), *mine))
    if len(kinds) == 1:
        return stacked[0]
    return MixedTimes(tuple(stacked), jnp.asarray(which))


def _calls_per_batch(scenario: Scenario) -> float:
    """Calls that join an engine in the time of a full batch, about."""
    calls = 1.0
    if not isinstance(scenario.workload, Replay):
        rates = [j.rate_per_s for j in scenario.job_types]
        calls = float(
            np.average([j.workflow.visits.sum() for j in scenario.job_types], weights=rates)
        )
    tokens = (scenario.mean_prefill + scenario.mean_decode) / calls
    return max(e.token_budget for e in scenario.engines) / max(tokens, 1.0)


def _follows(scenario: Scenario, plan: Plan) -> np.ndarray:
    """R over all classes, with delays skipped."""
    count = plan.classes
    found = np.zeros((count, count))
    for first, job in zip(plan.first_class, scenario.job_types, strict=True):
        size = len(job.stages)
        found[first : first + size, first : first + size] = job.workflow.follows
    delay = np.array(plan.is_delay)
    if delay.any():
        through = np.linalg.inv(np.eye(delay.sum()) - found[np.ix_(delay, delay)])
        skipped = found[:, delay] @ through @ found[delay, :]
        found = np.where(delay[None, :] | delay[:, None], 0, found + skipped)
    return found


@register
@dataclass(frozen=True)
class CallTable(Table):
    """The calls at every station, (rows, stations, ...): as ``Table``, and where they belong.

    ``request`` is the number of the job in its type and ``job_class`` the class of the call. In the
    station of delays a row has one token, and ``last_token`` is when the delay is over.
    """

    job_arrival: jax.Array  # low clock word of the arrival of the job
    service: jax.Array  # of the start of its first batch
    planned: jax.Array  # tokens in the batch that runs
    job_row: jax.Array | None  # row in the table of jobs, where there is one
    visit: jax.Array | None  # how often the job had been through this call before

    def details(self) -> dict[str, jax.Array]:
        own = ("prompt", "output", "job_arrival", "service", "visit")
        found = {name: getattr(self, name) for name in own}
        return super().details() | {k: v for k, v in found.items() if v is not None}


@register
@dataclass(frozen=True)
class Coming:
    """Jobs drawn in advance, axis 0; those from ``joined`` to ``drawn`` have not arrived yet."""

    joined: jax.Array
    drawn: jax.Array
    arrival: jax.Array  # low clock word
    number: jax.Array
    job_type: jax.Array


@register
@dataclass(frozen=True)
class NetworkState:
    """Everything that ``step`` carries. ``present`` counts jobs, ``backlog`` tokens of their calls."""

    table: CallTable
    tail: jax.Array  # fresh rows that are used, whether or not they hold a call
    busy: jax.Array  # (engines, ...) ticks until its batch ends; 0: free
    present: jax.Array
    backlog: Wide
    clock: Wide
    coming: Coming
    stream: Stream
    jobs: Jobs | None
    route: jax.Array  # (groups, ...) replica that the agent named last
    turns: jax.Array  # (groups, ...) calls routed so far
    batches: jax.Array  # (engines, ...) run so far
    totals: Totals
    steps: jax.Array


@register
@dataclass(frozen=True)
class NetworkInfo:
    """What happened in one epoch; per-engine arrays (engines, ...) are of the batches that started."""

    duration: jax.Array  # ticks of the epoch
    batch_ticks: jax.Array  # of the batches that started; 0 for the other engines
    prefill_tokens: jax.Array
    decode_tokens: jax.Array
    requests: jax.Array
    completed: jax.Array  # jobs
    arrived: jax.Array  # jobs
    dropped: jax.Array  # jobs
    clipped: jax.Array
    idle: jax.Array  # whether no batch started
    request_ticks: jax.Array  # integral of the jobs present, float32
    batch: Batch  # that started
    finished: jax.Array  # (rows, stations, ...) calls, and delays, that ended
    table: CallTable  # at the end of the epoch, before anything was passed on

    @property
    def lost(self) -> jax.Array:
        """Tokens to be computed again: none, as networks have no KV memory."""
        return jnp.zeros_like(self.duration)

    @property
    def found(self) -> jax.Array:
        """Tokens that prefix caching found: none, likewise (an axis of one row)."""
        return jnp.zeros_like(self.duration)[None]


@register
@dataclass(frozen=True)
class Joining:
    """Calls about to join, (several, ...), in order."""

    valid: jax.Array
    job_class: jax.Array
    number: jax.Array
    arrival: jax.Array
    job_arrival: jax.Array
    job_row: jax.Array
    visit: jax.Array
    context: jax.Array
    early: jax.Array  # routed by the loads before the present moment


def empty_calls(size: int, shape: tuple[int, ...], jobs: bool) -> CallTable:
    """Tables of ``size`` rows without a call; ``jobs``: whether calls point into a table of jobs."""
    none, never = jnp.zeros((size, *shape), jnp.int32), jnp.zeros((size, *shape), jnp.uint32)
    known = none if jobs else None
    return CallTable(
        none, none, none, none, never, never, never, none, none, None, None, None, never, never, none, known,
        known,
    )  # fmt: skip
