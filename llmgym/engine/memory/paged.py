"""Paged KV memory as policies see it: what requests hold, what fits, and who loses it when it does not."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmgym.core.arrays import prefix_sum
from llmgym.engine.state import Table
from llmgym.engine.view import Memory


def cached_tokens(table: Table, prompt_samples: bool) -> jax.Array:
    """Tokens of each request in KV memory: all that were computed since it last had none.

    ``prompt_samples``: the iteration that ends a prompt yields an output token as well, so of the
    tokens of a request that decodes the last is not in memory yet (of one without a prompt all are).
    """
    known = table.prompt + table.output - table.decode
    begun = (table.output - table.decode > 0) & (table.prompt > 0)
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

    Args:
        memory: as the policy sees it.
        tokens: (slots, ...) asked for, int32.
        preempt: (slots, ...) who is named; None: nobody.

    Returns:
        The tokens that run, and who is preempted, both (slots, ...).
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
