"""Environments of one functional form, stepped side by side in compiled programs; NumPy at the boundary."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.envs.conditions import Conditions
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.program import Runner
from llmgym.envs.task import EnvState, Task

Streams = tuple[jax.Array, jax.Array]
"""Of each environment the number of its random stream, uint32, and of its episode in it, int32."""


def _keys(streams: Streams) -> jax.Array:
    """The random keys of episodes; that of the first is the stream's own."""
    number, episode = streams

    def one(number: jax.Array, episode: jax.Array) -> jax.Array:
        key = jax.random.key(number, impl="threefry2x32")
        return jnp.where(episode > 0, jax.random.fold_in(key, episode), key)

    return jax.vmap(one)(number, episode)


def _begin(task: Task, params: Any, streams: Streams, conditions: Conditions) -> Any:
    state = task.init(params, conditions, _keys(streams))
    return state, task.look(params, state)


def _begin_some(task: Task, params: Any, state: Any, some: jax.Array, extra: Any) -> Any:
    """New episodes in some environments; the others stay."""
    streams, conditions = extra
    fresh = task.init(params, conditions, _keys(streams))
    state = jax.tree.map(lambda new, old: jnp.where(some, new, old), fresh, state)
    return state, task.look(params, state)


def _step(
    task: Task, same_step: bool, params: Any, state: EnvState, action: jax.Array, extra: Any
) -> tuple[EnvState, dict[str, jax.Array]]:
    """A step; new episodes where one has ended (``same_step``), or where they are ``waiting`` to begin."""
    (number, episode), conditions, waiting = extra
    state, result = task.step(params, state, action)
    ended = result.truncated & ~waiting
    again = ended if same_step else waiting

    def renew(last: tuple[EnvState, Any, Any]) -> tuple[EnvState, Any, Any]:
        fresh = task.init(params, conditions, _keys((number, episode + 1)))
        state = jax.tree.map(lambda new, old: jnp.where(again, new, old), fresh, last[0])
        return state, *task.look(params, state)

    # A cond is a branch: resets cost nothing in the steps that have none.
    last = (state, result.observation, result.info["action_mask"])
    state, observation, mask = jax.lax.cond(jnp.any(again), renew, lambda last: last, last)
    facts = {name: value for name, value in result.info.items() if name != "action_mask"}
    return state, facts | {
        "observation": observation,
        "action_mask": mask,
        "final_obs": result.observation,
        "final_mask": result.info["action_mask"],
        "reward": jnp.where(waiting, 0.0, result.reward),
        "truncated": ended,
    }


class SideBySide:
    """``num_envs`` environments of one form.

    Args:
        core: their functional form.
        num_envs: how many.
        same_step: whether a new episode begins in the step that ends one.
    """

    def __init__(self, core: FunctionalEngine, num_envs: int, same_step: bool) -> None:
        self._core, self._num_envs, self._same_step = core, num_envs, same_step
        self._runner = self._made()
        self._numbers = np.zeros(num_envs, np.uint32)
        self._episode = np.zeros(num_envs, np.int32)
        self._none = np.zeros(num_envs, bool)
        self._drawn_from: Conditions | None = None
        self._spread: Any = None

    def _made(self) -> Runner:
        core, task = self._core, self._core.task
        engines = sum(e.replicas for e in core.scenario.engines)
        return Runner(
            partial(_begin, task),
            {"step": partial(_step, task, self._same_step), "some": partial(_begin_some, task)},
            core.params,
            ("side by side", task, self._same_step),
            self._num_envs,
            core.scenario.slots * engines,
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__ | {"_runner": None, "_spread": None, "_drawn_from": None}
        state = self._runner.state if self._runner.started else None
        return kept | {"_kept": (state, self._drawn_from)}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        state, conditions = kept.pop("_kept")
        self.__dict__.update(kept)
        self._runner = self._made()
        if state is not None:
            self._runner.restore(state, self._streams, self._of_each(conditions))

    @property
    def _streams(self) -> tuple[np.ndarray, np.ndarray]:
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
        self, numbers: np.ndarray | None, conditions: Conditions, some: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Begin episodes; returns observations (num_envs, entries) and masks of all environments.

        Args:
            numbers: of the random streams, one for each environment; None: go on with those there are.
            conditions: from which the episodes are drawn.
            some: the environments to reset, bool; None: all.
        """
        chosen = ~self._none if some is None else some
        if numbers is None:
            self._episode = self._episode + chosen.astype(np.int32)
        else:
            self._numbers = np.where(chosen, numbers, self._numbers).astype(np.uint32)
            self._episode = np.where(chosen, 0, self._episode).astype(np.int32)
        spread = self._of_each(conditions)
        if some is None:
            self._compile(spread)
            return self._runner.begin(self._streams, spread)
        return self._runner.move("some", some, (self._streams, spread))

    def _compile(self, spread: Any) -> None:
        """Compile what a reset and a step need side by side, the first time."""
        if self._runner.started:
            return
        space = self._core.action_space
        kind = np.float32 if hasattr(space, "high") else np.int32
        nothing = np.zeros((*space.shape, self._num_envs), kind)
        step = (nothing, (self._streams, spread, self._none))
        self._runner.compile(self._streams, spread, {"step": step})

    def step(
        self, conditions: Conditions, actions: np.ndarray, waiting: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """One step of all environments: what ``_step`` gives, environments first.

        Args:
            conditions: from which new episodes are drawn.
            actions: (num_envs, ...).
            waiting: environments whose next episode begins in this step, in place of it; None: none.
        """
        late = self._none if waiting is None else waiting
        extra = (self._streams, self._of_each(conditions), late)
        found: dict[str, np.ndarray] = self._runner.move("step", actions.T, extra)
        again = found["truncated"] if self._same_step else late
        if again.any():
            self._episode = self._episode + again.astype(np.int32)
        return found

    def state_of(self, row: int) -> EnvState:
        """The state of one environment."""
        one: EnvState = jax.tree.map(lambda x: x[..., row], self._runner.state)
        return one
