"""Watching every iteration: what a policy sees, and what its batch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from llmgym.engine import simulator
from llmgym.engine.view import View
from llmgym.evaluation import rollout
from llmgym.evaluation.policies import compose
from llmgym.scenario.scenario import Scenario

Look = Callable[[View, Any], dict[str, jax.Array]]
"""Given the view before the batch and what the step says of it (``StepInfo``), what is to be kept."""


@partial(jax.jit, static_argnames=("policy", "look", "length"))
def _watch(
    policy: rollout.Policy, look: Look, physics: Any, state: Any, key: jax.Array, length: int
) -> dict[str, Any]:
    def body(state: Any, _: None) -> tuple[Any, dict[str, Any]]:
        view = simulator.view(physics, state)
        batch = compose(policy, rollout.policy_key(key, state.steps), view)
        after, info = simulator.step(physics, state, batch)
        return after, {"start": state.clock} | look(view, info)

    return jax.lax.scan(body, state, length=length)[1]


def watch(
    scenario: Scenario,
    policy: rollout.Policy,
    look: Look,
    steps: int,
    num_envs: int = 1,
    seed: int = 0,
    burst: int = 0,
) -> dict[str, Any]:
    """What ``look`` keeps of each of the first ``steps`` iterations, as NumPy arrays (steps, ..., envs).

    ``start_ms`` is the time of the decision.
    """
    physics, key = simulator.lower(scenario, burst), rollout.keys(seed, num_envs)
    start = rollout.start(physics, key)
    found: dict[str, Any] = jax.device_get(_watch(policy, look, physics, start, key, steps))
    return found | {"start_ms": found.pop("start").to_numpy() * scenario.tick_ms}
