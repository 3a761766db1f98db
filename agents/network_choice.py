"""The choice of a learned policy for networks: which class and phase of an engine goes first.

Every engine of a network decides for itself, by one rule that they share. All functions work on the
View of a network, whose arrays have an axis of engines before the batch axes; axis 0 of their results
counts features or choices. An engine that is in the middle of a batch has one choice only, so it takes
no part in what is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.agents.choice import Choice
from llmgym.baselines.max_pressure import MaxPressure, fill_phases, first_come, phases_of
from llmgym.baselines.ranking import progress
from llmgym.core.checks import keep_number
from llmgym.core.errors import LLMGymError
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.interface import Sight

MANY, OLD = 32.0, 256.0
"""Features of a class are capped at MANY times b_max prompt tokens, and at an age of OLD full batches."""

OF_CLASS = (
    "here",
    "prompts",
    "prompt_tokens",
    "begun_tokens",
    "decodes",
    "about_to_finish",
    "oldest_prompt",
    "prompts_behind",
    "tokens_behind",
    "pressure",
)
OF_ENGINE = ("prompt_tokens", "room")


@dataclass(frozen=True)
class NetworkChoice(Choice):
    """Observation and action of a learned policy for networks.

    An engine numbers its own classes by hop, then in the order of the scenario. Choice j < classes:
    prompts of class j go first, then all decodes, then the other prompts. Choice classes + j: all
    decodes, those of class j first, then prompts of class j, then the others. The others go in order
    of their pressure per token (see ``baselines.max_pressure``), FCFS inside a class, and the batch is
    filled up to the token budget.

    Features of each class: whether there is one; log1p of its requests in prefill; their tokens, and
    those of the prompts that have begun, over b_max; log1p of its decodes, and of those beyond 3/4 of
    the mean output; log1p of the age of its oldest prompt in full batches; log1p of the prompts where
    its calls go on, and their tokens over b_max; pressure of its prompts over that of the phase with
    the most. Features of the engine: log1p of all prompt tokens over b_max, and the
    share of b_max that the decodes leave.

    Args:
        engines: of the network.
        classes: most classes that an engine serves.
        prior: strength of the prior logits, ``prior`` times the pressure over the most of the engine,
            cut at -1; untrained the phase with the most pressure goes first. 0: none.
        decode_weight: w_d / w_p of the pressures.
        guard: where an engine has more than guard * b_max prompt tokens its decodes go first, then
            the prompts with the most pressure. None: no guard.
    """

    engines: int = 2
    classes: int = 2
    prior: float = 5.0
    decode_weight: float = 0.01
    guard: float | None = 32.0
    kind: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        keep_number(self, "engines", low=1, high=64, integer=True)
        keep_number(self, "classes", low=1, high=64, integer=True)
        keep_number(self, "prior", low=0)
        keep_number(self, "decode_weight", above=0)
        if self.guard is not None:
            keep_number(self, "guard", above=0)

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Number of choices."""
        return (2 * self.classes,)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features of an engine."""
        of_class = (f"{name}_{j}" for j in range(self.classes) for name in OF_CLASS)
        return (*of_class, *OF_ENGINE)

    def look(self, view: View, memory: Any = None) -> Sight:
        """Features, mask and prior of a view. Raises LLMGymError for a network of another size."""
        local = partial(_local, self._numbers(view), self.classes)
        pressure = jnp.concatenate([local(p) for p in jnp.split(self._pressures(view), 2)])
        classes = view.classes
        waiting = jnp.concatenate([local(classes.in_prefill), local(classes.in_decode)])
        number = jnp.arange(self.parts[0], dtype=jnp.int32).reshape(-1, *[1] * view.free.ndim)
        mask = (waiting > 0) & view.free
        if self.guard is not None:
            tokens = jnp.sum(classes.prompt_tokens, axis=0)
            prompts = jnp.where(mask[: self.classes], pressure[: self.classes], -jnp.inf)
            safe = self.classes + jnp.argmax(prompts, axis=0)
            forced = view.free & (tokens > self.guard * view.token_budget)
            mask = jnp.where(forced, number == safe, mask)
        mask = jnp.where(jnp.any(mask, axis=0), mask, number == 0)
        most = jnp.max(jnp.where(waiting > 0, pressure, -jnp.inf), axis=0)
        size = jnp.max(jnp.where(waiting > 0, jnp.abs(pressure), 0.0), axis=0)
        scale = jnp.maximum(jnp.where(most > 0, most, size), 1e-9)
        share = jnp.where(waiting > 0, jnp.clip(pressure / scale, -1.0, 1.0), 0.0)
        features = self._features(view, local, share[: self.classes])
        return Sight(features.astype(jnp.float32), mask, self.prior * share)

    def batch(self, view: View, choice: jax.Array) -> Batch:
        """The batch of a choice (1, ...)."""
        first = self._numbers(view) == choice[0] % self.classes
        prompts_first = first & (choice[0] < self.classes)
        pressure = jnp.split(self._pressures(view), 2)[0]
        others = 0.5 + 0.5 * pressure / (1 + jnp.abs(pressure))  # in order, from 0 to 1
        rank = others + jnp.where(prompts_first, 4.0, first.astype(jnp.float32))
        rank = jnp.concatenate([rank, 2.0 + first])
        mine, budget = phases_of(view), view.token_budget
        demand = jnp.minimum(view.demand, 1 << 15)
        waiting = jnp.stack([jnp.sum(jnp.where(m, demand, 0), axis=0) for m in mine])
        tokens = fill_phases(view, rank, waiting, budget)
        return progress(view, first_come(view, mine, tokens), budget)

    def log_prob_of(self, log_p: jax.Array, choice: jax.Array) -> jax.Array:
        """Log probability of what all engines do (..., envs), from (..., engines, envs, choices)."""
        return jnp.sum(super().log_prob_of(log_p, choice), axis=-2)

    def _pressures(self, view: View) -> jax.Array:
        return MaxPressure(decode_weight=self.decode_weight).pressures(view)

    def _numbers(self, view: View) -> jax.Array:
        """The engine's own number of each class (classes, ...), -1 for those of other engines."""
        classes, engines = view.classes, view.token_budget.shape[:1]
        if classes.most > self.classes or engines != (self.engines,):
            raise LLMGymError(
                f"This policy is for {self.engines} engines of up to {self.classes} classes each, and "
                f"the view has {engines[0] if engines else 1} of up to {classes.most}; train one on "
                "this scenario."
            )
        order = jnp.arange(classes.count).reshape(-1, *[1] * view.free.ndim)
        place = classes.hop * classes.count + order
        before = classes.here[:, None] & (place[:, None] < place[None])
        return jnp.where(classes.here, jnp.sum(before.astype(jnp.int32), axis=0), -1)

    def _features(self, view: View, local: Any, pressure: jax.Array) -> jax.Array:
        """The features (features, ...), those of class 0 first."""
        classes, budget = view.classes, view.token_budget
        batch_ms = view.batch_time.formula(budget.astype(jnp.float32), jnp)
        begun = jnp.where(view.started, view.prefill, 0)
        age = jnp.where(view.prefill > 0, view.waited, 0)

        def of_classes(take: Any, columns: Any) -> jax.Array:
            return jnp.stack([take(columns(k), axis=0) for k in range(classes.count)])

        def mine(values: jax.Array) -> Any:
            return lambda k: jnp.where(view.job_class == k, values, 0)

        late = of_classes(
            jnp.sum,
            lambda k: mine(view.decoding)(k) & (view.generated > 0.75 * classes.mean_decode[k]),
        )
        oldest = of_classes(jnp.max, mine(age)) * view.tick_ms / batch_ms
        found = [
            classes.here.astype(jnp.float32),
            jnp.log1p(classes.in_prefill),
            jnp.minimum(classes.prompt_tokens / budget, MANY),
            jnp.minimum(of_classes(jnp.sum, mine(begun)) / budget, MANY),
            jnp.log1p(classes.in_decode),
            jnp.log1p(late),
            jnp.log1p(jnp.minimum(oldest, OLD)),
            jnp.log1p(classes.requests_behind),
            jnp.minimum(classes.tokens_behind / budget, MANY),
        ]
        of_class = jnp.stack([*map(local, found), pressure], axis=1)
        tokens = jnp.sum(local(classes.prompt_tokens), axis=0) / budget
        decodes = jnp.sum(local(classes.in_decode), axis=0)
        of_engine = jnp.stack([jnp.log1p(tokens), jnp.maximum(1 - decodes / budget, 0.0)])
        return jnp.concatenate([of_class.reshape(-1, *of_class.shape[2:]), of_engine])


def _local(number: jax.Array, count: int, values: jax.Array) -> jax.Array:
    """Values of all classes (classes, ...) as those of the engine's own classes (count, ...)."""
    own = [jnp.sum(jnp.where(number == j, values, 0), axis=0) for j in range(count)]
    return jnp.stack(own)


def left_in_network(network: Any, state: Any) -> list[jax.Array]:
    """What is left, for the critic: jobs, prompt tokens, and two norms over the engines (4 of (...)).

    The norms are of the prompt tokens that wait at each engine and of the work that all jobs present
    will still bring to it, in full batches: their squares are what the cost to come grows with.
    """
    plan, table = network.plan, state.table
    here = slice(0, plan.engines)
    at = (-1,) + (1,) * state.present.ndim
    budget = network.token_budget.reshape(at)
    waiting = jnp.sum(table.prefill[:, here], axis=0) / budget
    later = _work_to_come(network)
    coming = jnp.sum((table.prefill + table.decode)[:, here], axis=0).astype(jnp.float32)
    for k in range(plan.classes):
        calls = jnp.sum((table.live & (table.job_class == k)).astype(jnp.float32), axis=(0, 1))
        coming = coming + later[k].reshape(at) * calls

    def norm(work: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(work**2, axis=0) + 1e-6)

    return [state.present / 100, jnp.sum(waiting, axis=0) / 10, norm(waiting) / 10,
            norm(coming / budget) / 100]  # fmt: skip


def _work_to_come(network: Any) -> jax.Array:
    """Mean tokens that a call of each class will bring to each engine after it (classes, engines)."""
    plan = network.plan
    serves = np.array(plan.group_of)[:, None] == np.array(plan.engine_group())[None]
    replicas = np.maximum(serves.sum(axis=1, keepdims=True), 1)
    work = jnp.sum(network.means, axis=0)[:, None] * (serves / replicas)
    visits, power = network.follows, network.follows  # R + R^2 + ..., doubled: 64 calls ahead
    for _ in range(6):
        visits, power = visits + power @ visits, power @ power
    return visits @ work


def jobs_arrived(network: Any, before: Any, after: Any) -> list[jax.Array]:
    """Jobs of each type that arrived in a step, one array (...) each: counted by their first calls.

    Args:
        network: Params of the network.
        before, after: its State before and after the step, of environments (...).
    """
    plan, table = network.plan, after.table
    new = table.live & ((table.job_arrival - before.clock.low).astype(jnp.int32) > 0)
    roots = [k for k in range(plan.classes) if plan.hop[k] == 0]
    first = {plan.type_of[k]: k for k in reversed(roots)}
    return [
        jnp.sum((new & (table.job_class == first[j])).astype(jnp.float32), axis=(0, 1))
        for j in range(len(plan.first_class))
    ]
