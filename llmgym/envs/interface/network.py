"""What an agent sees of a network of engines, and does there.

Every engine is seen and steered as one engine is in ``llmgym/Engine-v0``, with the classes that it
serves; actions and observations of the engines stand in a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.engine.plan import Plan
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.actions import make_encoding
from llmgym.envs.interface.chosen import make_observation
from llmgym.envs.interface.encoding import ActionEncoding, Sizes, parts_of
from llmgym.envs.interface.observations import Observation, ObservationBase
from llmgym.envs.interface.sound import sound_batch
from llmgym.scenario.scenario import Scenario

MOST_BUSY = float(np.log1p(1e5))
"""Bound of log1p(milliseconds) of a batch: 100 seconds."""


def engine_scenario(scenario: Scenario, engine: int) -> Scenario:
    """One engine of a network as a scenario of its own: its calls arrive as a Poisson stream."""
    plan = Plan.of(scenario)
    group = plan.engine_group()[engine]
    served_by = scenario.engines[group]
    alone, share = replace(served_by, replicas=1), 1 / served_by.replicas
    calls = scenario.demand.calls_at(alone.name, _classes_of(plan, group), share)
    return replace(scenario, engines=(alone,), workload=calls, router="fewest_tokens")


def _classes_of(plan: Plan, group: int) -> list[int]:
    """The classes that a group of engines serves; that of an idle one is never seen."""
    return [k for k, g in enumerate(plan.group_of) if g == group] or [0]


def engine_view(plan: Plan, view: View, engine: int) -> View:
    """What one engine shows, its classes numbered from 0.

    Args:
        plan: of the network.
        view: of all engines.
        engine: its number; every replica is an engine.
    """
    axis = -(view.token_budget.ndim - 1) - 1  # of the engines, counted from the batch axes
    one = jax.tree.map(
        lambda x: jax.lax.index_in_dim(x, engine, x.ndim + axis, keepdims=False), view
    )
    job_class = jnp.zeros_like(one.job_class)
    for number, k in enumerate(_classes_of(plan, plan.engine_group()[engine])):
        job_class = jnp.where(one.job_class == k, number, job_class)
    return replace(one, job_class=job_class)


@dataclass(frozen=True)
class NetworkEncoding(ActionEncoding):
    """An encoding for every engine, in a row; then the routing choices.

    Discrete choices of the engines form one MultiDiscrete, scores one Box. Under ``router="action"``
    the last choices name, for each group of replicas, where calls go until the next decision.
    """

    plan: Plan
    parts: tuple[ActionEncoding, ...]  # of each engine

    @classmethod
    def of(cls, scenario: Scenario, action: Any, settings: dict[str, Any]) -> NetworkEncoding:
        """That of a scenario, made of the encodings that ``make_encoding`` gives for its engines.

        Args:
            scenario: the network.
            action: name or class of the encoding of every engine.
            settings: of it.
        """
        plan = Plan.of(scenario)
        faces = (engine_scenario(scenario, s) for s in range(plan.engines))
        return cls(plan, tuple(make_encoding(action, face, **settings) for face in faces))

    @property
    def routed(self) -> tuple[int, ...]:
        """The groups whose replica is chosen by the action."""
        scores = isinstance(self.parts[0].space, gym.spaces.Box)
        if self.plan.router != "action" or scores:
            return ()
        return tuple(g for g, (_, replicas) in enumerate(self.plan.groups) if replicas > 1)

    @cached_property
    def space(self) -> gym.Space[Any] | None:
        """The Gymnasium space; None where the action is a Batch itself."""
        spaces = [part.space for part in self.parts]
        if any(space is None for space in spaces):
            return None
        if isinstance(spaces[0], gym.spaces.Box):
            low = np.concatenate([s.low for s in spaces])  # type: ignore[union-attr]
            high = np.concatenate([s.high for s in spaces])  # type: ignore[union-attr]
            return gym.spaces.Box(low, high, dtype=np.float32)
        sizes = [n for space in spaces if space is not None for n in parts_of(space)]
        return gym.spaces.MultiDiscrete([*sizes, *(self.plan.groups[g][1] for g in self.routed)])

    def _widths(self) -> list[int]:
        """Entries of the action that belong to each engine."""
        spaces = [part.space for part in self.parts]
        return [
            space.shape[0] if isinstance(space, gym.spaces.Box) else len(parts_of(space))
            for space in spaces
        ]

    def mask(self, view: View) -> jax.Array:
        """Feasible choices, flat; engines that are busy have one, the first of each dimension."""
        if self.space is None:
            return (view.demand > 0) & view.free
        masks = []
        for s, part in enumerate(self.parts):
            one = engine_view(self.plan, view, s)
            mask = part.mask(one)
            first = np.zeros(mask.shape[0], bool)
            if not isinstance(part.space, gym.spaces.Box):
                sizes = parts_of(part.space)
                first[np.cumsum([0, *sizes[:-1]])] = True
            first = first.reshape((-1,) + (1,) * (mask.ndim - 1))
            masks.append(jnp.where(one.free, mask, first))
        for g in self.routed:
            masks.append(jnp.ones((self.plan.groups[g][1], *view.token_budget.shape[1:]), bool))
        return jnp.concatenate(masks)

    def start(self, view: View) -> tuple[Any, ...]:
        """The first memory of every engine's encoding."""
        return tuple(p.start(engine_view(self.plan, view, s)) for s, p in enumerate(self.parts))

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        """The batches of all engines, and the memory of every engine's encoding."""
        if self.space is None:
            return sound_batch(action, view.prefill.shape), memory
        action = jnp.asarray(action)
        batches, memories, start = [], [], 0
        for s, (part, width) in enumerate(zip(self.parts, self._widths(), strict=True)):
            own = action[start : start + width]
            start += width
            if isinstance(part.space, gym.spaces.Discrete):
                own = own[0]
            batch, new = part.decide(own, engine_view(self.plan, view, s), memory[s])
            batches.append(batch.tokens)
            memories.append(new)
        return Batch(jnp.stack(batches, axis=1)), tuple(memories)

    def expand(self, action: Any, view: View) -> Batch:
        """The batches of all engines, of encodings without a memory."""
        memory = self.start(view)
        if jax.tree.leaves(memory):
            raise LLMGymError("This encoding has a memory: use decide(action, view, memory).")
        return self.decide(action, view, memory)[0]

    def route(self, action: Any, route: jax.Array) -> jax.Array:
        """The replicas (groups, ...) that the action names; those of other groups stay."""
        if not self.routed:
            return route
        chosen = jnp.asarray(action, jnp.int32)[sum(self._widths()) :]
        return route.at[jnp.array(self.routed)].set(chosen)


@dataclass(frozen=True)
class NetworkObservation(ObservationBase):
    """The observation of every engine, then ``busy``, ``busy_for`` of each, and ``jobs``.

    ``busy_for``: log1p of the milliseconds until its batch ends; ``jobs``: log1p of jobs present. The arrival
    rate that engines see is that of the network.
    """

    plan: Plan
    engines: tuple[str, ...]  # their names
    parts: tuple[ObservationBase, ...]  # of each engine
    slots: int

    @classmethod
    def of(cls, scenario: Scenario, observation: Any, requests: int) -> NetworkObservation:
        """That of a scenario, made of what ``make_observation`` gives for its engines.

        Args:
            scenario: the network.
            observation: names and features of every engine.
            requests: how many single requests each lists.
        """
        plan = Plan.of(scenario)
        wholes = (
            Observation(Sizes.of(engine_scenario(scenario, s)), requests)
            for s in range(plan.engines)
        )
        parts = tuple(make_observation(observation, whole) for whole in wholes)
        return cls(plan, tuple(scenario.engine_names), parts, scenario.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        own = [
            f"{e}.{n}" for e, part in zip(self.engines, self.parts, strict=True) for n in part.names
        ]
        busy = [f"{e}.{n}" for n in ("busy", "busy_for") for e in self.engines]
        return (*own, *busy, "jobs")

    @cached_property
    def space(self) -> gym.spaces.Box:
        """Box of float32 with finite bounds."""
        engines = self.plan.engines
        rest = [*[1.0] * engines, *[MOST_BUSY] * engines, np.log1p(self.slots)]
        high = np.concatenate([*(part.space.high for part in self.parts), rest])
        low = np.concatenate([*(part.space.low for part in self.parts), np.zeros(len(rest))])
        return gym.spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def start(self, view: View) -> tuple[Any, ...]:
        return tuple(p.start(engine_view(self.plan, view, s)) for s, p in enumerate(self.parts))

    def remember(self, view: View, memory: Any) -> tuple[Any, ...]:
        return tuple(
            p.remember(engine_view(self.plan, view, s), memory[s]) for s, p in enumerate(self.parts)
        )

    def __call__(self, view: View, memory: Any) -> jax.Array:
        """The vector (entries, ...)."""
        assert view.busy is not None
        assert view.present is not None
        parts = [
            part(engine_view(self.plan, view, s), memory[s]) for s, part in enumerate(self.parts)
        ]
        busy_ms = view.busy.astype(jnp.float32) * view.tick_ms
        parts += [
            (view.busy > 0).astype(jnp.float32),
            jnp.minimum(jnp.log1p(busy_ms), np.float32(MOST_BUSY)),
            jnp.log1p(view.present[:1].astype(jnp.float32)),
        ]
        return jnp.concatenate(parts)
