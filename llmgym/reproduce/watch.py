"""Watching every iteration: what a policy sees, and what its batch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from llmgym.engine import simulator
from llmgym.engine.epoch import Epoch
from llmgym.engine.view import View
from llmgym.evaluation import rollout
from llmgym.evaluation.policies import Policy
from llmgym.scenario.scenario import Scenario

Look = Callable[[View, Any], dict[str, jax.Array]]
"""From the view before the batch and the ``StepInfo`` after it to the arrays to keep, by name."""


@partial(jax.jit, static_argnames=("policy", "look", "length"))
def _watch(
    policy: Policy, look: Look, physics: Any, carry: rollout.Carry, key: jax.Array, length: int
) -> dict[str, Any]:
    def keep(epoch: Epoch) -> dict[str, Any]:
        return {"start": epoch.before.clock} | look(epoch.view, epoch.info)

    kept: dict[str, Any] = rollout.scan(physics, policy, carry, key, length, keep)[1]
    return kept


def watch(
    scenario: Scenario,
    policy: Policy,
    look: Look,
    steps: int,
    num_envs: int = 1,
    seed: int = 0,
    burst: int = 0,
) -> dict[str, Any]:
    """What ``look`` keeps of each of the first iterations.

    Args:
        scenario: what is simulated.
        policy: its function, or one that remembers.
        look: what to keep; arrays (..., envs).
        steps: iterations.
        num_envs: environments, each with its own arrivals.
        seed: of the arrivals and of random policies.
        burst: requests of each type, of a network jobs, that are there at time 0.

    Returns:
        NumPy arrays (steps, ..., envs) by name; start_ms (steps, envs) is the time of the decision.
    """
    physics, key = simulator.lower(scenario, burst), rollout.keys(seed, num_envs)
    start = rollout.begin(physics, policy, key)
    found: dict[str, Any] = jax.device_get(_watch(policy, look, physics, start, key, steps))
    return found | {"start_ms": found.pop("start").to_numpy() * scenario.tick_ms}
