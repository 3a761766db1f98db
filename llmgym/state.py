"""The state of an engine: request table, clock, arrival stream and totals, as pytrees.

Shapes: a table field is (slots, ...), everything else (...), where ``...`` are batch axes: none for one
environment, (num_envs,) for a batch. Batch axes stand last (see ``llmgym.arrays``).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.block_pool import BlockPool
from llmgym.fairness import Counters
from llmgym.pytree import register
from llmgym.wide import Wide


@register
@dataclass(frozen=True)
class Table:
    """The requests present, in order of arrival. A row with no tokens left is empty and inert.

    The last rows are fresh: they hold requests to come, drawn in advance and without tokens until their
    time of arrival, and those that came since the last compaction moved all requests to the top. So
    an arrival moves no data, and what it touches is the same few rows in every environment.

    Times are the low word (uint32) of the clock in ticks; their differences are exact up to 2**31 ticks
    (6 hours at 0.01 ms).
    """

    prefill: jax.Array  # prompt tokens left, int32
    decode: jax.Array  # output tokens left, int32
    prompt: jax.Array  # prompt tokens in all, int32
    output: jax.Array  # output tokens in all, int32
    arrival: jax.Array  # time of arrival
    first_token: jax.Array  # time of the first output token; 0 before it
    last_token: jax.Array  # time of the last service, of the arrival before it
    request: jax.Array  # number of the request within its job type, int32
    job_class: jax.Array  # index of the job type, int32
    # Only of engines with KV memory:
    preemptions: jax.Array | None  # how often it lost its memory
    admitted: jax.Array | None  # number of the step in which it got the memory that it has
    swapped: jax.Array | None  # whether its memory is at the host, of engines that swap

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
        kept = ("request", "job_class", "arrival", "first_token")
        more = {} if self.preemptions is None else {"preemptions": self.preemptions}
        return {k: getattr(self, k) for k in kept} | more


@register
@dataclass(frozen=True)
class Stream:
    """Arrivals to come, one row (axis 0) for each job type."""

    key: jax.Array  # two words (uint32, axis 0) that with the index fix every request
    index: jax.Array  # number of the next request not drawn yet, int32
    wait: jax.Array  # ticks from now until its arrival, int32; NEVER if there is none
    later: jax.Array  # periods of 2**29 ticks on top, int32; 0 unless ``wait`` is 2**30 or more
    memory: jax.Array  # (classes, 2, ...) memory of the arrival process, uint32


@register
@dataclass(frozen=True)
class Totals:
    """Exact running totals since the start."""

    arrived: jax.Array  # requests, those dropped included, int32
    dropped: jax.Array  # requests that found the table full, int32
    completed: jax.Array  # requests, int32
    batches: jax.Array  # batches run, int32
    prefill_tokens: Wide  # tokens served
    decode_tokens: Wide
    request_ticks: Wide  # integral of the number of requests present over time
    dropped_of_class: (
        jax.Array | None
    )  # (classes, ...) the dropped by class, where there are several


@register
@dataclass(frozen=True)
class State:
    """Everything that ``dynamics.step`` carries."""

    table: Table
    joined: jax.Array  # fresh rows whose request has arrived, int32
    drawn: jax.Array  # fresh rows that hold a request at all, int32
    present: jax.Array  # requests in the table, int32
    backlog: Wide  # tokens left over all requests in the table
    clock: Wide  # ticks
    stream: Stream
    totals: Totals
    steps: jax.Array  # int32
    pool: BlockPool | None = None  # with prefix caching
    counters: Counters | None = None  # of the clients' service, where the scenario weighs it


def empty_table(
    slots: int, shape: tuple[int, ...], memory: bool = False, swaps: bool = False
) -> Table:
    """A table with no request; ``memory``: whether preemptions are counted, ``swaps``: who is out."""
    none, never = jnp.zeros((slots, *shape), jnp.int32), jnp.zeros((slots, *shape), jnp.uint32)
    count = none if memory else None
    swapped = jnp.zeros((slots, *shape), bool) if swaps else None
    return Table(none, none, none, none, never, never, never, none, none, count, count, swapped)


def empty_totals(shape: tuple[int, ...], classes: int = 1) -> Totals:
    """All totals zero."""
    none, wide = jnp.zeros(shape, jnp.int32), Wide.zeros(shape)
    of_class = jnp.zeros((classes, *shape), jnp.int32) if classes > 1 else None
    return Totals(none, none, none, none, wide, wide, wide, of_class)
