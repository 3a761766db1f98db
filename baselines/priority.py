"""Strict priority among request classes; inside a class any other policy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.decisions import remembers
from llmgym.baselines.policy import Policy
from llmgym.baselines.registry import make
from llmgym.core.errors import LLMGymError, shown
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class ClassPriority(Policy):
    """Serves the classes in turn: ``base`` forms the batch of each from what those before it left.

    Here the order is that of the priorities that the scenario gives its stages; classes of equal
    priority share a turn. Subclasses define other orders.
    """

    base: str | Policy = "sarathi"
    name: ClassVar[str] = "priority"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.base, str):
            object.__setattr__(self, "base", make(self.base))
        if not isinstance(self.base, Policy) or not self.base.batched or remembers(self.base):
            raise LLMGymError(
                "base must be a policy that takes views with batch axes and has no memory, got "
                f"{shown(self.base)}."
            )

    @property
    def label(self) -> str:
        """Name in tables: that of the rule, and of the base if it is not the usual one."""
        assert isinstance(self.base, Policy)
        return self.name if self.base.name == "sarathi" else f"{self.name}({self.base.name})"

    def value(self, view: View) -> jax.Array:
        """Importance (classes, ...); the largest goes first."""
        return view.classes.priority

    def __call__(self, key: jax.Array, view: View) -> Batch:
        assert isinstance(self.base, Policy)
        classes = view.classes
        budget = own_budget(view, self.token_budget)
        view = replace(view, token_budget=own_budget(view, self.base.token_budget))
        view = replace(view, token_budget=jnp.minimum(view.token_budget, budget))
        turn = _of_rows(view, _turns(self.value(view), classes.here))
        batch = view.empty()
        for n in range(classes.most):
            more = self.base(key, _left_over(view, batch, turn == n))
            batch = Batch(batch.tokens + more.tokens)
        return batch


def _turns(value: jax.Array, here: jax.Array) -> jax.Array:
    """How many classes of the engine are more important than each (classes, ...)."""
    better = here[:, None] & (value[:, None] > value[None])
    return jnp.sum(better.astype(jnp.int32), axis=0)


def _of_rows(view: View, turn: jax.Array) -> jax.Array:
    """A number of each class, for the slots (slots, ...)."""
    found = jnp.zeros_like(view.job_class)
    for k in range(view.classes.count):
        found = jnp.where(view.job_class == k, turn[k], found)
    return found


def _left_over(view: View, batch: Batch, mine: jax.Array) -> View:
    """The view with the slots ``mine`` alone, and with the tokens and seats that a batch leaves."""
    seats = view.max_num_seqs
    if seats is not None:
        taken = (batch.tokens > 0) & (~view.started if view.resident_limit else True)
        seats = seats - jnp.sum(taken.astype(jnp.int32), axis=0)
    return replace(
        view,
        prefill=jnp.where(mine, view.prefill, 0),
        decoding=view.decoding & mine,
        token_budget=view.token_budget - batch.size,
        max_num_seqs=seats,
    )


@dataclass(frozen=True)
class FirstBufferFirstServed(ClassPriority):
    """Calls early in their job go first."""

    name: ClassVar[str] = "fbfs"

    def value(self, view: View) -> jax.Array:
        return -view.classes.hop


@dataclass(frozen=True)
class LastBufferFirstServed(ClassPriority):
    """Calls late in their job go first."""

    name: ClassVar[str] = "lbfs"

    def value(self, view: View) -> jax.Array:
        return view.classes.hop


@dataclass(frozen=True)
class RoundRobin(ClassPriority):
    """The classes of an engine take turns at being first, from batch to batch."""

    name: ClassVar[str] = "round_robin"

    def value(self, view: View) -> jax.Array:
        here = view.classes.here.astype(jnp.int32)
        count = jnp.maximum(jnp.sum(here, axis=0), 1)
        number = jnp.cumsum(here, axis=0) - here
        return -((number - view.batches) % count)


@dataclass(frozen=True)
class LongestQueue(ClassPriority):
    """The class with the most requests goes first."""

    name: ClassVar[str] = "longest_queue"

    def value(self, view: View) -> jax.Array:
        return view.classes.in_prefill + view.classes.in_decode


@dataclass(frozen=True)
class LongestWorkload(ClassPriority):
    """The class with the most expected tokens goes first: a control that makes networks unstable."""

    name: ClassVar[str] = "longest_workload"

    def value(self, view: View) -> jax.Array:
        classes = view.classes
        requests = (classes.in_prefill + classes.in_decode).astype(jnp.float32)
        return classes.prompt_tokens + requests * classes.mean_decode
