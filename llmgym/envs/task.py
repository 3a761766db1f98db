"""What is compiled of an environment: the interface and the reward, as pure functions of state and params.

Equal tasks share compiled programs: a second environment with the same settings, or with another load or
other constants of the engine, compiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine import simulator
from llmgym.engine.epoch import run_epoch
from llmgym.engine.fill import feasible
from llmgym.engine.view import Batch, View
from llmgym.envs.conditions import Conditions, Episode
from llmgym.envs.interface.interface import Interface
from llmgym.envs.rewards import Reward, Transition, sound_reward
from llmgym.scenario.arrivals import NEVER


@register
@dataclass(frozen=True)
class EnvState:
    """State of an environment: the engine, what the interface remembers, and the episode's conditions."""

    engine: Any  # state of the engine, or of the network
    memory: Any
    episode: Episode


@register
@dataclass(frozen=True)
class TimeStep:
    """What one step gives back; ``truncated``: by ``max_steps``, a window, or the end of a replay."""

    observation: jax.Array
    reward: jax.Array
    truncated: jax.Array
    info: dict[str, jax.Array]


@dataclass(frozen=True)
class Task:
    """An interface and a reward. ``routes``: whether actions also say where calls of a network go."""

    interface: Interface
    reward: Reward
    routes: bool = False

    @partial(jax.jit, static_argnums=0)
    def init(self, params: Any, conditions: Conditions, key: jax.Array) -> EnvState:
        """The first state of an episode for each of the keys (...)."""
        episode = conditions.draw(key)
        physics = episode.applied_to(params)
        engine = simulator.init(physics, key)
        return EnvState(engine, self.interface.start(simulator.view(physics, engine)), episode)

    @partial(jax.jit, static_argnums=0)
    def view(self, params: Any, state: EnvState) -> View:
        """What a policy of llmgym.baselines sees."""
        return simulator.view(params, state.engine)

    @partial(jax.jit, static_argnums=0)
    def look(self, params: Any, state: EnvState) -> tuple[jax.Array, jax.Array]:
        """The observation (entries, ...) and the mask (choices, ...)."""
        sight = self.interface.look(simulator.view(params, state.engine), state.memory)
        return sight.features, sight.mask

    @partial(jax.jit, static_argnums=0)
    def expand(self, params: Any, state: EnvState, action: Any) -> Batch:
        """The batch that an action stands for."""
        return self._decide(action, simulator.view(params, state.engine), state.memory)[0]

    def _decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        batch, memory = self.interface.decide(action, view, memory)
        # An action that is a Batch itself goes on unchanged: the step says whether it had to be cut.
        return (batch if self.interface.action_space is None else feasible(view, batch)), memory

    def _routed(self, engine: Any, action: Any) -> Any:
        """The engine, its calls routed as the action says."""
        if not self.routes:
            return engine
        route = self.interface.action.route(action, engine.inflow.route)  # type: ignore[attr-defined]
        return replace(engine, inflow=replace(engine.inflow, route=route))

    @partial(jax.jit, static_argnums=0)
    def step(self, params: Any, state: EnvState, action: Any) -> tuple[EnvState, TimeStep]:
        """One decision epoch; see ``FunctionalEngine.step``."""
        physics, episode = state.episode.applied_to(params), state.episode
        epoch = run_epoch(
            physics,
            self._routed(state.engine, action),
            lambda seen: self._decide(action, seen, state.memory),
        )
        info, after = epoch.info, epoch.after
        transition = Transition(state.engine, info, after, physics.tick_ms)
        following = simulator.view(physics, after)
        sight = self.interface.look(following, epoch.told)
        tick = physics.tick_ms
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
            "load": episode.load,
            "clipped": info.clipped,
            "action_mask": sight.mask,
        }
        if physics.kv_blocks is not None:
            step_info["preempted"] = info.preempted
        # Nothing left to do and nothing to come: a replay is over.
        over = (after.present == 0) & (simulator.next_arrival(physics, after) >= NEVER)
        cut = (after.steps >= episode.max_steps) | (after.clock.until(episode.window) == 0)
        reward = sound_reward(self.reward, transition)
        new = EnvState(after, epoch.told, episode)
        return new, TimeStep(sight.features, reward, cut | over, step_info)


def _whole(tokens: jax.Array, state: Any) -> jax.Array:
    """Tokens of all engines."""
    return tokens if tokens.ndim == state.present.ndim else jnp.sum(tokens, axis=0)


def _seconds(clock: Wide, tick_ms: jax.Array) -> jax.Array:
    # Good for looking at; what must be exact uses the clock's two words.
    words = clock.high.astype(jnp.float32) * 2.0**32 + clock.low.astype(jnp.float32)
    return words * tick_ms / 1000
