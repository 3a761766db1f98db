"""Exclusive batching: prefill and decode never share a batch (arXiv:2606.00516)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import progress
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.engine.fill import choose, fill, own_budget
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class ExclusiveBatching(Policy):
    """EB(k): decodes alone until k of the N slots are free, then prefill alone until all are taken.

    Where k is not given it is k* = max(1, floor(theta_0 * N)) with ::

        theta_0 / (1 - theta_0) + ln(1 - theta_0) = p_0 * alpha_p / alpha_d

    p_0 = 1 / mean output, and alpha_p, alpha_d the fixed cost of a prefill and of a decode batch.

    Completed: prompts go FCFS, in chunks where they exceed the budget; prefill ends early where
    nobody waits any more, and starts early where nobody decodes. The phase follows from the requests:
    prefill goes on if the last batch left out a request that decodes, or a prompt is in the middle.

    Args:
        k: free slots that start prefill; None: k*.
        slots: N; None: the engine's limit on requests, or its token budget where it has none.
        mean_output: 1 / p_0 in tokens; None: the mean over the classes that the engine serves.
        alpha_ratio: alpha_p / alpha_d; 1 where all batches have the same fixed cost.
    """

    k: int | None = None
    slots: int | None = None
    mean_output: float | None = None
    alpha_ratio: float = 1.0
    name: ClassVar[str] = "exclusive_batching"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("k", "slots"):
            if getattr(self, name) is not None:
                keep_number(self, name, low=1, integer=True)
        if self.mean_output is not None:
            keep_number(self, "mean_output", above=0)
        keep_number(self, "alpha_ratio", above=0, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        slots = self._slots(view)
        return self.exclusive(view, slots, self.threshold(view, slots))

    def exclusive(self, view: View, slots: jax.Array, k: jax.Array) -> Batch:
        """The batch of EB(k).

        Args:
            view: what the engine shows.
            slots: N (...), int32.
            k: free slots that start prefill (...), int32.
        """
        budget = own_budget(view, self.token_budget)
        prompts, decoding = self._candidates(view, slots)
        prefills = fill(view, view.empty(), jnp.where(prompts, view.prefill, 0), budget)
        decodes = fill(view, view.empty(), jnp.where(decoding, view.decode, 0), budget)
        free = slots - jnp.sum(view.started.astype(jnp.int32), axis=0)
        turn = (free >= k) | _was_prefill(view) | (decodes.size == 0)
        batch = choose(turn & (prefills.size > 0), prefills, decodes)
        return progress(view, batch, budget, decodes)

    def threshold(self, view: View, slots: jax.Array) -> jax.Array:
        """k: at least 1, at most N, so that prefill starts at the latest when all slots are free."""
        return self.best_k(slots, self.alpha_ratio, self._output(view))

    def best_k(self, slots: jax.Array, alpha_ratio: Any, output: jax.Array) -> jax.Array:
        """k, at most N: as it is set, or k* for the given costs.

        Args:
            slots: N (...), int32.
            alpha_ratio: alpha_p / alpha_d, a number or (...).
            output: mean output in tokens (...).
        """
        if self.k is not None:
            return jnp.minimum(slots, self.k)
        theta = theta_0(alpha_ratio / output)
        return jnp.maximum(jnp.floor(theta * slots).astype(jnp.int32), 1)

    def _slots(self, view: View) -> jax.Array:
        """N: no more than one batch of decodes can take."""
        budget = own_budget(view, self.token_budget)
        slots = budget if view.max_num_seqs is None else jnp.minimum(budget, view.max_num_seqs)
        return slots if self.slots is None else jnp.minimum(slots, self.slots)

    def _output(self, view: View) -> jax.Array:
        return mean_length(view, view.classes.mean_decode, self.mean_output)

    def _candidates(self, view: View, slots: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The requests that have a slot or, FCFS, get a free one: those in prefill and in decode."""
        waiting = view.live & ~view.started
        free = slots - jnp.sum(view.started.astype(jnp.int32), axis=0)
        inside = view.started | (waiting & (prefix_sum(waiting) <= free))
        return inside & (view.prefill > 0), inside & view.decoding


def theta_0(target: Any) -> jax.Array:
    """The root of theta / (1 - theta) + ln(1 - theta) = target > 0, by bisection."""
    target = jnp.asarray(target, jnp.float32)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        above = middle / (1 - middle) + jnp.log1p(-middle) > target
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    return jax.lax.fori_loop(0, 24, halve, (jnp.zeros_like(target), jnp.ones_like(target)))[0]


def _was_prefill(view: View) -> jax.Array:
    """Whether the last batch was one of prefill: a decode batch takes all that decode."""
    never = jnp.iinfo(jnp.int32).max
    last = jnp.min(jnp.where(view.started, view.unserved, never), axis=0)
    left_out = view.started & view.decoding & (view.unserved > last)
    return jnp.any(left_out | (view.started & (view.prefill > 0)), axis=0)


def mean_length(view: View, of_class: jax.Array, given: float | None) -> jax.Array:
    """A mean length in tokens (...), float32: as given, or over the classes that the engine serves.

    Args:
        view: what the engine shows.
        of_class: mean tokens of every class (classes, ...); the mean over them is at least 1.
        given: tokens; None: the mean over the classes, each counted once.
    """
    if given is not None:
        return jnp.full(view.token_budget.shape, given, jnp.float32)
    here = view.classes.here.astype(jnp.float32)
    return jnp.maximum(jnp.sum(of_class * here, axis=0) / jnp.maximum(jnp.sum(here, axis=0), 1), 1)
