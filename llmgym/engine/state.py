"""The state of an engine or of a network of them: request tables, clock, arrivals and totals, as pytrees.

Shapes: the table has (rows, stations, ...), engines have (engines, ...), everything else (...), where
``...`` are batch axes: none for one environment, (num_envs,) for a batch. Batch axes stand last (see
``llmgym.core.arrays``). A lone engine has no axis of stations or engines. A station is an engine; where
jobs have delays one more station, the last, holds the jobs that wait in one.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine.block_pool import BlockPool


@register
@dataclass(frozen=True)
class Table:
    """The requests present, in order of arrival. A row with no tokens left is empty and inert.

    The last rows are fresh. Those of a lone engine hold requests to come, drawn in advance and without
    tokens until their time of arrival; in a network calls join there. Once in a while all requests move
    to the top. So an arrival moves no data, and what it touches is the same few rows in every
    environment.

    Times are the low word (uint32) of the clock in ticks. Those that may lie long ago have 16 bits above
    it in a column ``..._high`` (see ``ticks_since``); ``last_token`` has none, and is held at 2**30 ticks
    before now where it would be older. In the station of delays a row has one token, and
    ``last_token`` is when the delay is over.
    """

    prefill: jax.Array  # prompt tokens left, int32
    decode: jax.Array  # output tokens left, int32
    prompt: jax.Array  # prompt tokens in all, int32
    output: jax.Array  # output tokens in all, int32
    arrival: jax.Array  # time of arrival
    first_token: jax.Array  # time of the first output token; 0 before it
    last_token: jax.Array  # time of the last service; the time of arrival before the first
    request: jax.Array  # number of the request, or of the job, within its job type, int32
    job_class: jax.Array  # index of its class: the job type, or the job type at one of its calls
    arrival_high: jax.Array  # uint16
    first_high: jax.Array  # uint16
    # Only with KV memory:
    preemptions: jax.Array | None = None  # how often it lost its memory
    admitted: jax.Array | None = None  # number of the step in which it got the memory that it has
    swapped: jax.Array | None = None  # whether its memory is at the host, where engines swap
    # Only in networks:
    job_arrival: jax.Array | None = None  # time of arrival of the job
    job_arrival_high: jax.Array | None = None  # uint16
    service: jax.Array | None = None  # time of the start of its first batch
    service_high: jax.Array | None = None  # uint16
    planned: jax.Array | None = None  # tokens in the batch that runs
    job_row: jax.Array | None = None  # row in the table of jobs, where there is one
    visit: jax.Array | None = None  # how often the job had been through this call before

    @property
    def live(self) -> jax.Array:
        """Whether a row holds a request."""
        return (self.prefill > 0) | (self.decode > 0)

    @property
    def started(self) -> jax.Array:
        """Whether the request in a row has received a token (it is resident) and is not finished."""
        return self.live & ((self.prefill < self.prompt) | (self.decode < self.output))

    def details(self) -> dict[str, jax.Array]:
        """The columns that a record of finished requests keeps."""
        kept = ["request", "job_class", "arrival", "first_token", "preemptions"]
        kept += ["arrival_high", "first_high"]
        if self.planned is not None:  # the tokens of a lone engine's requests can be drawn again
            kept += ["prompt", "output", "job_arrival", "job_arrival_high"]
            kept += ["service", "service_high", "visit"]
        found = {name: getattr(self, name) for name in kept}
        return {name: column for name, column in found.items() if column is not None}


@register
@dataclass(frozen=True)
class Stream:
    """Arrivals to come, one row (axis 0) for each job type."""

    key: jax.Array  # two words (uint32, axis 0) that with the index fix every request
    index: jax.Array  # number of the next request not drawn yet, int32
    wait: jax.Array  # ticks from now until its arrival, int32; NEVER if there is none
    later: jax.Array  # periods of 2**29 ticks on top, int32; 0 unless ``wait`` is 2**30 or more
    memory: jax.Array  # (job types, 2, ...) memory of the arrival process, uint32


@register
@dataclass(frozen=True)
class Totals:
    """Exact running totals since the start."""

    arrived: jax.Array  # requests or jobs, those dropped included, int32
    dropped: jax.Array  # requests or jobs without a place, or too large for memory, int32
    completed: jax.Array  # requests or jobs, int32
    batches: jax.Array  # batches run, int32
    prefill_tokens: Wide  # tokens served
    decode_tokens: Wide
    request_ticks: Wide  # integral of the number of requests present over time
    dropped_of_class: jax.Array | None  # (classes, ...) where there are several


@register
@dataclass(frozen=True)
class Counters:
    """The virtual token counters of the clients of every engine (see ``llmgym.engine.service``).

    Only differences matter, so the smallest counter of the backlogged is always 0 and nothing overflows.
    A counter far below it belongs to a client that has long been idle and would be lifted.
    """

    value: jax.Array  # (classes, engines...) int32
    last: jax.Array  # of engines: the client that was backlogged last, where none is
    waiting: jax.Array  # (classes, engines...) whether a request waited when the batch was formed
    stayed: jax.Array  # (classes, engines...) whether one of those was left out of the batch


@register
@dataclass(frozen=True)
class Jobs:
    """The jobs in a network (rows, ...), or one of them without the first axis.

    ``done``, ``passed`` and ``begun`` have a bit for each stage: done or passed over, passed over, and
    started or done. ``visits`` and ``context`` have an axis of stages in front.
    """

    live: jax.Array
    job_type: jax.Array
    number: jax.Array
    arrival: jax.Array  # low clock word
    arrival_high: jax.Array  # uint16
    done: jax.Array
    passed: jax.Array
    begun: jax.Array
    visits: jax.Array | None  # how often each stage has ended, where one may come again
    context: jax.Array | None  # prompt and output tokens of its last visit, where it matters


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
class FreshRows:
    """How requests arrive at a lone engine: in the fresh rows of its table."""

    joined: jax.Array  # fresh rows whose request has arrived, int32
    drawn: jax.Array  # fresh rows that hold a request at all, int32


@register
@dataclass(frozen=True)
class Queues:
    """How calls arrive in a network."""

    coming: Coming
    tail: jax.Array  # fresh rows that are used, whether or not they hold a call
    jobs: Jobs | None  # where jobs are not chains of calls
    route: jax.Array  # (groups, ...) replica that the agent named last
    turns: jax.Array  # (groups, ...) calls routed so far


@register
@dataclass(frozen=True)
class State:
    """Everything that ``simulator.step`` carries."""

    table: Table
    busy: jax.Array  # of engines: ticks until the batch ends; 0: free
    batches: jax.Array  # of engines: run so far
    present: jax.Array  # requests in the table, or jobs in the network, int32
    backlog: Wide  # tokens left over all requests in the table
    clock: Wide  # ticks
    inflow: FreshRows | Queues
    stream: Stream
    totals: Totals
    steps: jax.Array  # int32
    pool: BlockPool | None = None  # with prefix caching
    counters: Counters | None = None  # of the clients' service, where the scenario weighs it


def high_of(clock: Wide, low: jax.Array) -> jax.Array:
    """The 16 bits above the low word of times within 2**31 ticks of the clock, uint16."""
    later = (low - clock.low).astype(jnp.int32) >= 0
    carry = (later & (low < clock.low)).astype(jnp.uint32)
    borrow = (~later & (low > clock.low)).astype(jnp.uint32)
    return (clock.high + carry - borrow).astype(jnp.uint16)


def ticks_since(clock: Wide, low: jax.Array, high: jax.Array) -> jax.Array:
    """Ticks from past times to the clock, int32; 2**31 - 1 where they are more (6 hours at 0.01 ms).

    Args:
        clock: now.
        low: (rows, ...) low words of the times, uint32.
        high: (rows, ...) the 16 bits above them, uint16.
    """
    behind, borrow = clock.low - low, (clock.low < low).astype(jnp.uint16)
    above = clock.high.astype(jnp.uint16) - high - borrow
    far = (above > 0) | (behind >> 31 > 0)
    return jnp.where(far, jnp.int32(2**31 - 1), behind.astype(jnp.int32))


def empty_table(
    rows: int,
    shape: tuple[int, ...],
    memory: bool = False,
    swaps: bool = False,
    calls: bool = False,
    jobs: bool = False,
) -> Table:
    """A table without a request.

    Args:
        rows: number of rows.
        shape: stations and batch axes.
        memory: whether preemptions are counted.
        swaps: whether memory may be at the host.
        calls: whether its requests are calls in a network.
        jobs: whether those point into a table of jobs.
    """
    none, never = jnp.zeros((rows, *shape), jnp.int32), jnp.zeros((rows, *shape), jnp.uint32)
    high = jnp.zeros((rows, *shape), jnp.uint16)
    more: dict[str, jax.Array] = {}
    if memory:
        more |= {"preemptions": none, "admitted": none}
    if swaps:
        more |= {"swapped": none > 0}
    if calls:
        more |= {"job_arrival": never, "service": never, "planned": none}
        more |= {"job_arrival_high": high, "service_high": high}
    if jobs:
        more |= {"job_row": none, "visit": none}
    return Table(none, none, none, none, never, never, never, none, none, high, high, **more)


def empty_totals(shape: tuple[int, ...], classes: int = 1) -> Totals:
    """All totals zero."""
    none, wide = jnp.zeros(shape, jnp.int32), Wide.zeros(shape)
    of_class = jnp.zeros((classes, *shape), jnp.int32) if classes > 1 else None
    return Totals(none, none, none, none, wide, wide, wide, of_class)
