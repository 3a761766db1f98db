"""What policies that rank requests share: filling by score, settings by class, and batch times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError, check_number
from llmgym.engine.fill import choose, fill, oldest_first
from llmgym.engine.memory.paged import secure
from llmgym.engine.view import Batch, View
from llmgym.scenario.batch_time import Attention

MOST = 2**30
"""Scores beyond this, on either side, count as equal."""


def least_first(
    view: View, batch: Batch, demand: jax.Array, score: jax.Array, token_budget: jax.Array
) -> Batch:
    """Add tokens to a batch, the request with the smallest score first, ties in slot order.

    Args:
        view: what the engine shows.
        batch: what is in the batch already.
        demand: tokens wanted from each slot (slots, ...), int32, on top of the batch.
        score: of each slot (slots, ...), int32; clipped to MOST on either side.
        token_budget: most tokens of the batch (...), int32.
    """
    urgency = MOST - jnp.clip(score, 1 - MOST, MOST)
    return oldest_first(view, batch, demand, urgency, token_budget)


def whole(number: jax.Array) -> jax.Array:
    """A float rounded down to a score."""
    return jnp.floor(jnp.clip(number, -MOST, MOST)).astype(jnp.int32)


def ticks(view: View, ms: Any) -> jax.Array:
    """Milliseconds in ticks of the clock, at most MOST."""
    return whole(ms / view.tick_ms + 0.5)


def by_class(name: str, value: Any, above: float = 0.0) -> Any:
    """A setting that is one number, or a tuple with one for each class: checked, and hashable.

    Args:
        name: of the setting, for the error.
        value: a number, a sequence or a NumPy array of one axis.
        above: every number must exceed it.

    Raises LLMGymError for anything else.
    """
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, str):
        check_number(name, value, above=above)
        return value
    if not value:
        raise LLMGymError(f"{name} must be a number, or one for each class; the list is empty.")
    for i, one in enumerate(value):
        check_number(f"{name}[{i}]", one, above=above)
    return tuple(value)


def of_classes(name: str, view: View, value: Any) -> list[Any]:
    """A setting of ``by_class`` as a list with one number for each class of the view.

    Args:
        name: of the setting, for the error.
        view: what the engine shows.
        value: a tuple with one number for each class, or anything else: the same for all.

    Raises LLMGymError where a tuple is not as long as the view has classes.
    """
    if not isinstance(value, tuple):
        return [value] * view.classes.count
    if len(value) != view.classes.count:
        raise LLMGymError(
            f"{name} has {len(value)} entries, and the scenario has {view.classes.count} classes; "
            "give one number for each class, or one for all."
        )
    return list(value)


def class_ticks(name: str, view: View, ms: Any) -> jax.Array:
    """A setting of ``by_class`` as ticks for every slot (slots, ...), int32.

    Args:
        name: of the setting, for the error.
        view: what the engine shows.
        ms: the setting, in milliseconds.

    Raises LLMGymError as ``of_classes`` does.
    """
    found = jnp.zeros_like(view.job_class)
    for k, one in enumerate(of_classes(name, view, ms)):
        found = jnp.where(view.job_class == k, ticks(view, one), found)
    return found


def batch_ticks(view: View, token_budget: jax.Array) -> jax.Array:
    """Ticks of the batch that would take all requests, up to the budget: the expected batch time.

    Attention counts what the decoding requests have in memory, and no prefill.
    """
    demand = jnp.minimum(view.demand, token_budget + 1)
    size = jnp.clip(jnp.sum(demand, axis=0), 1, token_budget)
    context = jnp.where(view.decoding, view.prompt + view.generated, 0).astype(jnp.float32)
    attention = Attention(jnp.sum(context, axis=0), jnp.zeros(size.shape))
    return view.batch_time.ticks(size, view.tick_ms, attention)


def own_ticks(view: View, batch: Batch) -> jax.Array:
    """Ticks that a batch will take on this engine (...), int32; 0 if it is empty.

    This is how a policy with a memory knows the times of its batches. What swapping adds is left out.
    """
    tokens, context = batch.tokens, view.prompt + view.generated - view.prefill
    if view.memory is not None:
        tokens, _ = secure(view.memory, tokens, batch.preempt)
        context = view.memory.cached
    chunk, before = tokens.astype(jnp.float32), context.astype(jnp.float32)
    decodes = jnp.where(view.decoding & (tokens > 0), before + 1, 0.0)
    pairs = jnp.where(view.decoding, 0.0, chunk * (before + chunk / 2))
    attention = Attention(jnp.sum(decodes, axis=0), jnp.sum(pairs, axis=0))
    size = jnp.sum(tokens, axis=0)
    ticks = view.batch_time.ticks(size, view.tick_ms, attention)
    return jnp.where(size > 0, ticks, 0)


def attained(view: View) -> jax.Array:
    """Tokens of service that each request has had (slots, ...), what it lost to preemption left out."""
    return jnp.maximum(view.prompt - view.prefill, 0) + jnp.where(
        view.prefill > view.prompt, 0, view.generated
    )


def decode_left(name: str, view: View) -> jax.Array:
    """Output tokens left of each request; LLMGymError where the scenario hides them."""
    if view.decode_left is None:
        raise LLMGymError(
            f"Policy {name!r} must know how many output tokens are left; "
            "set lengths_known=True in the scenario."
        )
    return view.decode_left


def progress(
    view: View, batch: Batch, token_budget: jax.Array, instead: Batch | None = None
) -> Batch:
    """The batch, or another where KV memory would leave nothing of it.

    A rule that passes over requests in memory may ask only for others that find no room there: the
    engine would stand still.

    Args:
        view: what the engine shows.
        batch: what the rule asks for.
        token_budget: most tokens of a batch of residents (...), int32.
        instead: the batch that then runs, unless empty; None: residents, FCFS.
    """
    if view.memory is None:
        return batch
    left, _ = secure(view.memory, batch.tokens, None)
    if instead is None:
        resident = jnp.where(view.memory.resident, view.demand, 0)
        instead = fill(view, view.empty(), resident, token_budget)
    nothing = (jnp.sum(left, axis=0) == 0) & (batch.size > 0)
    return choose(nothing & (instead.size > 0), instead, batch)
