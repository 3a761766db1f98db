"""What policies see of an engine (View), and what they form (Batch)."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine.block_pool import BlockPool
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.prefixes import Contents


@register
@dataclass(frozen=True)
class Batch:
    """The action in its canonical form: how many tokens of each slot's request go into the batch.

    ``tokens`` is int32 of shape (slots,): prompt tokens where the request has prefill left, else at
    most one decode token. ``preempt`` names the slots whose requests lose their KV memory before the
    batch forms; None: nobody, unless memory is short (see ``memory.paged.secure``). Their tokens do not
    run.
    """

    tokens: jax.Array
    preempt: jax.Array | None = None

    @property
    def size(self) -> jax.Array:
        """b, the number of tokens in the batch."""
        return jnp.sum(self.tokens, axis=0)


@register
@dataclass(frozen=True)
class Classes:
    """The request classes that an engine serves, as an operator knows them; axis 0 is the class.

    A class is a job type at one of its calls.
    """

    mean_prefill: jax.Array  # m_p, mean prompt tokens
    mean_decode: jax.Array  # m_d, mean output tokens
    in_prefill: jax.Array  # z_p, requests here with prompt tokens left
    in_decode: jax.Array  # z_d, requests here that decode
    requests_behind: jax.Array  # sum over classes l of R_kl z_p,l: where the calls go on
    prompt_tokens: jax.Array  # prompt tokens left here, float32
    tokens_behind: jax.Array  # prompt tokens left where the calls go on, as requests_behind
    hop: jax.Array  # calls on the way here from the start of the job, int32
    priority: jax.Array  # that the scenario gives; more is served first
    here: jax.Array  # whether this engine serves the class
    most: int = field(metadata={"static": True})  # most classes that one engine serves
    counter: jax.Array | None = None  # virtual token counters (see llmgym.engine.service), int32
    service_weights: jax.Array | None = None  # (2, ...) of a prompt and of an output token in them

    @property
    def count(self) -> int:
        """Number of classes."""
        return self.mean_prefill.shape[0]


@register
@dataclass(frozen=True)
class Memory:
    """What a policy sees of the KV memory. Per-slot arrays have shape (slots, ...)."""

    cached: jax.Array  # tokens of each request in memory
    admitted: jax.Array  # number of the step in which each request got it
    blocks: jax.Array  # number of blocks in all
    block_size: int = field(metadata={"static": True})
    # Whether the iteration that ends a prompt yields an output token as well:
    prompt_samples: bool = field(default=False, metadata={"static": True})
    swapped: jax.Array | None = None  # whether what a request has is in the memory of the host
    pool: BlockPool | None = None  # with prefix caching: the blocks one by one
    contents: Contents | None = None  # and what those of each request hold

    def needed(self, tokens: jax.Array | int = 0) -> jax.Array:
        """Blocks that each request holds when ``tokens`` more of it are computed."""
        return -(-(self.cached + tokens) // self.block_size)

    @property
    def held(self) -> jax.Array:
        """Blocks of each request now."""
        return self.needed() if self.swapped is None else jnp.where(self.swapped, 0, self.needed())

    @property
    def resident(self) -> jax.Array:
        """Which requests hold memory: those that run, in the words of vLLM."""
        return self.cached > 0 if self.swapped is None else (self.cached > 0) & ~self.swapped

    @property
    def free(self) -> jax.Array:
        """Blocks that no request holds."""
        if self.pool is not None:
            return self.pool.free
        return self.blocks - jnp.sum(self.held, axis=0)

    def entrance(self, tokens: jax.Array, demand: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Blocks that requests without memory would take for their ``demand``, and how many are free.

        ``tokens`` are in the batch already, and their blocks are not free. What prefix caching may save
        is left out.
        """
        inside = self.resident | (tokens > 0)
        taken = jnp.where(inside, self.needed(tokens) - self.held, 0)
        free = self.free - jnp.sum(taken, axis=0)
        return jnp.where(inside | (demand <= 0), 0, self.needed(demand)), free


@register
@dataclass(frozen=True)
class View:
    """What a policy sees of one engine. Per-slot arrays have shape (slots,); ages are in ticks.

    ``decode_left`` is None unless the scenario says that lengths are known.
    """

    prefill: jax.Array  # prompt tokens left, p_i
    decoding: jax.Array  # whether the prompt is done and output tokens are left
    started: jax.Array  # whether the request has received any token: it is resident
    prompt: jax.Array  # prompt tokens in all
    generated: jax.Array  # output tokens so far
    waited: jax.Array  # ticks since arrival
    unserved: jax.Array  # ticks since it last received a token, or since arrival
    job_class: jax.Array  # index of its class (see Classes)
    decode_left: jax.Array | None  # output tokens left, d_i, if known
    token_budget: jax.Array  # b_max
    max_num_seqs: jax.Array | None  # k_max, if there is one
    batch_time: BatchTime
    tick_ms: jax.Array
    batches: jax.Array  # run by this engine so far
    classes: Classes
    free: jax.Array  # whether the engine is free to start a batch
    job_age: jax.Array  # ticks since the job of the request arrived
    resident_limit: bool = field(default=False, metadata={"static": True})  # what k_max counts
    memory: Memory | None = None  # KV memory, if it is limited
    busy: jax.Array | None = None  # ticks until the batch that runs ends; 0: free
    present: jax.Array | None = None  # requests in the system, or jobs in the network
    arrived: jax.Array | None = None  # requests or jobs so far, dropped ones included
    clock: Wide | None = None  # ticks since the start
    # Whether requests move up when any environment beside needs the room, as those of a network do:
    rows_move: bool = field(default=False, metadata={"static": True})

    @property
    def live(self) -> jax.Array:
        """Whether a slot holds a request."""
        return (self.prefill > 0) | self.decoding

    @property
    def decode(self) -> jax.Array:
        """Decode tokens that may run now: one for each decoding request (6a, 6c)."""
        return self.decoding.astype(jnp.int32)

    @property
    def demand(self) -> jax.Array:
        """Most tokens each request could put into a batch: p_i + 1{p_i = 0}, the demand of Eq. (8)."""
        return self.prefill + self.decode

    @property
    def urgency(self) -> jax.Array:
        """The priority of every request, that of its class; more goes first."""
        urgency = jnp.zeros_like(self.job_class)
        for k in range(self.classes.count):
            urgency = jnp.where(self.job_class == k, self.classes.priority[k], urgency)
        return urgency

    def in_line(self, values: jax.Array) -> jax.Array:
        """Values (slots,) by place in line, the first one's first, each moved to the row of who stands there.

        What a policy draws for each request must go by its place where ``rows_move``: by row it would
        depend on the environments beside it.
        """
        place = jnp.cumsum(self.live, axis=0) - 1
        return jnp.where(self.live, values[jnp.maximum(place, 0)], jnp.zeros((), values.dtype))

    def empty(self) -> Batch:
        """The batch with no tokens."""
        return Batch(jnp.zeros_like(self.prefill))
