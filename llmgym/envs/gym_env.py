"""``gym.make("llmgym/Engine-v0")``: one engine as an ordinary Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from llmgym.core.checks import check_name, check_seed
from llmgym.core.errors import LLMGymError
from llmgym.core.forked import refuse_async_fork
from llmgym.core.precision import in_32_bits
from llmgym.envs.functional import EnvState
from llmgym.envs.interface.encoding import sample_mask
from llmgym.envs.interface.sound import check_rewards, sound_actions, tell_of_drops
from llmgym.envs.rendering.network import NetworkRenderer
from llmgym.envs.rendering.renderer import Renderer
from llmgym.envs.scenarios import Scenarios
from llmgym.envs.side_by_side import begun, nothing, runner_of

RENDER_MODES = ("ansi", "rgb_array")


class EngineEnv(gym.Env[np.ndarray, Any]):
    """An LLM inference engine: every step composes the batch of one iteration.

    Action and observation: see llmgym.envs.interface. Reward: see llmgym.envs.rewards. Episodes
    are truncated after ``max_steps`` decisions, never terminated. ``info`` holds
    ``action_mask`` (as ``action_space.sample`` takes it), simulated time, tokens run, requests completed,
    arrived, dropped, in system, and the load of the episode.

    Args: those of llmgym.envs.functional.FunctionalEngine, and ``render_mode``: "ansi" or
    "rgb_array". ``scenario`` may be a list of scenarios: every episode draws one of them.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012
    env_id: ClassVar[str] = "llmgym/Engine-v0"

    @in_32_bits
    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        refuse_async_fork()
        if render_mode is not None:
            check_name("render mode", render_mode, RENDER_MODES)
        self._scenarios = Scenarios(self.env_id, settings)
        self.core = self._scenarios.cores[0]
        self.render_mode = render_mode
        self.action_space = self.core.action_space
        self.observation_space = self._scenarios.observation_space
        self._renderer = None if render_mode is None else self._make_renderer(render_mode)
        self._runner = runner_of(self.core)
        self._action_mask: np.ndarray | None = None
        self._told_of_drops = False
        if self.core.reward_is_own:
            self._try_reward()

    def _try_reward(self) -> None:
        """Refuse a user's reward that is not finite in the first step of an empty engine."""
        runner = runner_of(self.core)
        begun(runner, self.core, _stream(0), self.core.conditions)
        check_rewards(np.asarray(runner.step(nothing(self.action_space))[1]))

    def _make_renderer(self, render_mode: str) -> Any:
        return Renderer(self.core, render_mode)

    def __getstate__(self) -> dict[str, Any]:
        state = self._runner.state if self._runner.started else None
        return self.__dict__ | {"_runner": None, "_kept": state}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        state = kept.pop("_kept")
        self.__dict__.update(kept)
        self._runner = runner_of(self.core)
        if state is not None:
            self._runner.restore(state, _stream(0), self.core.conditions)

    @property
    def state(self) -> EnvState:
        """The current state of the functional environment."""
        state: EnvState = self._runner.state
        return state

    @property
    def load(self) -> Any:
        """The load of episodes to come: a number, a pair to draw from, or None; may be set at any time."""
        return self.core.options.get("load")

    @load.setter
    def load(self, load: Any) -> None:
        self._scenarios.set_load(load)

    @in_32_bits
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of what arrives.
            options: for this episode, in place of the settings: load, scenario, start, backlog_tokens,
                window_s, offset_s (see FunctionalEngine).
        """
        super().reset(seed=None if seed is None else check_seed(seed, 2**63 - 1))
        number = int(self.np_random.integers(2**31))
        before = self.core
        self.core, conditions = self._scenarios.chosen(options, number)
        if self.core is not before:
            self._runner = runner_of(self.core)
        seen = begun(self._runner, self.core, _stream(number), conditions)
        observation, self._action_mask = seen
        if self._renderer is not None:
            if self.core is not before:
                assert self.render_mode is not None
                self._renderer = self._make_renderer(self.render_mode)
            self._renderer.reset()
        return observation, {"action_mask": self._sample_mask()}

    def _sample_mask(self) -> Any:
        return sample_mask(self._action_mask, self.action_space)

    @in_32_bits
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run one batch."""
        assert self.action_space.shape is not None
        chosen = sound_actions(action, self.action_space, self.action_space.shape)
        observation, reward, truncated, info = self._runner.step(chosen)
        check_rewards(np.asarray(reward))
        if not self._told_of_drops and info["dropped"]:
            self._told_of_drops = tell_of_drops(
                info["dropped"], info["load"], self.core.scenario.slots
            )
        self._action_mask = info["action_mask"]
        info["action_mask"] = self._sample_mask()
        if self._renderer is not None:
            self._renderer.record(info)
        return observation, reward, False, truncated, info

    def action_masks(self) -> np.ndarray:
        """Feasible choices now, flat: what sb3-contrib's MaskablePPO asks for."""
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: there is no state to mask actions in.")
        return self._action_mask

    def render(self) -> Any:
        """Text, or an image (height, width, 3) uint8; None without a render mode."""
        if self._renderer is None:
            return None
        return self._renderer.render(self.state)


class NetworkEnv(EngineEnv):
    """A network of engines: every step composes the batches of all engines that are free.

    As EngineEnv, with actions and observations of the engines in a row; see
    llmgym.envs.interface.network.
    """

    env_id: ClassVar[str] = "llmgym/Network-v0"

    def _make_renderer(self, render_mode: str) -> Any:
        return NetworkRenderer(self.core, render_mode)


def _stream(number: int) -> tuple[np.uint32, np.int32]:
    """The first episode of a random stream."""
    return np.uint32(number), np.int32(0)
