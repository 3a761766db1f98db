"""``gym.make_vec("llmgym/Engine-v0")``: many engines as one compiled JAX batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.core.checks import check_seed, check_settings
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.precision import in_32_bits
from llmgym.engine.size import FEW_ENVS, bytes_of, check_memory
from llmgym.envs.functional import EnvState, TimeStep
from llmgym.envs.interface.sound import check_rewards, sound_actions
from llmgym.envs.registration import array_form


class EngineVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` engines, stepped together. NumPy in, NumPy out; environments stand first.

    Autoreset in the same step: where an episode ends, the observation returned is the first of the
    next, and ``info["final_obs"]`` and ``info["final_info"]`` hold the last of the old, with masks
    ``_final_obs`` and ``_final_info``. The rest of ``info`` describes the step just made, except for
    ``action_mask``, which belongs to the observation; every key has its mask ``_key``.

    Args: ``num_envs`` and those of llmgym.envs.functional.FunctionalEngine.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    env_id: ClassVar[str] = "llmgym/Engine-v0"

    @in_32_bits
    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **settings: Any) -> None:
        num_envs = check_number("num_envs", num_envs, low=1, integer=True)
        if render_mode is not None:
            raise LLMGymError("The vector environment does not render; gym.make one for that.")
        self.core = array_form(self.env_id, **settings)
        if num_envs > FEW_ENVS:
            check_memory(num_envs, bytes_of(self.core.scenario))
        self.num_envs, self.render_mode = num_envs, None
        assert self.core.action_space is not None
        self.single_action_space = self.core.action_space
        self.single_observation_space = self.core.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._reset_all = jax.jit(self._start)
        self._advance = jax.jit(self._step_and_reset, donate_argnums=1)
        self._state: EnvState | None = None
        self._keys: jax.Array | None = None
        self._episode: jax.Array | None = None
        self._action_mask: np.ndarray | None = None

    def _start(self, params: Any, keys: jax.Array) -> tuple[EnvState, Any, Any]:
        state = self.core.init(keys, params)
        observation = self.core.observe(state, params)
        return state, observation.T, self.core.action_mask(state, params).T

    def _step_and_reset(
        self,
        params: Any,
        state: EnvState,
        action: jax.Array,
        keys: jax.Array,
        episode: jax.Array,
    ) -> tuple[EnvState, jax.Array, TimeStep, jax.Array, jax.Array]:
        # Environments stand first outside, last inside.
        action = action.T if action.ndim > 1 else action
        state, result = self.core.step(state, action, params)
        done = result.truncated
        episode = episode + done.astype(jnp.int32)

        def renew(last: tuple[EnvState, Any, Any]) -> tuple[EnvState, Any, Any]:
            fresh = self.core.init(jax.vmap(jax.random.fold_in)(keys, episode), params)
            state = jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, last[0])
            return state, self.core.observe(state, params), self.core.action_mask(state, params)

        # Outside of vmap a cond is a branch: resets cost nothing in the steps that have none.
        last = (state, result.observation, result.info["action_mask"])
        state, observation, mask = jax.lax.cond(jnp.any(done), renew, lambda last: last, last)
        result = replace(
            result,
            observation=result.observation.T,
            info={k: v.T for k, v in result.info.items()},
        )
        return state, episode, result, observation.T, mask.T

    @in_32_bits
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """All engines empty. ``seed``: one number, or one for each environment. No options are known."""
        check_settings("options", options)
        if isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.ndim):
            seeds = self._listed_seeds(list(seed))
        else:
            super().reset(seed=None if seed is None else check_seed(seed, 2**63 - 1))
            seeds = self.np_random.integers(2**31, size=self.num_envs)
        self._keys = jax.vmap(lambda s: jax.random.key(s, impl="threefry2x32"))(
            jnp.asarray(seeds, jnp.uint32)
        )
        self._episode = jnp.zeros(self.num_envs, jnp.int32)
        self._state, observation, mask = self._reset_all(self.core.params, self._keys)
        self._action_mask = np.array(mask)
        info = {"action_mask": self._action_mask, "_action_mask": np.ones(self.num_envs, bool)}
        # A copy, here and below: memory that JAX owns cannot be written to.
        return np.array(observation), info

    def _listed_seeds(self, seeds: list[int | None]) -> np.ndarray:
        if len(seeds) != self.num_envs:
            raise LLMGymError(f"{len(seeds)} seeds for {self.num_envs} environments.")
        given = [None if seed is None else check_seed(seed, 2**63 - 1) for seed in seeds]
        generators = (gym.utils.seeding.np_random(s)[0] for s in given)
        return np.array([g.integers(2**31) for g in generators])

    @in_32_bits
    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one batch in every engine."""
        if self._state is None:
            raise LLMGymError("Call reset() first: the environments have no state yet.")
        assert self.action_space.shape is not None
        actions = sound_actions(actions, self.single_action_space, self.action_space.shape)
        self._state, self._episode, result, observation, mask = self._advance(
            self.core.params, self._state, actions, self._keys, self._episode
        )
        done, self._action_mask = np.array(result.truncated), np.array(mask)
        facts = {name: np.array(value) for name, value in result.info.items()}
        info = _masked(facts, np.ones(self.num_envs, bool))
        info["action_mask"] = self._action_mask
        if done.any():
            final = {"final_obs": np.array(result.observation), "final_info": _masked(facts, done)}
            info |= _masked(final, done)
        terminated = np.zeros(self.num_envs, bool)
        rewards = np.array(result.reward)
        check_rewards(rewards)
        return np.array(observation), rewards, terminated, done, info

    def action_masks(self) -> np.ndarray:
        """Feasible choices of every environment, (num_envs, choices)."""
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: there is no state to mask actions in.")
        return self._action_mask


class NetworkVectorEnv(EngineVectorEnv):
    """``num_envs`` networks of engines, stepped together; see EngineVectorEnv and NetworkEnv."""

    env_id: ClassVar[str] = "llmgym/Network-v0"


def _masked(values: dict[str, Any], where: np.ndarray) -> dict[str, Any]:
    """Vector info: every value with its mask ``_key`` of the environments that it holds for."""
    return values | {f"_{name}": where.copy() for name in values}
