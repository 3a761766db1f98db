"""Asking a policy for its batches: of one engine, of a batch of environments, of all engines of a network.

Whatever drives engines asks here, so that a policy with a memory works the same everywhere. A policy
without one has the memory None, which adds nothing to a compiled program.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.errors import LLMGymError, shown
from llmgym.core.user_code import ask, line_of
from llmgym.engine.view import Batch, View


def remembers(policy: Any) -> bool:
    """Whether a policy has a memory, that is a method ``start``."""
    return callable(getattr(policy, "start", None))


def check_form(policy: Any) -> None:
    """Refuse a policy that cannot be called as one with a memory, or as one without, whichever it is.

    Raises LLMGymError that says what is missing.
    """
    if isinstance(policy, type):
        raise LLMGymError(
            f"Policy {_name(policy)} is a class: give an object of it, {policy.__name__}()."
        )
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
    elif _takes(signature, 2):
        return
    elif _takes(signature, 3):
        raise LLMGymError(
            f"Policy {_name(policy)} takes a memory, {signature}, but has no start(view) -> memory that "
            "gives the first one; see RememberingPolicy in llmgym.baselines.policy."
        )
    else:
        raise LLMGymError(
            f"Policy {_name(policy)} is called as policy(key, view) -> Batch, but it takes {signature}"
            f"{line_of(policy)}."
        )


def start(policy: Any, view: View) -> Any:
    """The memory of a policy at the beginning of a run, whose state ``view`` shows; None without one.

    Raises LLMGymError where the memory of a ``batched`` policy lacks the batch axes of the view.
    """
    if not remembers(policy):
        return None
    check_form(policy)
    batched, shape = getattr(policy, "batched", False), view.free.shape
    begin = partial(ask, f"start(view) of policy {_name(policy)}", policy.start)
    for _ in () if batched else shape:
        begin = jax.vmap(begin, in_axes=-1, out_axes=-1)
    memory = _arrays_of(policy, begin(view))
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
    policy: Any, told: Callable[..., Any], keys: jax.Array, view: View, *memory: Any
) -> Any:
    if getattr(policy, "batched", False):
        return told(keys, view, *memory)
    if view.token_budget.ndim > keys.ndim:  # engines
        count = jnp.arange(view.token_budget.shape[0])
        keys = jax.vmap(lambda s: _fold(keys, s), out_axes=-1)(count)
    for _ in range(keys.ndim):
        told = jax.vmap(told, in_axes=(0, -1, *(-1 for _ in memory)), out_axes=-1)
    return told(keys, view, *memory)


def _fold(keys: jax.Array, number: jax.Array) -> jax.Array:
    fold = jax.random.fold_in
    return fold(keys, number) if keys.ndim == 0 else jax.vmap(fold, in_axes=(0, None))(keys, number)


def _batch_of(policy: Any) -> Callable[..., Batch]:
    """The policy, its answer checked."""

    def told(key: jax.Array, view: View) -> Batch:
        answer = ask(f"Policy {_name(policy)}", policy, key, view)
        if isinstance(answer, tuple):
            raise LLMGymError(
                f"Policy {_name(policy)} returns a tuple but has no start(view); one without a memory "
                "returns a Batch alone."
            )
        return _sound(policy, answer, view)

    return told


def _pair_of(policy: Any) -> Callable[..., tuple[Batch, Any]]:
    """The policy with its memory, its answer checked."""

    def told(key: jax.Array, view: View, memory: Any) -> tuple[Batch, Any]:
        answer = ask(f"Policy {_name(policy)}", policy, key, view, memory)
        pair = isinstance(answer, tuple) and len(answer) == 2
        if not pair or not isinstance(answer[0], Batch):
            got = "a tuple" if isinstance(answer, tuple) else type(answer).__name__
            raise LLMGymError(
                f"Policy {_name(policy)} has a memory, so it must return (Batch, memory), not {got}"
                f"{line_of(policy)}."
            )
        new = _arrays_of(policy, answer[1])
        before, after = _form(memory), _form(new)
        if before != after:
            raise LLMGymError(
                f"Policy {_name(policy)} was given the memory {before} and returns {after}; structure, "
                "shapes and dtypes must stay as start(view) gave them."
            )
        return _sound(policy, answer[0], view), new

    return told


def _sound(policy: Any, answer: Any, view: View) -> Batch:
    """The batch with int32 tokens; LLMGymError says what a policy must return."""
    shape = view.prefill.shape
    must = (
        f"it must return a Batch: Batch(tokens), tokens an int32 array of shape {shape}, how many tokens "
        f"of each slot's request run, as llmgym.fill makes it{line_of(policy)}."
    )
    who = f"Policy {_name(policy)} returns"
    if not isinstance(answer, Batch):
        raise LLMGymError(f"{who} {type(answer).__name__}; {must}")
    parts: list[tuple[str, Any, Any]] = [
        ("tokens", answer.tokens, jnp.integer),
        ("preempt", answer.preempt, jnp.bool_),
    ]
    for name, part, kind in parts:
        if name == "preempt" and part is None:
            continue
        if not hasattr(part, "dtype") or not hasattr(part, "shape"):
            raise LLMGymError(f"{who} a Batch whose {name} are {shown(part)}; {must}")
        if part.shape != shape or not jnp.issubdtype(part.dtype, kind):
            found = f"{part.dtype} of shape {part.shape}"
            wanted = must if name == "tokens" else f"they must be None or bool of shape {shape}."
            raise LLMGymError(f"{who} a Batch whose {name} are {found}; {wanted}")
    if isinstance(answer.tokens, jax.Array) and answer.tokens.dtype == jnp.int32:
        return answer
    return replace(answer, tokens=jnp.asarray(answer.tokens, jnp.int32))


def _arrays_of(policy: Any, memory: Any) -> Any:
    """A memory as arrays of fixed types. Raises LLMGymError where it holds anything else."""
    try:
        return jax.tree.map(_strong, memory)
    except (TypeError, ValueError):
        raise LLMGymError(
            f"The memory of policy {_name(policy)} must be arrays and numbers, in tuples, lists, "
            f"dictionaries or registered dataclasses, got {shown(memory)}{line_of(policy)}."
        ) from None


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
    return shown(found)
