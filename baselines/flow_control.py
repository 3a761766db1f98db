"""Flow control with known lengths (Dong and Cao, arXiv:2604.11001, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import MOST, by_class, of_classes, whole
from llmgym.core.arrays import prefix_sum
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View

PHASE_BITS = 16
"""Fractions of an activation are counted in steps of 2**-16."""


@dataclass(frozen=True)
class FlowControl(Policy):
    """Every slot activates up to b_k waiting requests of class k; all active requests run.

    A slot is an iteration. A request with l prompt tokens in memory and o output tokens to make holds
    l + j tokens in its j-th slot, w_k = l*o + o*(o + 1)/2 token-slots in all. So where the requests of
    a class are alike, memory M never overflows if sum b_k*w_k < M, and no queue grows if also b_k
    exceeds its arrivals a slot, lambda_k: ``llmgym.theory.flow_control`` gives the verdict for a
    scenario. FCFS inside a class. The lengths are known through the classes alone.

    Completed: an activation is the first chunk of the prompt, and active requests come first in the
    token budget. A fractional b_k is spread evenly over the iterations. With nobody active the first
    request in line is activated in any case. Where memory is short all the same, newcomers wait and
    the engine preempts.

    Args:
        activations: b_k, one for each class, or one number for every class. None: the same number for
            every class, as many as M allows requests of their mean lengths, rounded down if above 1.
    """

    activations: Any = None
    name: ClassVar[str] = "flow_control"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activations is not None:
            object.__setattr__(self, "activations", by_class("activations", self.activations))

    def __call__(self, key: jax.Array, view: View) -> Batch:
        waiting = view.live & ~view.started
        rates = self.activations
        if rates is None:
            rates = affordable(view)
            rates = jnp.where(rates > 1, jnp.floor(rates), rates)
        new = ~jnp.any(view.started, axis=0) & waiting & (prefix_sum(waiting) == 1)
        for k, rate in enumerate(of_classes("activations", view, rates)):
            mine = waiting & (view.job_class == k)
            new = new | (mine & (prefix_sum(mine) <= _due(view, rate)))
        batch = fill(view, view.empty(), jnp.where(view.started, view.demand, 0), self.token_budget)
        return fill(view, batch, jnp.where(new, view.demand, 0), self.token_budget)


def affordable(view: View) -> jax.Array:
    """b (...) with M = sum_k b*w_k: how many requests of every class each slot can go on activating.

    Lengths are the means of the classes, and a prompt is one iteration. MOST where memory has no limit.
    """
    memory = view.memory
    if memory is None:
        return jnp.full(view.token_budget.shape, float(MOST))
    prompt = view.classes.mean_prefill
    decodes = jnp.maximum(view.classes.mean_decode - memory.prompt_samples, 0)
    held = prompt * (1 + decodes) + decodes * (1 + decodes) / 2
    held = jnp.sum(jnp.where(view.classes.here, held, 0), axis=0)
    return memory.blocks * memory.block_size / jnp.maximum(held, 1)


def _due(view: View, rate: Any) -> jax.Array:
    """Activations that are due in this iteration: the whole numbers that n*rate passes in it.

    n is the number of iterations so far. The product wraps around at 2**32, a whole number of activations.
    """
    rate = jnp.asarray(rate, jnp.float32)
    certain = jnp.floor(rate)
    part = ((rate - certain) * 2**PHASE_BITS).astype(jnp.uint32)
    phase = (view.batches.astype(jnp.uint32) * part) % 2**PHASE_BITS
    return whole(certain) + ((phase + part) >> PHASE_BITS).astype(jnp.int32)
