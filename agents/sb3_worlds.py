"""Worlds to train a tile policy in, as one Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.agents.estimates import LEFT, PRODUCTS, critic_inputs
from llmgym.agents.neural import nearest_choice
from llmgym.agents.ppo import PPO
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.training import Training
from llmgym.agents.worlds import worlds_of
from llmgym.core.errors import LLMGymError, check_number
from llmgym.engine import simulator
from llmgym.engine.epoch import run_epoch
from llmgym.envs.rewards import Transition, weighted_holding
from llmgym.evaluation.rollout import Carry
from llmgym.scenario.scenario import Scenario

MEMORY_STEPS = 1000
"""Steps over which the average cost of a world is taken."""


@dataclass(frozen=True)
class _Program:
    """The compiled functions, shared by all ``Worlds`` of equal settings."""

    choice: TileChoice
    residual: bool
    worlds: int
    prefill_weight: float

    def _observe(
        self, physics: Any, number: jax.Array, engine: Any, memory: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Observation and mask of a world."""
        sight = self.choice.look(simulator.view(physics, engine), memory)
        if not self.residual:
            return sight.features, sight.mask
        work = critic_inputs(physics, engine, sight.features)[: LEFT + PRODUCTS]
        world = jax.nn.one_hot(number, self.worlds)
        world = jnp.broadcast_to(world[:, None], (world.size, *engine.present.shape))
        return jnp.concatenate([sight.features, sight.prior, work, world]), sight.mask

    @partial(jax.jit, static_argnums=0)
    def look(self, physics: Any, numbers: Any, carries: Any) -> tuple[jax.Array, jax.Array]:
        """Observations and masks of all engines (worlds, entries, envs)."""
        groups = [
            jax.lax.map(lambda x: self._observe(*x), (group, number, carry.state, carry.memory))
            for group, number, carry in zip(physics, numbers, carries, strict=True)
        ]
        observation, mask = (jnp.concatenate(x) for x in zip(*groups, strict=True))
        return observation, mask

    @partial(jax.jit, static_argnums=0, donate_argnums=2)
    def advance(
        self, physics: Any, carries: Any, numbers: Any, masks: jax.Array, chosen: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, jax.Array, tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:  # fmt: skip
        """Carries and masks after a step, the observations before and after resets, and figures."""
        worlds, envs = masks.shape[0], masks.shape[2]
        chosen = chosen.reshape(worlds, envs, -1)
        keys, start, found = jax.random.split(key, worlds), 0, []
        for group, carry, number in zip(physics, carries, numbers, strict=True):
            mine = slice(start, start + carry.state.present.shape[0])
            start = mine.stop
            found.append(
                jax.lax.map(
                    lambda x: self._world_step(*x),
                    (group, carry, number, masks[mine], chosen[mine], keys[mine]),
                )
            )
        after = tuple(one[0] for one in found)
        mask, final, first, *told = jax.tree.map(
            lambda *x: jnp.concatenate(x), *(one[1:] for one in found)
        )
        return after, mask, (final, first), tuple(told)

    def _world_step(
        self, physics: Any, carry: Carry, number: jax.Array, mask: jax.Array, chosen: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, ...]:  # fmt: skip
        """A step of the engines of a world."""
        allowed = nearest_choice(self.choice.parts, mask.T, chosen)
        epoch = run_epoch(
            physics, carry.state, lambda view: self.choice.decide(view, allowed.T, carry.memory)
        )
        after = epoch.after
        step = Transition(carry.state, epoch.info, after, physics.tick_ms)
        cost = -weighted_holding(step, self.prefill_weight, 1.0)
        full = after.totals.dropped > 0
        final, next_mask = self._observe(physics, number, after, epoch.told)

        def renew(last: tuple[Any, jax.Array, jax.Array]) -> tuple[Any, jax.Array, jax.Array]:
            state = simulator.init(physics, jax.random.split(key, full.size))
            fresh = Carry(state, self.choice.start(simulator.view(physics, state)))
            carry = jax.tree.map(lambda new, old: jnp.where(full, new, old), fresh, last[0])
            return (carry, *self._observe(physics, number, carry.state, carry.memory))

        # Few engines fill their table; a branch costs nothing in the steps where none does.
        renewed, first, next_mask = jax.lax.cond(
            jnp.any(full),
            renew,
            lambda last: last,
            (Carry(after, epoch.told), final, next_mask),
        )
        return renewed, next_mask, final, first, cost, step.duration_s, full, after.present


class Worlds(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Engines of several scenarios, or loads of one, for a learner of tile policies.

    Observation: the features of ``choice``; behind them, where ``residual``, its prior logits, which the
    actor adds to its own, and what only the critic sees: the work in the system, hidden output tokens
    included, with its squares and products, and the number of the world.
    Action: the parts of ``choice``; one that is not allowed stands for the nearest that is.
    ``action_masks()`` says which are.

    Reward of a decision that took tau seconds and cost c, N weighted requests present over tau:
    tau - c / eta, with eta the average cost per second of its world. This is the reward of the
    average-cost semi-Markov problem, in units that all loads share; its mean is 0 under any policy, so
    that a discount for each step hardly prefers long steps to short ones.

    The task is continuing. After ``max_steps`` decisions an episode is truncated, and the next goes on
    from the same state; only an engine whose table was full starts again, empty.

    Args:
        scenarios: one world each.
        choice: what the policy observes and may do.
        num_envs: engines of all worlds together, divided equally among them.
        residual: whether the prior and the critic's part are observed too.
        max_steps: decisions of an episode.
        prefill_weight: weight in N of a request with prompt left; one that decodes counts 1.

    Raises:
        LLMGymError: engines that do not divide among the worlds, or a scenario that cannot be trained.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        scenarios: Sequence[Scenario],
        choice: TileChoice,
        num_envs: int = 256,
        residual: bool = True,
        max_steps: int = 1024,
        prefill_weight: float = 1.5,
    ) -> None:
        check_number("num_envs", num_envs, low=1, high=2**20, integer=True)
        check_number("max_steps", max_steps, low=1, high=2**30, integer=True)
        check_number("prefill_weight", prefill_weight, above=0)
        if num_envs % max(len(scenarios), 1):
            raise LLMGymError(
                f"num_envs = {num_envs} must be a multiple of the {len(scenarios)} scenarios."
            )
        learner = PPO(choice=choice, num_envs=num_envs // max(len(scenarios), 1), control=False)
        self.training = Training(tuple(scenarios), learner)
        self.choice, self.max_steps = choice, int(max_steps)
        self.num_envs, self.render_mode = int(num_envs), None
        hidden = sum(choice.parts) + LEFT + PRODUCTS + len(scenarios)
        size = len(choice.features) + residual * hidden
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.single_action_space: gym.Space[Any] = (
            gym.spaces.Discrete(choice.parts[0])
            if len(choice.parts) == 1
            else gym.spaces.MultiDiscrete(np.array(choice.parts))
        )
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._program = _Program(choice, residual, len(scenarios), float(prefill_weight))
        self._mask: np.ndarray | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """All engines empty. Of a list of seeds the first counts: the engines share their stream."""
        super().reset(seed=seed[0] if isinstance(seed, (list, tuple)) else seed)
        number = int(self.np_random.integers(2**31))
        self._key = jax.random.key(number, impl="threefry2x32")
        self._physics, worlds = worlds_of(
            self.training.scenarios, self.training.settings, self._key
        )
        self._carries = tuple(Carry(world.engine, world.memory) for world in worlds)
        self._numbers = tuple(world.number for world in worlds)
        self._order = np.argsort(np.concatenate(self._numbers))
        observation, self._masks = self._program.look(self._physics, self._numbers, self._carries)
        worlds_count = len(self.training.scenarios)
        self._cost, self._seconds = np.full((2, worlds_count, 1), 1e-9)
        self._present = np.zeros(worlds_count)
        self._steps = 0
        self._mask = self._flat(self._masks)
        return self._flat(observation), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one batch in every engine."""
        if self._mask is None:
            raise LLMGymError("Call reset() first: the environments have no state yet.")
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise LLMGymError(
                f"Actions have shape {actions.shape}; {self.action_space.shape} is needed."
            )
        self._steps += 1
        key = jax.random.fold_in(self._key, self._steps)
        chosen = jnp.asarray(actions, jnp.int32).reshape(self.num_envs, -1)
        self._carries, self._masks, observation, told = self._program.advance(
            self._physics, self._carries, self._numbers, self._masks, chosen, key
        )
        cost, seconds, full, present = (np.array(x, np.float32) for x in told)
        reward = self._above_average(cost, seconds)
        self._present = present.mean(axis=1)
        truncated = (full > 0).reshape(-1) | (self._steps % self.max_steps == 0)
        final, start = (self._flat(x) for x in observation)
        self._mask = self._flat(self._masks)
        every = np.ones(self.num_envs, bool)
        info: dict[str, Any] = {"in_system": present.reshape(-1), "_in_system": every}
        if truncated.any():
            info |= {"final_obs": final, "_final_obs": truncated}
        return start, reward.reshape(-1), np.zeros(self.num_envs, bool), truncated, info

    def _above_average(self, cost: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Rewards (worlds, envs) of a step."""
        fade = 1 - 1 / MEMORY_STEPS
        self._cost = fade * self._cost + cost.sum(axis=1, keepdims=True)
        self._seconds = fade * self._seconds + seconds.sum(axis=1, keepdims=True)
        return (seconds - cost * self._seconds / self._cost).astype(np.float32)

    @property
    def average_cost(self) -> np.ndarray:
        """eta, the recent cost per second of each scenario."""
        found: np.ndarray = (self._cost / self._seconds)[self._order, 0]
        return found

    @property
    def present(self) -> np.ndarray:
        """Requests in the engines of each scenario now, on average."""
        found: np.ndarray = self._present[self._order]
        return found

    def action_masks(self) -> np.ndarray:
        """Allowed choices of every engine, (num_envs, choices)."""
        if self._mask is None:
            raise LLMGymError("Call reset() first: there is no state to mask actions in.")
        return self._mask

    def _flat(self, of_worlds: jax.Array) -> np.ndarray:
        """(worlds, entries, envs) as (num_envs, entries), a copy that may be written to."""
        return np.array(jnp.moveaxis(of_worlds, 1, 2)).reshape(self.num_envs, -1)
