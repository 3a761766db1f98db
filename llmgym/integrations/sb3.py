"""Stable-Baselines3: its VecEnv on top of an environment that is vectorised already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from llmgym.core.errors import LLMGymError, shown
from llmgym.integrations.lazy_info import LazyInfo, columns_of, row_of

try:
    from stable_baselines3.common.vec_env import VecEnv
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices
except ImportError as error:
    raise ImportError(
        "llmgym.integrations.sb3 needs Stable-Baselines3: pip install 'llmgym[sb3]'."
    ) from error


class SB3VecEnv(VecEnv):
    """A Gymnasium vector environment as a Stable-Baselines3 VecEnv, stepped as one.

    ``SB3VecEnv(gym.make_vec("llmgym/Engine-v0", num_envs=256))`` goes straight into PPO and its
    kin, and into MaskablePPO, which asks for ``action_masks``. Episode statistics come from
    ``VecMonitor(SB3VecEnv(...))``, as for every VecEnv.

    The infos are a list of mappings with Python numbers, filled when they are first looked at. Where an
    episode ended it is that of its last step, with ``terminal_observation``;
    ``TimeLimit.truncated`` says where to bootstrap.

    Args:
        vector_env: any vector environment with autoreset mode SAME_STEP, which is how SB3 resets.

    Raises:
        LLMGymError: it is something else, or has another autoreset mode.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise LLMGymError(
                f"SB3VecEnv takes a vector environment (gym.make_vec), got {shown(vector_env)}."
            )
        mode = vector_env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise LLMGymError(
                f"SB3 resets in the step that ends an episode; this environment's mode is {mode}. "
                "Make it with autoreset_mode=AutoresetMode.SAME_STEP."
            )
        # Before super().__init__, which asks for attributes of the environment.
        self.vector_env = vector_env
        self._actions: np.ndarray | None = None
        super().__init__(
            vector_env.num_envs,
            vector_env.single_observation_space,
            vector_env.single_action_space,
        )

    def reset(self) -> Any:
        """Reset all environments; seeds of ``seed`` and options of ``set_options`` hold for this once."""
        if any(options != self._options[0] for options in self._options):
            raise LLMGymError("The environments are reset together: give all the same options.")
        seeds = None if self._seeds[0] is None else self._seeds
        observation, info = self.vector_env.reset(
            seed=seeds,  # type: ignore[arg-type]
            options=self._options[0] or None,
        )
        self._reset_seeds()
        self._reset_options()
        columns = columns_of(info)
        self.reset_infos = [row_of(columns, i) for i in range(self.num_envs)]
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, info = self.vector_env.step(self._actions)
        done = terminated | truncated
        columns = columns_of(info) | {"TimeLimit.truncated": (truncated & ~terminated, None)}
        infos: list[Any] = [LazyInfo(columns, i) for i in range(self.num_envs)]
        for i in np.flatnonzero(done):
            final = infos[i].pop("final_info", {})
            infos[i].update(final | {"terminal_observation": infos[i].pop("final_obs")})
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames: Any = self.vector_env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def _owner(self, name: str) -> Any:
        """The vector environment, or the first one under its wrappers, that has an attribute."""
        env: Any = self.vector_env
        while env is not None and not hasattr(env, name):
            env = getattr(env, "env", None)
        return env

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of the vector environment, for each index; or of its sub-environments."""
        owner, inner = self._owner(attr_name), self.vector_env.unwrapped
        if owner is not None:
            values = [getattr(owner, attr_name)] * self.num_envs
        elif hasattr(inner, "get_attr"):
            values = inner.get_attr(attr_name)
        else:
            raise AttributeError(f"{inner} has no attribute {attr_name!r}.")
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute where ``get_attr`` finds it; all environments share it.

        Args:
            attr_name: the attribute. One that neither the vector environment nor its wrappers have is
                set in its sub-environments, where it has any.
            value: the new value.
            indices: None or all environments.

        Raises:
            LLMGymError: ``indices`` leaves out some of the environments.
        """
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise LLMGymError("The environments are one object: set an attribute for all of them.")
        owner, inner = self._owner(attr_name), self.vector_env.unwrapped
        if owner is not None:
            setattr(owner, attr_name, value)
        elif hasattr(inner, "set_attr"):
            inner.set_attr(attr_name, value)
        else:
            setattr(inner, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of the vector environment, or of its sub-environments.

        Its result has an entry for each environment; those of the indices are returned.
        """
        owner, inner = self._owner(method_name), self.vector_env.unwrapped
        if owner is not None:
            results = getattr(owner, method_name)(*method_args, **method_kwargs)
        elif hasattr(inner, "call"):
            results = inner.call(method_name, *method_args, **method_kwargs)
        else:
            raise AttributeError(f"{inner} has no method {method_name!r}.")
        return [results[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
