"""From whatever a user calls a policy to one function on a batch of environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym import agents, baselines
from llmgym.composition import Batch, View
from llmgym.errors import LLMGymError, unknown
from llmgym.scenario import Scenario
from llmgym.theory.memory import held_tokens, likely_longest_request
from llmgym.workload import Replay

PolicyLike = str | Callable[[jax.Array, View], Batch]


def resolve(policy: PolicyLike) -> Callable[[jax.Array, View], Batch]:
    """The policy that a name stands for, or the policy object or function itself.

    Raises LLMGymError for an unknown name (with the nearest match) or something that cannot be called.
    """
    if isinstance(policy, str):
        if policy in agents.names() or agents.is_path(policy):
            return agents.load(policy)
        if policy not in baselines.POLICIES:
            raise unknown("policy", policy, (*baselines.names(), *agents.names()))
        return baselines.make(policy)
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
    """The policy's batch for every engine of every environment.

    ``keys`` has the batch axes, none or one. A view of a network has an axis of engines before them;
    every engine then has its own random key.
    """
    if getattr(policy, "batched", False):
        return policy(keys, view)
    if view.token_budget.ndim > keys.ndim:  # engines
        count = jnp.arange(view.token_budget.shape[0])
        keys = jax.vmap(lambda s: _fold(keys, s), out_axes=-1)(count)
    for _ in range(keys.ndim):
        policy = jax.vmap(policy, in_axes=(0, -1), out_axes=-1)
    return policy(keys, view)


def _fold(keys: jax.Array, number: jax.Array) -> jax.Array:
    fold = jax.random.fold_in
    return fold(keys, number) if keys.ndim == 0 else jax.vmap(fold, in_axes=(0, None))(keys, number)


def check(policy: Any, scenario: Scenario) -> str | None:
    """Why some request of the scenario can never be served under the policy; None if all can."""
    problem = memory_problem(scenario)
    unservable = getattr(policy, "unservable", None)
    if problem or unservable is None:
        return problem
    problems = (unservable(scenario.longest_prompt(e), e.token_budget) for e in scenario.engines)
    return next((problem for problem in problems if problem), None)


def memory_problem(scenario: Scenario) -> str | None:
    """Which requests never fit into the KV memory of an engine; None if all do."""
    cache = scenario.engine.kv_cache
    if cache is None or scenario.is_network or likely_longest_request(scenario) <= cache.tokens:
        return None
    who = f"Requests of up to {likely_longest_request(scenario):g} tokens"
    if isinstance(scenario.workload, Replay):
        held = held_tokens(scenario.workload, scenario.engine.prompt_samples)
        number = np.flatnonzero(held > cache.tokens)
        more = f" and {number.size - 1} more" if number.size > 1 else ""
        who = f"Request {number[0]}, of {held[number[0]]} tokens,{more}"
    return (
        f"{who} never fit into KV memory, which holds {cache.tokens}: they are dropped and counted. "
        "Use more blocks or shorter requests."
    )
