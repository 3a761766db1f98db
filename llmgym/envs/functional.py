"""``llmgym/Engine-v0`` as pure functions: ``init`` and ``step`` for jit, vmap and scan.

The Gymnasium environments are thin shells around it. One environment has no batch axis; a batch made
by ``init`` from an array of keys has its axis last everywhere, which is several times faster than
vmap (vmap over one environment works too, with its axis where vmap puts it).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.core.arrays import rounded
from llmgym.core.checks import check_settings
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.precision import in_32_bits
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine import simulator
from llmgym.engine.epoch import run_epoch
from llmgym.engine.fill import feasible
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.actions import ActionEncoding, make_encoding
from llmgym.envs.interface.observations import Observation
from llmgym.envs.interface.sound import sound_action
from llmgym.envs.rewards import Reward, Transition, make_reward, sound_reward
from llmgym.scenario.arrivals import NEVER
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load

RATE_MEMORY_S = 60.0
"""Time constant of the arrival-rate estimate."""


@register
@dataclass(frozen=True)
class EnvState:
    """State of an environment: the engine, and an estimate of its arrivals per second.

    The estimate is the exponentially weighted rate of the last minute or so; it starts at 0 and is
    corrected for its short memory at the start. ``memory`` is that of a policy inside the action encoding,
    if it has one; it starts afresh with every episode.
    """

    engine: Any  # state of the engine, or of the network
    weighted_arrivals: jax.Array
    weight: jax.Array
    memory: Any = None

    @property
    def arrival_rate(self) -> jax.Array:
        """Estimated arrivals per second."""
        return self.weighted_arrivals / jnp.maximum(self.weight, 1e-6)


@register
@dataclass(frozen=True)
class TimeStep:
    """What one step gives back; ``truncated``: by ``max_steps``, or at the end of a replay."""

    observation: jax.Array
    reward: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


class FunctionalEngine:
    """The engine environment as functions.

    Args:
        scenario: a Scenario or its name; None: ``default_scenario``.
        load: fraction of the LP capacity; None: the scenario's own arrival rate.
        action: ``"tiles"``, ``"split"``, ``"tokens"``, ``"scores"``, ``"budget"`` or ``"batch"`` (a
            Batch; here only).
        reward: a name (see llmgym.envs.rewards) or a function of a Transition.
        max_steps: decisions after which an episode is truncated. The task is continuing: it never
            terminates, so bootstrap at the cut.
        observed_requests: how many single requests the observation lists.
        action_settings, reward_settings: settings of the two.

    Attributes:
        params: the traced parameters (``llmgym.engine.params.Params``) that ``init`` and ``step`` use
            unless given others.
        action_space, observation_space: Gymnasium spaces.
    """

    default_scenario: ClassVar[str] = "paper-figure-1"

    @in_32_bits
    def __init__(
        self,
        scenario: Scenario | str | None = None,
        load: float | None = None,
        action: str = "tiles",
        reward: str | Reward = "holding_cost",
        max_steps: int = 2048,
        observed_requests: int = 0,
        action_settings: dict[str, Any] | None = None,
        reward_settings: dict[str, Any] | None = None,
    ) -> None:
        max_steps = check_number("max_steps", max_steps, low=1, high=2**30, integer=True)
        chosen = self.default_scenario if scenario is None else scenario
        self.scenario = at_load(chosen, load)
        self.params = self._lower()
        self.max_steps = max_steps
        self.encoding = self._encoding(action, check_settings("action_settings", action_settings))
        rewarding = check_settings("reward_settings", reward_settings)
        self.reward = make_reward(reward, self.scenario, **rewarding)
        self.observation: Any = self._observation(observed_requests)
        self.action_space = self.encoding.space
        self.observation_space = self.observation.space

    def _lower(self) -> Any:
        if self.scenario.is_network:
            raise LLMGymError(
                f"Scenario {self.scenario.name!r} is a network of engines; use llmgym/Network-v0."
            )
        return simulator.lower(self.scenario)

    def _encoding(self, action: str, settings: dict[str, Any]) -> ActionEncoding:
        return make_encoding(action, self.scenario, **settings)

    def _observation(self, requests: int) -> Any:
        return Observation(self.scenario, requests)

    def _route(self, engine: Any, action: Any) -> Any:
        """The engine, its calls routed as an action says."""
        return engine

    def _decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        batch, memory = self.encoding.decide(action, view, memory)
        # An action that is a Batch itself goes on unchanged: the step says whether it had to be cut.
        return (batch if self.encoding.space is None else feasible(view, batch)), memory

    def _look(self, state: EnvState, view: View) -> jax.Array:
        return jnp.asarray(self.observation(view, state.arrival_rate))

    def _physics(self, params: Any) -> Any:
        # Behind a barrier: constants that the compiler folds may differ in the last digit from traced
        # ones, and a run must not depend on how it was compiled.
        return params or jax.lax.optimization_barrier(self.params)

    @in_32_bits
    def init(self, key: jax.Array, params: Any = None) -> EnvState:
        """An empty engine. ``key``: a JAX random key, or an array of them for a batch."""
        physics = self._physics(params)
        engine = simulator.init(physics, key)
        none = jnp.zeros(engine.present.shape, jnp.float32)
        return EnvState(engine, none, none, self.encoding.start(simulator.view(physics, engine)))

    @in_32_bits
    def step(self, state: EnvState, action: Any, params: Any = None) -> tuple[EnvState, TimeStep]:
        """One decision epoch. Does not reset: do so where ``truncated`` is set.

        Args:
            state: at the decision, of one environment or of a batch.
            action: an element of ``action_space``; of a batch (dimensions, num_envs), or (num_envs,)
                where it is a single choice. With ``action="batch"`` a Batch. Under jit its values cannot
                be looked at: one out of range, or NaN, then stands for some feasible batch.
            params: to use in place of ``self.params``, say those of another load.

        Returns:
            The state at the next decision; and a TimeStep, whose observation and action mask belong to
            that state and whose reward and other info to the step.
        """
        physics = self._physics(params)
        action = sound_action(action, self.action_space, state.engine.present.shape)
        epoch = run_epoch(
            physics,
            self._route(state.engine, action),
            lambda seen: self._decide(action, seen, state.memory),
        )
        info, after = epoch.info, epoch.after
        transition = Transition(state.engine, info, after, physics.tick_ms)
        new = replace(state, engine=after, memory=epoch.told)
        new = _remember(new, info.arrived, transition.duration_s)
        following = simulator.view(physics, after)
        tick = physics.tick_ms
        # Nothing left to do and nothing to come: a replay is over.
        over = (after.present == 0) & (simulator.next_arrival(physics, after) >= NEVER)
        step_info = {
            "time_s": _seconds(after.clock, tick),
            "duration_ms": info.duration.astype(jnp.float32) * tick,
            "prefill_tokens": _whole(info.prefill_tokens, after),
            "decode_tokens": _whole(info.decode_tokens, after),
            "completed": info.completed,
            "arrived": info.arrived,
            "dropped": info.dropped,
            "in_system": after.present,
            "backlog_tokens": after.backlog.to_float(),
            "clipped": info.clipped,
            "action_mask": self.encoding.mask(following),
        }
        if getattr(physics, "kv_blocks", None) is not None:
            step_info["preempted"] = info.preempted
        truncated = (after.steps >= self.max_steps) | over
        reward = sound_reward(self.reward, transition)
        return new, TimeStep(self._look(new, following), reward, truncated, step_info)

    @in_32_bits
    def observe(self, state: EnvState, params: Any = None) -> jax.Array:
        """The observation vector (entries, ...)."""
        return self._look(state, self.view(state, params))

    @in_32_bits
    def view(self, state: EnvState, params: Any = None) -> View:
        """What a policy of llmgym.baselines sees."""
        return simulator.view(self._physics(params), state.engine)

    @in_32_bits
    def action_mask(self, state: EnvState, params: Any = None) -> jax.Array:
        """Feasible choices, flat (choices, ...)."""
        return self.encoding.mask(self.view(state, params))

    @in_32_bits
    def expand(self, state: EnvState, action: Any, params: Any = None) -> Batch:
        """The Batch that an action stands for in this state.

        Args:
            state, action, params: as ``step`` takes them.
        """
        action = sound_action(action, self.action_space, state.engine.present.shape)
        return self._decide(action, self.view(state, params), state.memory)[0]


def _whole(tokens: jax.Array, state: Any) -> jax.Array:
    """Tokens of all engines."""
    return tokens if tokens.ndim == state.present.ndim else jnp.sum(tokens, axis=0)


def _remember(state: EnvState, arrived: jax.Array, duration_s: jax.Array) -> EnvState:
    fade = jnp.exp(-duration_s / RATE_MEMORY_S)
    never = state.engine.steps >> 31
    return replace(
        state,
        weighted_arrivals=rounded(fade * state.weighted_arrivals, never) + arrived,
        weight=rounded(fade * state.weight, never) + rounded(RATE_MEMORY_S * (1 - fade), never),
    )


def _seconds(clock: Wide, tick_ms: jax.Array) -> jax.Array:
    # Good for looking at; what must be exact uses the clock's two words.
    words = clock.high.astype(jnp.float32) * 2.0**32 + clock.low.astype(jnp.float32)
    return words * tick_ms / 1000
