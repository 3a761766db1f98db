"""Environments of one functional form, stepped side by side in compiled programs; NumPy at the boundary."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.envs.conditions import Conditions
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.task import EnvState, Task


@partial(jax.jit, static_argnums=0)
def _begin(
    task: Task, params: Any, conditions: Conditions, keys: jax.Array
) -> tuple[EnvState, jax.Array, jax.Array]:
    state = task.init(params, conditions, keys)
    observation, mask = task.look(params, state)
    return state, observation.T, mask.T


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _begin_some(
    task: Task,
    params: Any,
    conditions: Conditions,
    keys: jax.Array,
    state: EnvState,
    some: jax.Array,
) -> tuple[EnvState, jax.Array, jax.Array]:
    fresh = task.init(params, conditions, keys)
    state = jax.tree.map(lambda new, old: jnp.where(some, new, old), fresh, state)
    observation, mask = task.look(params, state)
    return state, observation.T, mask.T


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _advance(
    task: Task,
    same_step: bool,
    params: Any,
    conditions: Conditions,
    state: EnvState,
    actions: jax.Array,
    keys: jax.Array,
    episode: jax.Array,
    waiting: jax.Array,
) -> tuple[EnvState, jax.Array, dict[str, jax.Array]]:
    """A step; new episodes where one has ended (``same_step``), or where they are ``waiting`` to begin."""
    state, result = task.step(params, state, actions.T)
    ended = result.truncated & ~waiting
    again = ended if same_step else waiting
    episode = episode + again.astype(jnp.int32)

    def renew(last: tuple[EnvState, Any, Any]) -> tuple[EnvState, Any, Any]:
        fresh = task.init(params, conditions, jax.vmap(jax.random.fold_in)(keys, episode))
        state = jax.tree.map(lambda new, old: jnp.where(again, new, old), fresh, last[0])
        return state, *task.look(params, state)

    # Outside of vmap a cond is a branch: resets cost nothing in the steps that have none.
    last = (state, result.observation, result.info["action_mask"])
    state, observation, mask = jax.lax.cond(jnp.any(again), renew, lambda last: last, last)
    facts = {name: value.T for name, value in result.info.items() if name != "action_mask"}
    return (
        state,
        episode,
        facts
        | {
            "observation": observation.T,
            "action_mask": mask.T,
            "final_obs": result.observation.T,
            "final_mask": result.info["action_mask"].T,
            "reward": jnp.where(waiting, 0.0, result.reward),
            "truncated": ended,
        },
    )


class SideBySide:
    """``num_envs`` environments of one form.

    Args:
        core: their functional form.
        num_envs: how many.
        same_step: whether a new episode begins in the step that ends one.
    """

    def __init__(self, core: FunctionalEngine, num_envs: int, same_step: bool) -> None:
        self._core, self._num_envs, self._same_step = core, num_envs, same_step
        self._none = np.zeros(num_envs, bool)
        self._state: EnvState | None = None
        self._keys: Any = None
        self._episode: Any = None
        self.mask = np.zeros((num_envs, 0), bool)

    def reset(
        self, numbers: np.ndarray | None, conditions: Conditions, some: np.ndarray | None
    ) -> np.ndarray:
        """Begin episodes; returns the observations (num_envs, entries) of all environments.

        Args:
            numbers: of the random streams, one for each environment; None: go on with those there are.
            conditions: from which the episodes are drawn.
            some: the environments to reset, bool; None: all.
        """
        core = self._core
        if numbers is not None:
            fresh = jax.vmap(lambda s: jax.random.key(s, impl="threefry2x32"))(
                jnp.asarray(numbers, jnp.uint32)
            )
            episode = jnp.zeros(self._num_envs, jnp.int32)
        else:
            fresh, episode = self._keys, self._episode + 1
        if some is None:
            self._keys, self._episode = fresh, episode
            begun = _begin(core.task, core.params, conditions, self._streams())
        else:
            chosen = jnp.asarray(some)
            self._keys = jnp.where(chosen, fresh, self._keys)
            self._episode = jnp.where(chosen, episode, self._episode)
            begun = _begin_some(
                core.task, core.params, conditions, self._streams(), self._state, chosen
            )
        self._state, observation, mask = begun
        self.mask = np.array(mask)
        # A copy: memory that JAX owns cannot be written to.
        return np.array(observation)

    def _streams(self) -> jax.Array:
        """The key of the current episode of each environment; that of the first is its own."""
        later = jax.vmap(jax.random.fold_in)(self._keys, self._episode)
        return jnp.where(self._episode > 0, later, self._keys)

    def step(
        self, conditions: Conditions, actions: np.ndarray, waiting: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """One step of all environments: what ``_advance`` gives, environments first.

        Args:
            conditions: from which new episodes are drawn.
            actions: (num_envs, ...).
            waiting: environments whose next episode begins in this step, in place of it; None: none.
        """
        core = self._core
        self._state, self._episode, found = _advance(
            core.task, self._same_step, core.params, conditions, self._state, actions,
            self._keys, self._episode, self._none if waiting is None else waiting,
        )  # fmt: skip
        result = {name: np.array(value) for name, value in found.items()}
        self.mask = result["action_mask"]
        return result

    def state_of(self, row: int) -> EnvState:
        """The state of one environment."""
        return jax.tree.map(lambda x: x[..., row], self._state)
