"""Asking a policy for its batches: of one engine, of a batch of environments, of all engines of a network.

Whatever drives engines asks here, so that a policy with a memory works the same everywhere. A policy
without one has the memory None, which adds nothing to a compiled program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.errors import LLMGymError
from llmgym.engine.view import Batch, View


def remembers(policy: Any) -> bool:
    """Whether a policy has a memory, that is a method ``start``."""
    return callable(getattr(policy, "start", None))


def check_form(policy: Any) -> None:
    """Refuse a policy that cannot be called as one with a memory, or as one without, whichever it is.

    Raises LLMGymError that says what is missing.
    """
    try:
        signature = inspect.signature(policy)
    except (TypeError, ValueError):  # something built in
        return
    if remembers(policy):
        if not _takes(signature, 3):
            raise LLMGymError(
                f"Policy {_name(policy)} has a start(view), so it is called as policy(key, view, memory) "
                f"-> (Batch, memory), but it takes {signature}."
            )
    elif not _takes(signature, 2) and _takes(signature, 3):
        raise LLMGymError(
            f"Policy {_name(policy)} takes a memory, {signature}, but has no start(view) -> memory that "
            "gives the first one; see RememberingPolicy in llmgym.baselines.policy."
        )


def start(policy: Any, view: View) -> Any:
    """The memory of a policy at the beginning of a run, whose state ``view`` shows; None without one.

    Raises LLMGymError where the memory of a ``batched`` policy lacks the batch axes of the view.
    """
    if not remembers(policy):
        return None
    check_form(policy)
    batched, shape = getattr(policy, "batched", False), view.free.shape
    begin = policy.start
    for _ in () if batched else shape:
        begin = jax.vmap(begin, in_axes=-1, out_axes=-1)
    memory = jax.tree.map(_strong, begin(view))
    for leaf in jax.tree.leaves(memory):
        if shape and leaf.shape[-len(shape) :] != shape:
            raise LLMGymError(
                f"Policy {_name(policy)}: start(view) gives an array of shape {leaf.shape} where its last "
                f"axes must be the batch axes of the view, {shape}. Make it so, or set batched = False."
            )
    return memory


def decide(policy: Any, keys: jax.Array, view: View, memory: Any) -> tuple[Batch, Any]:
    """The batches of all free engines of every environment, and what the policy remembers then.

    A policy that says ``batched`` gets batch axes last, engines before them; any other is vmapped over
    them, and every engine of a network has its own random key. The memory of an engine that is busy
    stays as it was, as that engine takes no batch.

    Args:
        policy: called as ``policy(key, view)``, or with a memory as ``policy(key, view, memory)``.
        keys: random keys of the environments (...).
        view: of the state, with batch axes (...), of a network (engines, ...).
        memory: of ``start`` or of the last decision; None for a policy without one.

    Raises LLMGymError where the policy returns anything but a Batch, or a pair of Batch and memory.
    """
    if not remembers(policy):
        return _for_all(policy, _batch_of(policy), keys, view), memory
    batch, new = _for_all(policy, _pair_of(policy), keys, view, memory)
    return batch, keep_where(view.free, new, memory)


def compose(policy: Any, keys: jax.Array, view: View) -> Batch:
    """The batches of a policy without a memory.

    Args:
        policy, keys, view: as of ``decide``.

    Raises LLMGymError for a policy with a memory, and for an answer that is not a Batch.
    """
    if remembers(policy):
        raise LLMGymError(
            f"Policy {_name(policy)} has a memory: ask it with decide(policy, keys, view, memory)."
        )
    return decide(policy, keys, view, None)[0]


def keys_of(view: View) -> jax.Array:
    """Random keys (...) for a policy inside another: new for every batch, the same in all environments."""
    fold = partial(jax.random.fold_in, jax.random.key(0, impl="threefry2x32"))
    for _ in view.batches.shape:
        fold = jax.vmap(fold)
    return fold(view.batches)


def keep_where(condition: jax.Array, new: Any, old: Any) -> Any:
    """A memory that is replaced only where a condition holds.

    Args:
        condition: bool, of the batch axes (...).
        new, old: memories of equal structure, whose last axes are those batch axes.
    """
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _for_all(
    policy: Any, ask: Callable[..., Any], keys: jax.Array, view: View, *memory: Any
) -> Any:
    if getattr(policy, "batched", False):
        return ask(keys, view, *memory)
    if view.token_budget.ndim > keys.ndim:  # engines
        count = jnp.arange(view.token_budget.shape[0])
        keys = jax.vmap(lambda s: _fold(keys, s), out_axes=-1)(count)
    for _ in range(keys.ndim):
        ask = jax.vmap(ask, in_axes=(0, -1, *(-1 for _ in memory)), out_axes=-1)
    return ask(keys, view, *memory)


def _fold(keys: jax.Array, number: jax.Array) -> jax.Array:
    fold = jax.random.fold_in
    return fold(keys, number) if keys.ndim == 0 else jax.vmap(fold, in_axes=(0, None))(keys, number)


def _batch_of(policy: Any) -> Callable[..., Batch]:
    """The policy, its answer checked."""

    def ask(key: jax.Array, view: View) -> Batch:
        answer = policy(key, view)
        if isinstance(answer, Batch):
            return answer
        if isinstance(answer, tuple):
            raise LLMGymError(
                f"Policy {_name(policy)} returns a tuple but has no start(view); one without a memory "
                "returns a Batch alone."
            )
        raise LLMGymError(
            f"Policy {_name(policy)} returns {type(answer).__name__}; it must return a Batch."
        )

    return ask


def _pair_of(policy: Any) -> Callable[..., tuple[Batch, Any]]:
    """The policy with its memory, its answer checked."""

    def ask(key: jax.Array, view: View, memory: Any) -> tuple[Batch, Any]:
        answer = policy(key, view, memory)
        pair = isinstance(answer, tuple) and len(answer) == 2
        if not pair or not isinstance(answer[0], Batch):
            got = "a tuple" if isinstance(answer, tuple) else type(answer).__name__
            raise LLMGymError(
                f"Policy {_name(policy)} has a memory, so it must return (Batch, memory), not {got}."
            )
        new = jax.tree.map(_strong, answer[1])
        before, after = _form(memory), _form(new)
        if before != after:
            raise LLMGymError(
                f"Policy {_name(policy)} was given the memory {before} and returns {after}; structure, "
                "shapes and dtypes must stay as start(view) gave them."
            )
        return answer[0], new

    return ask


def _form(memory: Any) -> str:
    """Structure, shapes and dtypes, as people read them."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", memory)).replace("'", "")


def _strong(x: Any) -> jax.Array:
    """An array whose dtype no later arithmetic changes, as a plain 0.0 would let it."""
    x = jnp.asarray(x)
    return x.astype(x.dtype)


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _name(policy: Any) -> str:
    found = getattr(policy, "name", None) or getattr(policy, "__name__", type(policy).__name__)
    return repr(found)
