"""From whatever a user calls a policy to one function on a batch of environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from llmgym import agents, baselines
from llmgym.composition import Batch, View
from llmgym.errors import LLMGymError

PolicyLike = str | Callable[[jax.Array, View], Batch]


def resolve(policy: PolicyLike) -> Callable[[jax.Array, View], Batch]:
    """The policy that a name stands for, or the policy object or function itself.

    Raises LLMGymError for an unknown name (with the nearest match) or something that cannot be called.
    """
    if isinstance(policy, str):
        return agents.load(policy) if policy in agents.names() else baselines.make(policy)
    if not callable(policy):
        raise LLMGymError(
            f"A policy is a name or a function policy(key, view) -> Batch, got {policy!r}."
        )
    return policy


def name_of(policy: PolicyLike) -> str:
    """A short label for tables and plots."""
    if isinstance(policy, str):
        return policy
    label = getattr(policy, "label", None) or getattr(policy, "name", None)
    return str(label or getattr(policy, "__name__", type(policy).__name__))


def compose(policy: Callable[[jax.Array, View], Batch], keys: jax.Array, view: View) -> Batch:
    """The policy's batch for every environment of a view whose batch axis, if any, stands last."""
    if keys.ndim == 0 or getattr(policy, "batched", False):
        return policy(keys, view)
    return jax.vmap(policy, in_axes=(0, -1), out_axes=-1)(keys, view)


def check(policy: Any, longest_prompt: float, token_budget: int) -> str | None:
    """Why the policy can never serve some request on this engine; None if it can serve all."""
    unservable = getattr(policy, "unservable", None)
    return None if unservable is None else unservable(longest_prompt, token_budget)
