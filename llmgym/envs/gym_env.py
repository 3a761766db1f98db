"""``gym.make("llmgym/Engine-v0")``: one engine as an ordinary Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import jax
import numpy as np

from llmgym.core.checks import check_name, check_seed, check_settings
from llmgym.core.errors import LLMGymError
from llmgym.core.precision import in_32_bits
from llmgym.envs.functional import EnvState, TimeStep
from llmgym.envs.interface.sound import check_rewards, sound_actions
from llmgym.envs.registration import array_form
from llmgym.envs.rendering.network import NetworkRenderer
from llmgym.envs.rendering.renderer import Renderer

RENDER_MODES = ("ansi", "rgb_array")


class EngineEnv(gym.Env[np.ndarray, Any]):
    """An LLM inference engine: every step composes the batch of one iteration.

    Action and observation: see llmgym.envs.interface. Reward: see llmgym.envs.rewards. Episodes
    are truncated after ``max_steps`` decisions, never terminated. ``info`` holds
    ``action_mask``, simulated time, tokens run, requests completed, arrived, dropped, in system.

    Args: those of llmgym.envs.functional.FunctionalEngine, and ``render_mode``: "ansi" or
    "rgb_array".
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 8}  # noqa: RUF012
    env_id: ClassVar[str] = "llmgym/Engine-v0"

    @in_32_bits
    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        if render_mode is not None:
            check_name("render mode", render_mode, RENDER_MODES)
        self.core = array_form(self.env_id, **settings)
        self.render_mode = render_mode
        assert self.core.action_space is not None
        self.action_space = self.core.action_space
        self.observation_space = self.core.observation_space
        self._init, self._step = jax.jit(self.core.init), jax.jit(self.core.step)
        self._observe, self._mask = jax.jit(self.core.observe), jax.jit(self.core.action_mask)
        self._renderer = None if render_mode is None else self._make_renderer(render_mode)
        self._state: EnvState | None = None
        self._action_mask: np.ndarray | None = None

    def _make_renderer(self, render_mode: str) -> Any:
        return Renderer(self.core, render_mode)

    @property
    def state(self) -> EnvState:
        """The current state of the functional environment."""
        if self._state is None:
            raise LLMGymError("Call reset() first: the environment has no state yet.")
        return self._state

    @in_32_bits
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """An empty engine. No options are known."""
        check_settings("options", options)
        super().reset(seed=None if seed is None else check_seed(seed, 2**63 - 1))
        key = jax.random.key(int(self.np_random.integers(2**31)), impl="threefry2x32")
        self._state = self._init(key, self.core.params)
        self._action_mask = np.array(self._mask(self._state, self.core.params))
        if self._renderer is not None:
            self._renderer.reset()
        # A copy, here and below: memory that JAX owns cannot be written to.
        observation = np.array(self._observe(self._state, self.core.params))
        return observation, {"action_mask": self._action_mask}

    @in_32_bits
    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run one batch."""
        before = self.state
        assert self.action_space.shape is not None
        chosen = sound_actions(action, self.action_space, self.action_space.shape)
        self._state, outcome = self._step(before, chosen, self.core.params)
        result: TimeStep = jax.device_get(outcome)
        info = {k: np.array(v) if np.ndim(v) else v.item() for k, v in result.info.items()}
        check_rewards(np.asarray(result.reward))
        self._action_mask = info["action_mask"]
        if self._renderer is not None:
            self._renderer.record(info)
        return (
            np.array(result.observation),
            float(result.reward),
            False,
            bool(result.truncated),
            info,
        )

    def action_masks(self) -> np.ndarray:
        """Feasible choices now, flat: what sb3-contrib's MaskablePPO asks for."""
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: there is no state to mask actions in.")
        return self._action_mask

    def render(self) -> Any:
        """Text ("ansi") or a uint8 image (height, width, 3) ("rgb_array"); None without a mode."""
        return None if self._renderer is None else self._renderer.render(self.state)


class NetworkEnv(EngineEnv):
    """A network of engines: every step composes the batches of the engines that are free.

    As EngineEnv, with the action and the observation of every engine in a row; engines that are busy
    ignore their part of the action, and the mask leaves them one choice.
    """

    env_id: ClassVar[str] = "llmgym/Network-v0"

    def _make_renderer(self, render_mode: str) -> Any:
        return NetworkRenderer(self.core, render_mode)
