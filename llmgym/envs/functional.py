"""The environments as pure functions: ``init`` and ``step`` for jit, vmap and scan.

The Gymnasium environments are thin shells around them. One environment has no batch axis; a batch made
by ``init`` from an array of keys has its axis last everywhere, which is several times faster than
vmap (vmap over one environment works too, with its axis where vmap puts it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp

from llmgym.core.checks import check_settings
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.precision import in_32_bits
from llmgym.engine import simulator
from llmgym.engine.view import Batch, View
from llmgym.envs.conditions import Conditions, base_load, conditions_of
from llmgym.envs.interface.actions import make_encoding
from llmgym.envs.interface.chosen import ENGINE, make_observation
from llmgym.envs.interface.encoding import ActionEncoding, Sizes, check_encoding
from llmgym.envs.interface.interface import Composed, Interface
from llmgym.envs.interface.network import NetworkEncoding, NetworkObservation, engine_scenario
from llmgym.envs.interface.observations import Observation, ObservationBase
from llmgym.envs.interface.sound import sound_action
from llmgym.envs.rewards import REWARDS, Reward, make_reward, refuse_for_jobs
from llmgym.envs.task import EnvState, Task, TimeStep
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load
from llmgym.theory.table_size import enough_slots


class FunctionalEngine:
    """The engine environment as functions.

    Args:
        scenario: a Scenario or its name; None: ``default_scenario``.
        load: fraction of the LP capacity; a pair (low, high), a tuple, from which every episode draws its
            own; a list of one for each environment; None: the scenario's own arrival rate.
        action: ``"tiles"``, ``"split"``, ``"tokens"``, ``"scores"``, ``"budget"`` or ``"batch"`` (a
            Batch; here only), another registered name, an ``ActionEncoding`` or a class of them.
        observation: ``"engine"``, or names of its entries and ``Feature`` objects in a list, or an object
            (see llmgym.envs.interface.chosen.make_observation).
        interface: observation and action in one object, in place of the two.
        reward: a name (see llmgym.envs.rewards) or a function of a Transition.
        max_steps: decisions after which an episode is truncated. The task is continuing: it never
            terminates, so bootstrap at the cut.
        observed_requests: how many single requests the observation lists.
        action_settings, reward_settings: settings of the two.
        start: ``"empty"``, or ``"backlog"``: requests of about ``backlog_tokens`` in all (half of the
            slots without it) are there at time 0.
        backlog_tokens: see ``start``.
        window_s: seconds after which an episode is truncated. A replay plays a window of its trace, which
            is drawn for every episode; without a window it begins in the first half of the trace.
        offset_s: seconds into the trace at which every episode of a replay begins, in place of drawing.
        slots: rows of the request table; ``"auto"``: enough for the load (the highest, of several) that a
            stable policy drops nothing (llmgym.theory.table_size); None: those of the scenario.
        num_envs: how many environments a batch will have, where ``load`` is a list.

    Attributes:
        params: the traced parameters (``llmgym.engine.params.Params``) that ``init`` and ``step`` use
            unless given others.
        conditions: from which ``init`` draws episodes unless given others; ``conditions_for`` makes them.
        action_space, observation_space: Gymnasium spaces.
    """

    default_scenario: ClassVar[str] = "paper-figure-1"

    @in_32_bits
    def __init__(
        self,
        scenario: Scenario | str | None = None,
        load: Any = None,
        action: Any = "tiles",
        reward: str | Reward = "holding_cost",
        max_steps: int = 2048,
        observed_requests: int = 0,
        action_settings: dict[str, Any] | None = None,
        reward_settings: dict[str, Any] | None = None,
        observation: Any = ENGINE,
        interface: Interface | None = None,
        start: str = "empty",
        backlog_tokens: float | None = None,
        window_s: float | None = None,
        offset_s: float | None = None,
        slots: int | str | None = None,
        num_envs: int | None = None,
    ) -> None:
        self.max_steps = check_number("max_steps", max_steps, low=1, high=2**30, integer=True)
        chosen = self.default_scenario if scenario is None else scenario
        self.own_load = base_load(load)
        self.scenario = _with_slots(at_load(chosen, self.own_load), slots)
        self.params = self._lower()
        self.num_envs = num_envs
        given = {
            "load": load, "start": start, "backlog_tokens": backlog_tokens, "window_s": window_s,
            "offset_s": offset_s,
        }  # fmt: skip
        self.options = {name: value for name, value in given.items() if value is not None}
        self.conditions = self.conditions_for()
        if interface is None:
            settings = check_settings("action_settings", action_settings)
            interface = self._composed(observation, observed_requests, action, settings)
        elif not isinstance(getattr(interface, "interface", interface), Interface):
            raise LLMGymError(
                f"interface must be an llmgym.Interface, got {shown(interface)}; give observation= and "
                "action= for parts of one."
            )
        interface = getattr(interface, "interface", interface)
        rewarding = check_settings("reward_settings", reward_settings)
        self.reward_is_own = not isinstance(reward, str) or reward not in REWARDS
        self.task = self._task(interface, self._reward(reward, rewarding))
        self.action_space: Any = interface.action_space
        self.observation_space = interface.observation_space

    def _lower(self) -> Any:
        if self.scenario.is_network:
            raise LLMGymError(
                f"Scenario {self.scenario.name!r} is a network of engines; use llmgym/Network-v0."
            )
        return simulator.lower(self.scenario)

    def _reward(self, reward: Any, settings: dict[str, Any]) -> Reward:
        return make_reward(reward, self.scenario, **settings)

    def _composed(
        self, observation: Any, requests: int, action: Any, settings: dict[str, Any]
    ) -> Interface:
        whole = Observation(Sizes.of(self.scenario), requests)
        return Composed(
            make_observation(observation, whole), make_encoding(action, self.scenario, **settings)
        )

    def _task(self, interface: Interface, reward: Reward) -> Task:
        """The task; refused where an object of a user cannot be part of a compiled program."""
        task = Task(interface, reward, self._routes(interface))
        for part in (interface, reward):
            try:
                hash(part)
            except TypeError:
                raise LLMGymError(
                    f"{shown(part)} cannot be hashed, which what is compiled must be: make it a frozen "
                    "dataclass, with tuples for lists."
                ) from None
        if isinstance(interface, Composed):
            check_encoding(interface.action, jax.eval_shape(self._blank))
        if self.reward_is_own:  # shape and type are known from the shapes
            jax.eval_shape(partial(self._one_step, task))
        return task

    def _one_step(self, task: Task) -> TimeStep:
        state = task.init(self.params, self.conditions, jax.random.key(0))
        action = task.view(self.params, state).empty()
        if task.interface.action_space is not None:
            space: Any = task.interface.action_space
            kind = jnp.float32 if isinstance(space, gym.spaces.Box) else jnp.int32
            action = jnp.zeros(space.shape, kind)
        return task.step(self.params, state, action)[1]

    def _blank(self) -> View:
        return simulator.view(self.params, simulator.init(self.params, jax.random.key(0)))

    def _routes(self, interface: Interface) -> bool:
        return False

    @property
    def interface(self) -> Interface:
        """What an agent sees and does."""
        return self.task.interface

    @property
    def reward(self) -> Reward:
        """The reward function."""
        return self.task.reward

    @property
    def observation(self) -> Any:
        """The observation, where the interface is made of one and an action encoding."""
        return getattr(self.interface, "observation", self.interface)

    @property
    def encoding(self) -> Any:
        """The action encoding, where the interface is made of one and an observation."""
        return getattr(self.interface, "action", self.interface)

    @in_32_bits
    def conditions_for(self, options: Mapping[str, Any] | None = None) -> Conditions:
        """From what episodes are drawn under options of a reset, which stand in place of the settings.

        Args:
            options: load, start, backlog_tokens, window_s, offset_s; as the arguments of those names.

        Raises LLMGymError for an unknown option, or a value that cannot be.
        """
        given = check_settings("options", options)
        own = dict(self.options)
        if "start" in given:  # a backlog of the settings is not that of another start
            own.pop("backlog_tokens", None)
        if {"window_s", "offset_s"} & given.keys():
            own.pop("offset_s", None)
        merged = {k: v for k, v in (own | given).items() if v is not None}
        return conditions_of(self.scenario, self.own_load, self.max_steps, self.num_envs, merged)

    @in_32_bits
    def set_load(self, load: Any) -> None:
        """Another load for the episodes to come, as the argument ``load``; nothing is compiled again."""
        before = self.options
        self.options = {k: v for k, v in (before | {"load": load}).items() if v is not None}
        try:
            self.conditions = self.conditions_for()
        except LLMGymError:
            self.options = before
            raise

    def _physics(self, params: Any) -> Any:
        # Behind a barrier: constants that the compiler folds may differ in the last digit from traced
        # ones, and a run must not depend on how it was compiled.
        return params or jax.lax.optimization_barrier(self.params)

    @in_32_bits
    def init(self, key: jax.Array, params: Any = None, conditions: Any = None) -> EnvState:
        """The first state of an episode.

        Args:
            key: a JAX random key, or an array of them for a batch.
            params: to use in place of ``self.params``.
            conditions: to use in place of ``self.conditions``.
        """
        drawn_from = conditions or self.conditions
        return self.task.init(self._physics(params), drawn_from, key)

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
        action = sound_action(action, self.action_space, state.engine.present.shape)
        return self.task.step(self._physics(params), state, action)

    @in_32_bits
    def observe(self, state: EnvState, params: Any = None) -> jax.Array:
        """The observation vector (entries, ...)."""
        return self.task.look(self._physics(params), state)[0]

    @in_32_bits
    def view(self, state: EnvState, params: Any = None) -> View:
        """What a policy of llmgym.baselines sees."""
        return self.task.view(self._physics(params), state)

    @in_32_bits
    def action_mask(self, state: EnvState, params: Any = None) -> jax.Array:
        """Feasible choices, flat (choices, ...)."""
        return self.task.look(self._physics(params), state)[1]

    @in_32_bits
    def expand(self, state: EnvState, action: Any, params: Any = None) -> Batch:
        """The Batch that an action stands for in this state.

        Args:
            state, action, params: as ``step`` takes them.
        """
        action = sound_action(action, self.action_space, state.engine.present.shape)
        return self.task.expand(self._physics(params), state, action)


def _with_slots(scenario: Scenario, slots: Any) -> Scenario:
    """The scenario with another size of its request table."""
    if slots is None:
        return scenario
    if not isinstance(slots, str):  # an array does not compare with a string
        return replace(scenario, slots=slots)
    if slots != "auto":
        raise LLMGymError(f'slots must be a whole number or "auto", got {shown(slots)}.')
    return replace(scenario, slots=enough_slots(scenario))


class FunctionalNetwork(FunctionalEngine):
    """The network environment as functions: as FunctionalEngine, for scenarios of any size.

    Names of actions and observations stand for those of every engine, in a row; objects for the whole
    network, whose View and Batch have an axis of engines behind the slots.
    """

    default_scenario: ClassVar[str] = "rybko-stolyar"

    def _lower(self) -> Any:
        return simulator.lower(self.scenario, as_network=True)  # one engine is a network of one

    def _reward(self, reward: Any, settings: dict[str, Any]) -> Reward:
        if isinstance(reward, str):
            refuse_for_jobs(reward)
        return make_reward(reward, self.scenario, **settings)

    def _composed(
        self, observation: Any, requests: int, action: Any, settings: dict[str, Any]
    ) -> Interface:
        seen = observation
        if not isinstance(observation, ObservationBase):
            seen = NetworkObservation.of(self.scenario, observation, requests)
        if isinstance(action, (str, type)):
            make_encoding(action, engine_scenario(self.scenario, 0), **settings)  # its own message
            does: ActionEncoding = NetworkEncoding.of(self.scenario, action, settings)
        else:
            does = make_encoding(action, self.scenario, **settings)
        return Composed(seen, does)

    def _routes(self, interface: Interface) -> bool:
        return bool(getattr(getattr(interface, "action", None), "routed", ()))


__all__ = ["EnvState", "FunctionalEngine", "FunctionalNetwork", "TimeStep"]
