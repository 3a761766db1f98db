"""Max-pressure: the batch with the most pressure relieved per millisecond.

Tassiulas and Ephremides (1992), Dai and Lin (2005), for batches whose time has a set-up cost: dividing
by t_b prices it. Queues are counted in requests, not in tokens: a long prompt is one unit of work
that has to be moved, and weights in tokens make networks of engines oscillate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import progress
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.engine.fill import own_budget
from llmgym.engine.view import Batch, Classes, View

SIZES = 8
"""Batch sizes that are compared where the batch time has no tiles."""

MOST_TILES = 16


@dataclass(frozen=True)
class MaxPressure(Policy):
    """The batch (x, y) that maximises, over t_b::

        sum_k x_k/m_p,k (w_p z_p,k - w_d z_d,k) + y_k/m_d,k (w_d z_d,k - sum_l R_kl w_p z_p,l)

    x_k and y_k are prefill and decode tokens of class k, z its requests in prefill and decode, R the
    calls that follow. For a batch size b the best batch takes the phases of all classes in order of
    their pressure per token; the sizes compared are whole tiles (or eighths of the budget). FCFS
    inside a class. Phases with no pressure wait, so it can idle in a network.

    ``decode_weight`` is w_d / w_p.
    """

    decode_weight: float = 0.05
    name: ClassVar[str] = "max_pressure"
    saturates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "decode_weight", above=0, arrays=True)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        pressure, mine = self.pressures(view), phases_of(view)
        waiting = jnp.stack(
            [jnp.sum(jnp.where(m, jnp.minimum(view.demand, 1 << 15), 0), 0) for m in mine]
        )
        budget = own_budget(view, self.token_budget)
        tile = getattr(view.batch_time, "tile", None)
        best = jnp.full(budget.shape, -1.0)
        tokens = jnp.zeros_like(waiting)
        for n in range(1, (SIZES if tile is None else MOST_TILES) + 1):
            size = (
                budget * n // SIZES
                if tile is None
                else jnp.minimum(n * tile.astype(jnp.int32), budget)
            )
            given = fill_phases(view, pressure, waiting, size)
            total = jnp.sum(given, axis=0)
            gain = jnp.sum(pressure * given, axis=0)
            rate = gain / view.batch_time.formula(jnp.maximum(total, 1).astype(jnp.float32), jnp)
            better = (rate > best) & (total > 0)
            best = jnp.where(better, rate, best)
            tokens = jnp.where(better, given, tokens)
        return progress(view, first_come(view, mine, tokens), budget)

    def queues(self, classes: Classes) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Lengths (classes, ...) of the queues in prefill, in decode, and where the calls go on."""
        return classes.in_prefill, classes.in_decode, classes.requests_behind

    def pressures(self, view: View) -> jax.Array:
        """Pressure per token (2 * classes, ...): prefill of every class, then decode."""
        classes = view.classes
        prefills, decodes, behind = (q.astype(jnp.float32) for q in self.queues(classes))
        decodes = self.decode_weight * decodes
        # A class without output hands its prompts on at once.
        onward = jnp.where(classes.mean_decode > 0, decodes, behind)
        prefill = (prefills - onward) / jnp.maximum(classes.mean_prefill, 1e-6)
        decode = (decodes - behind) / jnp.maximum(classes.mean_decode, 1e-6)
        return jnp.concatenate([prefill, decode])


def phases_of(view: View) -> list[jax.Array]:
    """The slots in prefill of every class, then those that decode."""
    of_class = [view.job_class == k for k in range(view.classes.count)]
    return [(view.prefill > 0) & m for m in of_class] + [view.decoding & m for m in of_class]


def fill_phases(view: View, pressure: jax.Array, waiting: jax.Array, size: jax.Array) -> jax.Array:
    """Tokens of every phase (2 * classes, ...), int32, in a batch: the most pressure per token first.

    A phase gets nothing where its pressure is not above 0. Where k_max counts the batch, one seat is
    kept for a prompt if the prefill of any class has pressure.

    Args:
        view: what the engine shows.
        pressure: per token of every phase (2 * classes, ...), prefills first, float32.
        waiting: tokens that each phase could put into the batch (2 * classes, ...), int32.
        size: tokens of the batch at most (...), int32.
    """
    phases = waiting.shape[0]
    is_decode = jnp.arange(phases) >= phases // 2
    order = jnp.argsort(-pressure, axis=0, stable=True)
    room = size
    seats = None
    if view.max_num_seqs is not None and not view.resident_limit:
        prompts = jnp.any((pressure > 0)[: phases // 2] & (waiting > 0)[: phases // 2], axis=0)
        seats = view.max_num_seqs - prompts.astype(jnp.int32)
    given = jnp.zeros_like(waiting)
    for position in range(phases):
        chosen = order[position]
        hit = jnp.arange(phases).reshape((-1,) + (1,) * chosen.ndim) == chosen
        take = jnp.minimum(jnp.sum(jnp.where(hit, waiting, 0), axis=0), room)
        if seats is not None:
            decodes = is_decode[chosen]
            take = jnp.where(decodes, jnp.minimum(take, seats), take)
            seats = seats - jnp.where(decodes, take, 0)
        take = jnp.where(jnp.sum(jnp.where(hit, pressure, 0), axis=0) > 0, take, 0)
        given = given + jnp.where(hit, take, 0)
        room = room - take
    return given


def first_come(view: View, mine: list[jax.Array], tokens: jax.Array) -> Batch:
    """The batch that gives the tokens of every phase to its requests first come, first served.

    Args:
        view: what the engine shows.
        mine: ``phases_of(view)``.
        tokens: of every phase (2 * classes, ...), int32.
    """
    total = jnp.zeros_like(view.prefill)
    for slots, limit in zip(mine, tokens, strict=True):
        demand = jnp.where(slots, jnp.minimum(view.demand, limit + 1), 0)
        total = total + jnp.clip(limit - (prefix_sum(demand) - demand), 0, demand)
    return Batch(total)


@dataclass(frozen=True)
class TokenPressure(MaxPressure):
    """Max-pressure with queues counted in expected tokens: a control that makes networks unstable."""

    name: ClassVar[str] = "token_pressure"
    decode_weight: float = 1.0

    def queues(self, classes: Classes) -> tuple[jax.Array, jax.Array, jax.Array]:
        decode_tokens = classes.in_decode * classes.mean_decode
        return classes.prompt_tokens, decode_tokens, classes.tokens_behind
