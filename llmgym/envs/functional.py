"""``llmgym/Engine-v0`` as pure functions: ``init`` and ``step`` for jit, vmap and scan.

The Gymnasium environments are thin shells around it. One environment has no batch axis; a batch made
by ``init`` from an array of keys has its axis last everywhere, which is several times faster than
vmap (vmap over one environment works too, with its axis where vmap puts it).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from llmgym import dynamics
from llmgym.arrivals import NEVER
from llmgym.composition import Batch, View
from llmgym.dynamics import Physics
from llmgym.envs.actions import ActionEncoding, make_encoding
from llmgym.envs.observations import Observation
from llmgym.envs.rewards import Reward, Transition, make_reward
from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.pytree import register
from llmgym.scenario import Scenario, as_scenario
from llmgym.state import State
from llmgym.wide import Wide

RATE_MEMORY_S = 60.0
"""Time constant of the arrival-rate estimate."""


@register
@dataclass(frozen=True)
class EnvState:
    """State of an environment: the engine, and an estimate of its arrivals per second.

    The estimate is the exponentially weighted rate of the last minute or so; it starts at 0 and is
    corrected for its short memory at the start.
    """

    engine: State
    weighted_arrivals: jax.Array
    weight: jax.Array

    @property
    def arrival_rate(self) -> jax.Array:
        """Estimated arrivals per second."""
        return self.weighted_arrivals / jnp.maximum(self.weight, 1e-6)


@register
@dataclass(frozen=True)
class TimeStep:
    """What one step gives back; ``truncated``: the time limit, or the end of a replay."""

    observation: jax.Array
    reward: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


class FunctionalEngine:
    """The engine environment as functions.

    Args:
        scenario: a Scenario or its name.
        load: fraction of the LP capacity; None: the scenario's own arrival rate.
        action: ``"tiles"``, ``"split"``, ``"tokens"``, ``"scores"`` or ``"batch"`` (a Batch; here
            only).
        reward: a name (see llmgym.envs.rewards) or a function of a Transition.
        max_steps: decisions after which an episode is truncated. The task is continuing: it never
            terminates, so bootstrap at the cut.
        observed_requests: how many single requests the observation lists.
        action_settings, reward_settings: settings of the two.

    Attributes:
        params: the traced parameters (Physics) that ``init`` and ``step`` use unless given others.
        action_space, observation_space: Gymnasium spaces.
    """

    def __init__(
        self,
        scenario: Scenario | str = "paper-figure-1",
        load: float | None = None,
        action: str = "tiles",
        reward: str | Reward = "holding_cost",
        max_steps: int = 2048,
        observed_requests: int = 0,
        action_settings: dict[str, Any] | None = None,
        reward_settings: dict[str, Any] | None = None,
    ) -> None:
        check_number("max_steps", max_steps, low=1, high=2**30, integer=True)
        self.scenario = as_scenario(scenario).at_load(load)
        self.params = dynamics.lower(self.scenario)
        self.max_steps = int(max_steps)
        self.encoding: ActionEncoding = make_encoding(
            action, self.scenario, **(action_settings or {})
        )
        self.reward = make_reward(reward, self.scenario, **(reward_settings or {}))
        self.observation = Observation(self.scenario, observed_requests)
        self.action_space = self.encoding.space
        self.observation_space = self.observation.space

    def _physics(self, params: Physics | None) -> Physics:
        # Behind a barrier: constants that the compiler folds round differently in the last digit
        # from traced ones, and a run must not depend on how it was compiled.
        return params or jax.lax.optimization_barrier(self.params)

    def init(self, key: jax.Array, params: Physics | None = None) -> EnvState:
        """An empty engine. ``key``: a JAX random key, or an array of them for a batch."""
        engine = dynamics.init(self._physics(params), key)
        none = jnp.zeros(engine.present.shape, jnp.float32)
        return EnvState(engine, none, none)

    def step(
        self, state: EnvState, action: Any, params: Physics | None = None
    ) -> tuple[EnvState, TimeStep]:
        """One decision epoch. Does not reset: do so where ``truncated`` is set."""
        physics = self._physics(params)
        batch = self.encoding.expand(action, dynamics.view(physics, state.engine))
        after, info = dynamics.step(physics, state.engine, batch)
        transition = Transition(state.engine, info, after, physics.tick_ms)
        new = _remember(replace(state, engine=after), info.arrived, transition.duration_s)
        tick = physics.tick_ms
        # Nothing left to do and nothing to come: a replay is over.
        over = (after.present == 0) & (dynamics.next_arrival(physics, after) >= NEVER)
        step_info = {
            "time_s": _seconds(after.clock, tick),
            "duration_ms": info.duration.astype(jnp.float32) * tick,
            "prefill_tokens": info.prefill_tokens,
            "decode_tokens": info.decode_tokens,
            "completed": info.completed,
            "arrived": info.arrived,
            "dropped": info.dropped,
            "in_system": after.present,
            "backlog_tokens": after.backlog,
            "clipped": info.clipped,
            "action_mask": self.encoding.mask(dynamics.view(physics, after)),
        }
        truncated = (after.steps >= self.max_steps) | over
        reward = jnp.asarray(self.reward(transition), jnp.float32)
        return new, TimeStep(self.observe(new, physics), reward, truncated, step_info)

    def observe(self, state: EnvState, params: Physics | None = None) -> jax.Array:
        """The observation vector (entries, ...)."""
        return self.observation(self.view(state, params), state.arrival_rate)

    def view(self, state: EnvState, params: Physics | None = None) -> View:
        """What a policy of llmgym.baselines sees."""
        return dynamics.view(self._physics(params), state.engine)

    def action_mask(self, state: EnvState, params: Physics | None = None) -> jax.Array:
        """Feasible choices, flat (choices, ...)."""
        return self.encoding.mask(self.view(state, params))

    def expand(self, state: EnvState, action: Any, params: Physics | None = None) -> Batch:
        """The Batch that an action stands for in this state."""
        return self.encoding.expand(action, self.view(state, params))


def _remember(state: EnvState, arrived: jax.Array, duration_s: jax.Array) -> EnvState:
    fade = jnp.exp(-duration_s / RATE_MEMORY_S)
    return replace(
        state,
        weighted_arrivals=fade * state.weighted_arrivals + arrived,
        weight=fade * state.weight + RATE_MEMORY_S * (1 - fade),
    )


def _seconds(clock: Wide, tick_ms: jax.Array) -> jax.Array:
    # Good for looking at; what must be exact uses the clock's two words.
    words = clock.high.astype(jnp.float32) * 2.0**32 + clock.low.astype(jnp.float32)
    return words * tick_ms / 1000


IDS = {"llmgym/Engine-v0": FunctionalEngine}


def functional(env_id: str, **settings: Any) -> FunctionalEngine:
    """The functional form of an environment: ``functional("llmgym/Engine-v0", load=0.9)``.

    Settings are those of ``gym.make``. Raises LLMGymError for an unknown id or setting.
    """
    if env_id not in IDS:
        raise unknown("environment", env_id, IDS)
    known = inspect.signature(IDS[env_id]).parameters
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {env_id}:", name, known)
    return IDS[env_id](**settings)


def array_form(env_id: str, **settings: Any) -> FunctionalEngine:
    """The same for the Gymnasium environments, whose actions are arrays."""
    if settings.get("action") == "batch":
        raise LLMGymError(
            'action="batch" is for llmgym.functional; '
            "in Gymnasium use tiles, split, tokens or scores."
        )
    return functional(env_id, **settings)
