"""Paged KV memory: what requests hold, what fits, and who loses it when it does not."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from llmgym.arrays import prefix_sum
from llmgym.block_pool import BlockPool
from llmgym.errors import LLMGymError, check_number
from llmgym.prefixes import Contents
from llmgym.pytree import register
from llmgym.state import Table


@dataclass(frozen=True)
class KVCache:
    """The KV memory of an engine, in blocks of ``block_size`` tokens.

    A request holds whole blocks for all its tokens that were computed and not lost. One that finishes
    gives them back, one that is preempted loses them and computes its prompt and its outputs so far
    again (recompute), or they are swapped out to the memory of the host.

    Args:
        blocks: that requests can have. vLLM counts one more, the null block.
        block_size: tokens in a block.
        prefix_caching: whether full blocks can be found after their request is gone, until they are
            taken again, and are shared by requests that begin alike.
        swap_tokens_per_ms: swap instead of recompute: tokens whose keys and values go to the host or
            back in a millisecond, which prolongs the batch. A link of 25 GB/s and 128 KiB a token
            make 190. The host has room for all.
    """

    blocks: int
    block_size: int = 16
    prefix_caching: bool = False
    swap_tokens_per_ms: float | None = None

    def __post_init__(self) -> None:
        check_number("blocks", self.blocks, low=1, high=2**24, integer=True)
        check_number("block_size", self.block_size, low=1, high=2**16, integer=True)
        check_number("blocks * block_size", self.tokens, high=2**30, integer=True)
        if not isinstance(self.prefix_caching, bool):
            raise LLMGymError(f"prefix_caching must be True or False, got {self.prefix_caching!r}.")
        if self.swap_tokens_per_ms is not None:
            check_number("swap_tokens_per_ms", self.swap_tokens_per_ms, above=0)
            if self.prefix_caching:
                raise LLMGymError(
                    "Swapping and prefix caching together are not modelled: choose one."
                )

    @classmethod
    def left_over(
        cls,
        memory_gb: float,
        weights_gb: float,
        bytes_per_token: float,
        utilization: float = 0.9,
        block_size: int = 16,
    ) -> KVCache:
        """The KV memory that weights leave: ``utilization`` of all memory, in GB of 10**9 bytes.

        A token takes 2 (key and value) * layers * KV heads * head size * bytes of a number. What
        activations take is not counted: it must fit into the rest, 1 - ``utilization``.

        Raises LLMGymError where nothing is left for a block.
        """
        check_number("utilization", utilization, above=0, high=1)
        given = {"memory_gb": memory_gb, "weights_gb": weights_gb}
        for name, value in (given | {"bytes_per_token": bytes_per_token}).items():
            check_number(name, value, above=0)
        blocks = (utilization * memory_gb - weights_gb) * 1e9 // (bytes_per_token * block_size)
        if blocks < 1:
            raise LLMGymError(
                f"{weights_gb:g} GB of weights leave no KV memory in {utilization:g} of {memory_gb:g} "
                "GB; use more or larger GPUs."
            )
        return cls(int(blocks), block_size)

    @property
    def tokens(self) -> int:
        """Tokens that fit."""
        return self.blocks * self.block_size


@register
@dataclass(frozen=True)
class Memory:
    """What a policy sees of the KV memory. Per-slot arrays have shape (slots, ...)."""

    cached: jax.Array  # tokens of each request in memory
    admitted: jax.Array  # number of the step in which each request got it
    blocks: jax.Array  # that there are
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

        ``tokens`` are in the batch already. What prefix caching may save is left out.
        """
        inside = self.resident | (tokens > 0)
        taken = jnp.where(inside, self.needed(tokens) - self.held, 0)
        free = self.free - jnp.sum(taken, axis=0)
        return jnp.where(inside | (demand <= 0), 0, self.needed(demand)), free


def cached_tokens(table: Table, prompt_samples: bool) -> jax.Array:
    """Tokens of each request in KV memory: all that were computed since it last had none.

    ``prompt_samples``: the iteration that ends a prompt yields an output token as well, so of the
    tokens of a request that decodes the last is not in memory yet.
    """
    known = table.prompt + table.output - table.decode
    begun = table.output - table.decode > 0
    decoding = known - (begun if prompt_samples else 0)
    cached = jnp.where(table.prefill > 0, known - table.prefill, decoding)
    return jnp.where(table.live, cached, 0)


def secure(
    memory: Memory, tokens: jax.Array, preempt: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The batch that memory allows, and who is preempted for it.

    First those go whom ``preempt`` names. If the others that hold memory do not all fit with their
    tokens, the last of them go, in order of the table. Requests that hold none are admitted in that
    order up to the first that does not fit, and none if anyone was preempted (as in vLLM).
    """
    gone = jnp.zeros_like(memory.resident) if preempt is None else preempt & memory.resident
    after = memory.needed(tokens)
    stays = memory.resident & ~gone
    fits = prefix_sum(jnp.where(stays, after, 0)) <= memory.blocks
    gone = gone | (stays & ~fits)
    stays = stays & fits
    room = memory.blocks - jnp.sum(jnp.where(stays, after, 0), axis=0)
    enters = ~memory.resident & (tokens > 0)
    room = jnp.where(jnp.any(gone, axis=0), 0, room)
    enters = enters & (prefix_sum(jnp.where(enters, after, 0)) <= room)
    return jnp.where(stays | enters, tokens, 0), gone
