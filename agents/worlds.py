"""The worlds of a training run, made from its scenarios: blocks of engines at time 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.agents.learner import World
from llmgym.agents.ppo import PPO
from llmgym.baselines.tiles import DEFAULT_TILE
from llmgym.engine import simulator
from llmgym.engine.plan import Plan
from llmgym.scenario.scenario import Scenario


def tiles_of(scenarios: Sequence[Scenario]) -> int:
    """The most tiles that a batch of any of them holds."""
    tile = [getattr(s.engine.batch_time, "tile", DEFAULT_TILE) for s in scenarios]
    return max(-(-s.engine.token_budget // t) for s, t in zip(scenarios, tile, strict=True))


def network_size(scenarios: Sequence[Scenario]) -> dict[str, int]:
    """Engines of the networks, and the most classes that an engine of any of them serves."""
    plans = [Plan.of(s) for s in scenarios]
    served = [plan.group_of.count(group) for plan in plans for group in range(len(plan.groups))]
    return {"engines": max(plan.engines for plan in plans), "classes": max(served)}


def worlds_of(
    scenarios: Sequence[Scenario], settings: PPO, key: jax.Array
) -> tuple[tuple[Any, ...], tuple[World, ...]]:
    """Params and worlds, stacked in groups whose compiled form is the same.

    Args:
        scenarios: one for each world.
        settings: of the learner.
        key: from which the keys of the worlds follow.
    """
    groups: dict[Any, list[tuple[int, Any]]] = {}
    for n, scenario in enumerate(scenarios):
        physics = jax.tree.map(jnp.asarray, simulator.lower(scenario))
        leaves, structure = jax.tree.flatten(physics)
        form = (structure, tuple((x.shape, x.dtype) for x in leaves))
        groups.setdefault(form, []).append((n, physics))
    stacked, worlds = [], []
    for members in groups.values():
        numbers = jnp.array([n for n, _ in members])
        stacked.append(jax.tree.map(lambda *x: jnp.stack(x), *(p for _, p in members)))
        keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)
        zeros = np.zeros(numbers.size, np.float32)
        engine, memory = _empty_engines(settings, stacked[-1], keys)
        worlds.append(
            World(
                number=numbers,
                engine=engine,
                memory=memory,
                key=jax.random.key_data(keys),
                rates=jnp.stack([_rates(scenarios[n]) for n, _ in members]),
                cost=jnp.array(zeros),
                seconds=jnp.array(zeros),
                scale=jnp.array(zeros + 1),
            )
        )
    return tuple(stacked), tuple(worlds)


@partial(jax.jit, static_argnums=0)
def _empty_engines(settings: PPO, physics: Any, keys: jax.Array) -> tuple[Any, Any]:
    """Engines of worlds at time 0, and the memory of the choice in each."""

    def start(world: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        physics, key = world
        engine = simulator.init(physics, jax.random.split(key, settings.num_envs))
        return engine, settings.choice.start(simulator.view(physics, engine))

    return jax.lax.map(start, (physics, keys))


def _rates(scenario: Scenario) -> jax.Array:
    """What arrives in a second: requests, prompt tokens and tokens; in a network jobs of each type."""
    if scenario.is_network:
        return jnp.array([job.rate_per_s for job in scenario.job_types])
    rate, prompt = scenario.arrival_rate_per_s, scenario.mean_prefill
    return jnp.array([1.0, prompt, prompt + scenario.mean_decode]) * rate
