"""Environments of one functional form, stepped side by side in compiled programs; NumPy at the boundary."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.envs.conditions import Conditions
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.runner import Runner
from llmgym.envs.task import EnvState, Task

Streams = tuple[Any, Any]
"""Of each environment the number of its random stream, uint32, and of its episode in it, int32."""


def _keys(streams: Streams) -> jax.Array:
    """The random keys of episodes; that of the first is the stream's own."""

    def one(number: jax.Array, episode: jax.Array) -> jax.Array:
        key = jax.random.key(number, impl="threefry2x32")
        return jnp.where(episode > 0, jax.random.fold_in(key, episode), key)

    return jax.vmap(one)(*streams) if streams[0].ndim else one(*streams)


def _begin(task: Task, params: Any, streams: Streams, conditions: Conditions) -> Any:
    state = task.init(params, conditions, _keys(streams))
    return state, task.look(params, state)


def _step(task: Task, params: Any, state: EnvState, action: jax.Array) -> Any:
    state, result = task.step(params, state, action)
    return state, (result.observation, result.reward, result.truncated, result.info)


def runner_of(core: FunctionalEngine, num_envs: int | None = None) -> Runner:
    """Compiled programs of one environment, or of several, shared by all of equal settings.

    Args:
        core: their functional form.
        num_envs: how many; None: one, without an axis of environments.

    Returns:
        A Runner whose ``begin(streams, conditions)`` gives observations and masks, and whose
        ``step(action)`` gives observations, rewards, whether episodes are truncated, and infos.
    """
    engines = sum(e.replicas for e in core.scenario.engines)
    return Runner(
        partial(_begin, core.task),
        partial(_step, core.task),
        core.params,
        core.task,
        num_envs,
        core.scenario.slots * engines,
    )


def begun(runner: Runner, core: FunctionalEngine, streams: Streams, conditions: Any) -> Any:
    """Observations and masks of new episodes, after what a reset and a step need is compiled side by side.

    Args:
        runner: of ``core``.
        core: the functional form.
        streams, conditions: as ``begin`` takes them.
    """
    if not runner.started:
        runner.compile((streams, conditions), nothing(core.action_space, streams[0].shape))
    return runner.begin(streams, conditions)


def nothing(space: Any, envs: tuple[int, ...] = ()) -> np.ndarray:
    """The action of zeros, environments last."""
    return np.zeros((*space.shape, *envs), np.float32 if hasattr(space, "high") else np.int32)


class SideBySide:
    """``num_envs`` environments of one form.

    Args:
        core: their functional form.
        num_envs: how many.
        same_step: whether a new episode begins in the step that ends one.
    """

    def __init__(self, core: FunctionalEngine, num_envs: int, same_step: bool) -> None:
        self._core, self._num_envs, self._same_step = core, num_envs, same_step
        self._runner = runner_of(core, num_envs)
        self._numbers = np.zeros(num_envs, np.uint32)
        self._episode = np.zeros(num_envs, np.int32)
        self._drawn_from: Conditions | None = None
        self._spread: Any = None
        self._last: Any = None  # what was seen last: those that are not reset see it again

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__ | {"_runner": None, "_spread": None, "_drawn_from": None}
        state = self._runner.state if self._runner.started else None
        return kept | {"_kept": (state, self._drawn_from)}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        state, conditions = kept.pop("_kept")
        self.__dict__.update(kept)
        self._runner = runner_of(self._core, self._num_envs)
        if state is not None:
            self._runner.restore(state, self._streams, self._of_each(conditions))

    @property
    def _streams(self) -> Streams:
        return self._numbers, self._episode

    def _of_each(self, conditions: Conditions) -> Any:
        """The conditions with an entry for each environment."""
        if conditions is not self._drawn_from:
            self._drawn_from = conditions
            self._spread = jax.tree.map(
                lambda x: np.broadcast_to(np.asarray(x), (self._num_envs,)).copy(), conditions
            )
        return self._spread

    def reset(
        self, numbers: np.ndarray | None, conditions: Conditions, some: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Begin episodes; returns observations (num_envs, entries) and masks of all environments.

        Args:
            numbers: of the random streams, one for each environment; None: go on with those there are.
            conditions: from which the episodes are drawn.
            some: the environments to reset, bool (num_envs,).
        """
        if numbers is None:
            self._episode = self._episode + some.astype(np.int32)
        else:
            self._numbers = np.where(some, numbers, self._numbers).astype(np.uint32)
            self._episode = np.where(some, 0, self._episode).astype(np.int32)
        return self._begun(conditions, some)

    def _begun(self, conditions: Conditions, some: np.ndarray) -> Any:
        """New episodes of some environments; returns what all see now."""
        spread = self._of_each(conditions)
        if some.all():
            seen = begun(self._runner, self._core, self._streams, spread)
        elif some.any():
            fresh = self._runner.begin_some(some, self._streams, spread)
            pairs = zip(fresh, self._last, strict=True)
            seen = tuple(np.where(some[:, None], new, old) for new, old in pairs)
        else:
            seen = tuple(x.copy() for x in self._last)
        self._last = tuple(x.copy() for x in seen)
        return seen

    def step(
        self, conditions: Conditions, actions: np.ndarray, waiting: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """One step of all environments, environments first: the info of each, and the rest by name.

        Args:
            conditions: from which new episodes are drawn.
            actions: (num_envs, ...).
            waiting: environments whose next episode begins in this step, in place of it; None: none.
        """
        observation, reward, truncated, info = self._runner.step(actions.T)
        mask = info.pop("action_mask")
        if waiting is not None and waiting.any():
            reward[waiting], truncated[waiting] = 0.0, False
        again = truncated if self._same_step else waiting
        found = info | {"final_obs": observation, "final_mask": mask}
        self._last = observation.copy(), mask.copy()
        if again is not None and again.any():
            observation, mask = self.reset(None, conditions, again)
        return found | {
            "observation": observation,
            "action_mask": mask,
            "reward": reward,
            "truncated": truncated,
        }

    def state_of(self, row: int) -> EnvState:
        """The state of one environment."""
        one: EnvState = jax.tree.map(lambda x: x[..., row], self._runner.state)
        return one
