"""A network of engines as a PettingZoo ``ParallelEnv``: one agent per engine.

Needs the extra ``pettingzoo``: ``pip install llmgym[pettingzoo]``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import jax
import numpy as np
from gymnasium.utils import seeding

from llmgym.core.checks import check_name, check_seed, check_settings
from llmgym.core.errors import LLMGymError
from llmgym.core.precision import in_32_bits
from llmgym.envs.functional import EnvState
from llmgym.envs.gym_env import RENDER_MODES
from llmgym.envs.interface.encoding import choices_of, sample_mask
from llmgym.envs.interface.sound import check_rewards, sound_actions
from llmgym.envs.registration import array_form
from llmgym.envs.rendering.network import NetworkRenderer

try:
    from pettingzoo import ParallelEnv
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise LLMGymError("This view needs PettingZoo: pip install llmgym[pettingzoo]") from error


class NetworkParallelEnv(ParallelEnv):
    """Every engine composes its own batch; all agents share the reward of the network.

    Agents are the names of the engines. An agent observes its engine as in ``llmgym/Engine-v0``, then
    whether a batch runs there, how long it still runs (log1p ms), and the jobs in the network (log1p). At
    an epoch all agents act; actions of busy engines are ignored, and their ``action_mask`` in ``infos``
    leaves them one choice. Episodes are truncated, never terminated. Calls are routed among
    replicas by the scenario's router.

    Args: those of llmgym.envs.functional.FunctionalNetwork, and ``render_mode``: "ansi" or "rgb_array";
    ``action`` may not be "batch", and like ``observation`` is that of every engine.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "render_modes": list(RENDER_MODES),
        "name": "llmgym_network_v0",
        "is_parallelizable": True,
    }

    @in_32_bits
    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None:
            check_name("render mode", render_mode, RENDER_MODES)
        self.core = array_form("llmgym/Network-v0", **settings)
        if not (hasattr(self.core.encoding, "parts") and hasattr(self.core.observation, "parts")):
            raise LLMGymError(
                "Every engine is an agent: give action and observation by name, as those of one engine."
            )
        if self.core.encoding.routed:
            raise LLMGymError("With one agent an engine nobody routes: use another router.")
        self.possible_agents = list(self.core.scenario.engine_names)
        self.agents: list[str] = []
        self.render_mode = render_mode
        self._renderer = None if render_mode is None else NetworkRenderer(self.core, render_mode)
        parts: Any = self.core.encoding
        self._actions = {a: p.space for a, p in zip(self.possible_agents, parts.parts, strict=True)}
        self._spaces = {a: self._space(s) for s, a in enumerate(self.possible_agents)}
        self._random = seeding.np_random(None)[0]
        self._state: EnvState | None = None

    def _entries(self, s: int) -> np.ndarray:
        """The entries of the network's observation that agent ``s`` sees."""
        sizes = [part.space.shape[0] for part in self.core.observation.parts]
        start, engines = sum(sizes[:s]), len(sizes)
        rest = sum(sizes)
        own = np.arange(start, start + sizes[s])
        return np.concatenate([own, [rest + s, rest + engines + s, rest + 2 * engines]])

    def _space(self, s: int) -> gym.spaces.Box:
        whole, entries = self.core.observation_space, self._entries(s)
        return gym.spaces.Box(whole.low[entries], whole.high[entries], dtype=np.float32)

    def observation_space(self, agent: str) -> gym.spaces.Box:
        """The space of an agent's observations."""
        return self._spaces[agent]

    def action_space(self, agent: str) -> gym.Space[Any]:
        """The space of an agent's actions."""
        return self._actions[agent]

    @in_32_bits
    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        """Begin an episode; ``options`` are those of llmgym.envs.gym_env.NetworkEnv, without a scenario."""
        given = check_settings("options", options)
        given.pop(
            "options", None
        )  # PettingZoo's own test gives one of this name, which means nothing
        conditions = self.core.conditions_for(given) if given else self.core.conditions
        if seed is not None:
            self._random = seeding.np_random(check_seed(seed, 2**63 - 1))[0]
        key = jax.random.key(int(self._random.integers(2**31)), impl="threefry2x32")
        self.agents = list(self.possible_agents)
        self._state = self.core.init(key, self.core.params, conditions)
        seen, mask = self.core.task.look(self.core.params, self._state)
        if self._renderer is not None:
            self._renderer.reset()
        return self._observations(np.array(seen)), self._infos(np.array(mask))

    @in_32_bits
    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, np.ndarray],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Start the batches of the engines that are free; time passes to the next event."""
        if self._state is None or not self.agents:
            raise LLMGymError("Call reset() first: the episode has not begun, or is over.")
        actions = check_settings("actions", actions)
        for agent in self.agents:
            if agent not in actions:
                raise LLMGymError(f"No action for agent {agent!r}.")
        action = np.concatenate([self._chosen(agent, actions[agent]) for agent in self.agents])
        self._state, outcome = self.core.task.step(self.core.params, self._state, action)
        result = jax.device_get(outcome)
        mask = np.array(result.info["action_mask"])
        observations, infos = self._observations(np.array(result.observation)), self._infos(mask)
        check_rewards(np.asarray(result.reward))
        if self._renderer is not None:
            self._renderer.record(result.info)
        over, reward = bool(result.truncated), float(result.reward)
        agents = self.agents
        self.agents = [] if over else agents
        return (
            observations,
            dict.fromkeys(agents, reward),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            infos,
        )

    def _chosen(self, agent: str, action: Any) -> np.ndarray:
        """The action of an agent, checked, flat."""
        space = self._actions[agent]
        assert space.shape is not None
        return np.atleast_1d(sound_actions(action, space, space.shape, f"Actions of {agent!r}"))

    def _observations(self, whole: np.ndarray) -> dict[str, np.ndarray]:
        return {a: whole[self._entries(s)] for s, a in enumerate(self.possible_agents)}

    def _infos(self, mask: np.ndarray) -> dict[str, dict[str, Any]]:
        sizes = [choices_of(space) for space in self._actions.values()]
        parts = np.split(mask, np.cumsum(sizes)[:-1])
        return {
            agent: {"action_mask": sample_mask(part, self._actions[agent])}
            for agent, part in zip(self.possible_agents, parts, strict=True)
        }

    def render(self) -> Any:
        """Text, or an image (480, 800, 3) uint8; None without a render mode."""
        if self._renderer is None:
            return None
        if self._state is None:
            raise LLMGymError("Call reset() first: the network has no state yet.")
        return self._renderer.render(self._state)
