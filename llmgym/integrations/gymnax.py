"""llmgym in the shape of gymnax, for learners that are compiled whole: PureJaxRL, rejax and their kin.

    env = GymnaxEnv("llmgym/Engine-v0", load=0.8)
    params = env.default_params
    observation, state = env.reset(key, params)
    observation, state, reward, done, info = env.step(key, state, action, params)

``TimeStepEnv`` is the same in the shape of dm_env and jumanji, for Stoix and its kin. Neither gymnax nor
jumanji is needed. Where gymnax is imported already, spaces are its own, as its learners ask for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.errors import LLMGymError, shown
from llmgym.core.pytree import register
from llmgym.envs.functional import EnvState, FunctionalEngine
from llmgym.envs.functional import TimeStep as Outcome
from llmgym.envs.registration import functional
from llmgym.integrations.gymnax_spaces import space_of

Info = dict[str, Any]


@register
@dataclass(frozen=True)
class EnvParams:
    """What a step depends on besides the state.

    Attributes:
        engine: the traced parameters, those of ``llmgym.functional(...).params``. Of several loads,
            stacked, they make one environment for each load under ``vmap(..., in_axes=(0, 0))``.
        max_steps_in_episode: decisions after which an episode is truncated. A replay may end sooner.
    """

    engine: Any
    max_steps_in_episode: int = field(metadata={"static": True})

    def replace(self, **changes: Any) -> EnvParams:
        """The same with other values."""
        return replace(self, **changes)


class GymnaxEnv:
    """An environment of llmgym that a gymnax learner takes.

    Episodes are only ever truncated: ``done`` is the end of ``max_steps``, not of the problem, and
    ``info["discount"]`` stays 1. A learner that takes ``done`` for an end (PureJaxRL's PPO does) then
    learns that time after the cut costs nothing. To bootstrap there, add the value of what would have
    come: ``reward + gamma * jnp.where(done, value(info["final_observation"]), 0)``. With long episodes
    (2,048 decisions by default) and gamma 0.99 the difference is small.

    ``info`` also holds ``action_mask``, which belongs to the observation that is returned.

    Args:
        env_id: "llmgym/Engine-v0" or "llmgym/Network-v0".
        values: how many values ``step`` returns. 5: observation, state, reward, done, info, as gymnax
            before 1.0, PureJaxRL and rejax have it. 6: terminated and truncated in place of done, as
            gymnax from 1.0 on.
        settings: those of ``gym.make``; an action that is a Batch is not for a learner.
    """

    def __init__(
        self, env_id: str = "llmgym/Engine-v0", *, values: int = 5, **settings: Any
    ) -> None:
        if values not in (5, 6):
            raise LLMGymError(f"step returns 5 or 6 values, got values={shown(values)}.")
        self.core: FunctionalEngine = functional(env_id, **settings)
        if self.core.action_space is None:
            raise LLMGymError('action="batch" has no space; use tiles, split, tokens or scores.')
        self.name, self.values = env_id, values

    @property
    def default_params(self) -> EnvParams:
        """Those of the settings."""
        return EnvParams(self.core.params, self.core.max_steps)

    @property
    def num_actions(self) -> int:
        """Choices of a discrete action; entries of any other."""
        space: Any = self.core.action_space
        return int(getattr(space, "n", 0) or space.shape[0])

    def action_space(self, params: EnvParams | None = None) -> Any:
        """Of one environment, with ``sample(key)``. gymnax has no MultiDiscrete: that one is llmgym's."""
        return space_of(self.core.action_space)

    def observation_space(self, params: EnvParams | None = None) -> Any:
        """Of one environment."""
        return space_of(self.core.observation_space)

    @partial(jax.jit, static_argnames="self")
    def reset(self, key: jax.Array, params: EnvParams | None = None) -> tuple[jax.Array, EnvState]:
        """An empty engine: its observation and state. ``key``: of either kind that JAX has."""
        return self._reset(key, params or self.default_params)

    @partial(jax.jit, static_argnames="self")
    def step(
        self, key: jax.Array, state: EnvState, action: Any, params: EnvParams | None = None
    ) -> tuple[Any, ...]:
        """One decision. Where the episode is over, state and observation are those of a new one.

        Args:
            key: draws what a new episode needs; the step itself has its randomness in the state.
            state: of one environment; ``vmap`` for more.
            action: of ``action_space``; one out of range stands for some feasible batch.
            params: None: the default ones.

        Returns:
            observation, state, reward, done, info; or, with ``values=6``, terminated and truncated in
            place of done. ``info["final_observation"]`` is the one before the reset.
        """
        params = params or self.default_params
        after, outcome, over = self._advance(state, action, params)
        mask = outcome.info["action_mask"]

        def renew(_: Any) -> tuple[jax.Array, EnvState, jax.Array]:
            observation, fresh = self._reset(key, params)
            return observation, fresh, self.core.action_mask(fresh, _traced(params))

        last = (outcome.observation, after, mask)
        observation, state, mask = jax.lax.cond(over, renew, lambda last: last, last)
        info = self._info(outcome, over) | {"action_mask": mask}
        return self._returned(observation, state, outcome.reward, over, info)

    @partial(jax.jit, static_argnames="self")
    def step_env(
        self, key: jax.Array, state: EnvState, action: Any, params: EnvParams | None = None
    ) -> tuple[Any, ...]:
        """As ``step``, without a reset.

        Args:
            key, state, action, params: as ``step`` takes them; the key is not used.
        """
        after, outcome, over = self._advance(state, action, params or self.default_params)
        info = self._info(outcome, over)
        return self._returned(outcome.observation, after, outcome.reward, over, info)

    def action_mask(self, state: EnvState, params: EnvParams | None = None) -> jax.Array:
        """Feasible choices, flat."""
        return self.core.action_mask(state, _traced(params or self.default_params))

    def discount(self, state: EnvState, params: EnvParams | None = None) -> jax.Array:
        """Always 1: the task is continuing."""
        return jnp.ones(state.engine.present.shape, jnp.float32)

    def _reset(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, EnvState]:
        physics = _traced(params)
        state = self.core.init(_typed(key), physics)
        return self.core.observe(state, physics), state

    def _advance(
        self, state: EnvState, action: Any, params: EnvParams
    ) -> tuple[EnvState, Outcome, jax.Array]:
        after, outcome = self.core.step(state, action, _traced(params))
        limit = after.engine.steps >= params.max_steps_in_episode
        return after, outcome, outcome.truncated | limit

    def _info(self, outcome: Outcome, over: jax.Array) -> Info:
        return outcome.info | {
            "discount": jnp.ones(over.shape, jnp.float32),
            "truncated": over,
            "final_observation": outcome.observation,
        }

    def _returned(self, observation: Any, state: Any, reward: Any, over: Any, info: Info) -> Any:
        ended = (over,) if self.values == 5 else (jnp.zeros_like(over), over)
        return observation, state, reward, *ended, info


def _typed(key: jax.Array) -> jax.Array:
    """A key of JAX's new kind; the old kind, two words, would look like a batch of keys."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _traced(params: EnvParams) -> Any:
    # Behind a barrier: as in the functional form, a run must not depend on what is folded.
    return jax.lax.optimization_barrier(params.engine)


FIRST, MID, LAST = 0, 1, 2
"""Types of a step, as dm_env numbers them."""


@register
@dataclass(frozen=True)
class TimeStep:
    """What dm_env and jumanji call a time step.

    Attributes:
        step_type: FIRST, MID or LAST, int8.
        reward: of the step that led here; 0 at the first.
        discount: 1 always. Also at the last step, which only cuts a task that goes on: bootstrap there.
        observation: of the state.
        extras: the other information of the environment, with ``action_mask``.
    """

    step_type: jax.Array
    reward: jax.Array
    discount: jax.Array
    observation: jax.Array
    extras: Info

    def first(self) -> jax.Array:
        """Whether an episode begins here."""
        return self.step_type == FIRST

    def mid(self) -> jax.Array:
        """Whether it is neither the first nor the last of an episode."""
        return self.step_type == MID

    def last(self) -> jax.Array:
        """Whether the episode was cut here."""
        return self.step_type == LAST


@register
@dataclass(frozen=True)
class TimeStepState:
    """State of the environment, and the key of its next episode."""

    env: EnvState
    key: jax.Array


class TimeStepEnv:
    """The same in the shape of dm_env and jumanji: ``reset(key)``, ``step(state, action)``.

    Args:
        env_id: as for GymnaxEnv.
        autoreset: a step that ends an episode gives the state and the observation of the next one, and
            the observation before it as ``extras["next_obs"]``, as jumanji's AutoResetWrapper does. Its
            type is LAST all the same. Otherwise reset where the step is the last.
        settings: those of ``gym.make``.
    """

    def __init__(
        self, env_id: str = "llmgym/Engine-v0", *, autoreset: bool = False, **settings: Any
    ) -> None:
        self.env, self.autoreset = GymnaxEnv(env_id, **settings), autoreset
        self.default_params = self.env.default_params
        self.action_space = self.env.action_space
        self.observation_space = self.env.observation_space

    @partial(jax.jit, static_argnames="self")
    def reset(
        self, key: jax.Array, params: EnvParams | None = None
    ) -> tuple[TimeStepState, TimeStep]:
        """An empty engine, and the first step of its episode."""
        params = params or self.default_params
        now, later = jax.random.split(key)
        observation, state = self.env.reset(now, params)
        mask = self.env.action_mask(state, params)
        shapes = jax.eval_shape(self.env.core.step, state, self._sample(), params.engine)[1].info
        extras = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()} | {"action_mask": mask}
        first = TimeStep(jnp.int8(FIRST), jnp.float32(0), jnp.float32(1), observation, extras)
        return TimeStepState(state, later), self._with_next(first, observation)

    @partial(jax.jit, static_argnames="self")
    def step(
        self, state: TimeStepState, action: Any, params: EnvParams | None = None
    ) -> tuple[TimeStepState, TimeStep]:
        """One decision.

        Args:
            state: of one environment; ``vmap`` for more.
            action: of ``action_space()``.
            params: None: the default ones.
        """
        now, later = jax.random.split(state.key)
        advance = self.env.step if self.autoreset else self.env.step_env
        observation, env, reward, over, info = advance(now, state.env, action, params)
        final = info.pop("final_observation")
        info = {k: v for k, v in info.items() if k not in ("discount", "truncated")}
        kind = jnp.where(over, LAST, MID).astype(jnp.int8)
        made = TimeStep(kind, reward, jnp.ones_like(reward), observation, info)
        return TimeStepState(env, later), self._with_next(made, final)

    def _with_next(self, made: TimeStep, final: jax.Array) -> TimeStep:
        return replace(made, extras=made.extras | {"next_obs": final}) if self.autoreset else made

    def _sample(self) -> jax.Array:
        space: Any = self.env.core.action_space
        return jnp.asarray(space.sample())


__all__ = ["EnvParams", "GymnaxEnv", "TimeStep", "TimeStepEnv", "TimeStepState"]
