"""The batches that vLLM 0.33 forms under its priority policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from llmgym.arrays import rows
from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.composition import Batch, View, own_budget


class Scan(NamedTuple):
    """A batch as it is formed, request by request."""

    tokens: jax.Array  # (slots,)
    running: jax.Array  # (slots,) who runs
    todo: jax.Array  # (slots,) who is yet to be looked at
    preempt: jax.Array  # (slots,) who lost its memory
    budget: jax.Array
    free: jax.Array  # blocks
    stopped: jax.Array


@dataclass(frozen=True)
class VLLMV1Priority(VLLMV1):
    """As ``vllm_v1``, but the waiting stand in order of priority, and the least urgent is preempted.

    The priorities are those of the request classes; at a tie the earlier arrival is more urgent. Running
    requests still go in order of admission, so one that is preempted may be in the batch already: it
    leaves it, and its tokens return to the budget.
    """

    name: ClassVar[str] = "vllm_v1_priority"
    batched: ClassVar[bool] = False

    def __call__(self, key: jax.Array, view: View) -> Batch:
        demand = self._demand(view)
        urgency = jnp.zeros_like(demand)
        for k in range(view.classes.count):
            urgency = jnp.where(view.job_class == k, view.classes.priority[k], urgency)
        none = jnp.zeros_like(view.live)
        endless = jnp.int32(2**30)
        scan = Scan(
            tokens=jnp.zeros_like(demand),
            running=view.started,
            todo=view.started,
            preempt=none,
            budget=own_budget(view, self.token_budget),
            free=endless if view.memory is None else view.memory.free,
            stopped=jnp.array(False),
        )

        def goes_on(scan: Scan) -> jax.Array:
            return jnp.any(scan.todo) & (scan.budget > 0) & ~scan.stopped

        scan = jax.lax.while_loop(goes_on, lambda s: self._run(view, demand, urgency, s), scan)
        waiting = view.live & ~view.started & ~jnp.any(scan.preempt)
        scan = scan._replace(todo=waiting, stopped=jnp.array(False))
        scan = jax.lax.while_loop(goes_on, lambda s: self._admit(view, demand, urgency, s), scan)
        return Batch(scan.tokens, None if view.memory is None else scan.preempt)

    def _run(self, view: View, demand: jax.Array, urgency: jax.Array, scan: Scan) -> Scan:
        """The next running request gets its tokens, and blocks, if need be, of the least urgent."""
        memory = view.memory
        admitted = jnp.zeros_like(demand) if memory is None else memory.admitted
        me = _first(scan.todo, admitted, -urgency)
        tokens = jnp.minimum(demand[me], scan.budget)
        if memory is None:
            return scan._replace(
                tokens=scan.tokens.at[me].set(tokens),
                todo=scan.todo.at[me].set(False),
                budget=scan.budget - tokens,
            )
        new = memory.needed(tokens)[me] - memory.held[me]

        def short(scan: Scan) -> jax.Array:
            return (new > scan.free) & ~scan.stopped

        def preempt(scan: Scan) -> Scan:
            victim = _last(scan.running, urgency)
            return scan._replace(
                tokens=scan.tokens.at[victim].set(0),
                running=scan.running.at[victim].set(False),
                todo=scan.todo.at[victim].set(False),
                preempt=scan.preempt.at[victim].set(True),
                budget=scan.budget + scan.tokens[victim],
                free=scan.free + memory.needed(scan.tokens)[victim],
                stopped=victim == me,
            )

        scan = jax.lax.while_loop(short, preempt, scan)
        given = jnp.where(scan.stopped, 0, tokens)
        return scan._replace(
            tokens=scan.tokens.at[me].set(given),
            todo=scan.todo.at[me].set(False),
            budget=scan.budget - given,
            free=scan.free - jnp.where(scan.stopped, 0, new),
        )

    def _admit(self, view: View, demand: jax.Array, urgency: jax.Array, scan: Scan) -> Scan:
        """The most urgent waiting request is admitted, if it fits; else nobody more is."""
        me = _first(scan.todo, -urgency, rows(urgency))
        tokens, fits = jnp.minimum(demand[me], scan.budget), jnp.array(True)
        if not self.chunked_prefill:
            fits = demand[me] <= scan.budget
        if view.max_num_seqs is not None:
            fits &= jnp.sum(scan.running.astype(jnp.int32)) < view.max_num_seqs
        new = jnp.int32(0)
        if view.memory is not None:
            new = view.memory.needed(tokens)[me]
            must = view.memory.needed(view.prefill + view.decode)[me] if self.reserve_full else new
            spare = jnp.where(jnp.any(scan.running), self._spare(view.memory.blocks), 0)
            fits &= must + spare <= scan.free
        given = jnp.where(fits, tokens, 0)
        return scan._replace(
            tokens=scan.tokens.at[me].set(given),
            running=scan.running.at[me].set(fits),
            todo=scan.todo.at[me].set(False),
            budget=scan.budget - given,
            free=scan.free - jnp.where(fits, new, 0),
            stopped=~fits,
        )


def _first(mask: jax.Array, *keys: jax.Array) -> jax.Array:
    """The slot of a mask with the smallest first key, among those with the smallest second, ..."""
    for key in keys:
        mask = mask & (key == jnp.min(jnp.where(mask, key, jnp.iinfo(jnp.int32).max)))
    return jnp.argmax(mask)


def _last(mask: jax.Array, urgency: jax.Array) -> jax.Array:
    """The least urgent slot of a mask, the latest arrival at a tie."""
    return _first(mask, urgency, -rows(urgency))
