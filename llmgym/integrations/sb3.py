"""Stable-Baselines3: its VecEnv on top of an environment that is vectorised already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from llmgym.errors import LLMGymError

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

    The infos are a list of dicts with Python numbers. Where an episode ended the dict is that of
    its last step, with ``terminal_observation``; ``TimeLimit.truncated`` says where to bootstrap.

    Args:
        vector_env: any vector environment with autoreset mode SAME_STEP, SB3's own manner.

    Raises:
        LLMGymError: it is something else, or has another autoreset mode.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(vector_env, VectorEnv):
            raise LLMGymError(
                f"SB3VecEnv takes a vector environment (gym.make_vec), got {vector_env!r}."
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
        """Reset all environments, with the seeds of ``seed`` and options of ``set_options`` once."""
        if any(options != self._options[0] for options in self._options):
            raise LLMGymError("The environments are reset together: give all the same options.")
        seeds = None if self._seeds[0] is None else self._seeds
        observation, info = self.vector_env.reset(
            seed=seeds,  # type: ignore[arg-type]
            options=self._options[0] or None,
        )
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = unbatch_info(info, self.num_envs)
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, reward, terminated, truncated, info = self.vector_env.step(self._actions)
        done = terminated | truncated
        final_obs, final_info = info.pop("final_obs", None), info.pop("final_info", {})
        info |= {"TimeLimit.truncated": truncated & ~terminated}
        infos = unbatch_info(info, self.num_envs)
        for i in np.flatnonzero(done):
            # The adapter's own entries, on top of the last step's rather than the reset's.
            infos[i] |= info_of(final_info, i) | {"terminal_observation": final_obs[i]}
        return observation, reward.astype(np.float32), done, infos

    def close(self) -> None:
        self.vector_env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        frames = self.vector_env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of the vector environment for each index; else of its sub-environments."""
        chosen, inner = self._get_indices(indices), self.vector_env.unwrapped
        for env in (self.vector_env, inner):
            if hasattr(env, attr_name):
                return [getattr(env, attr_name) for _ in chosen]
        if not hasattr(inner, "get_attr"):
            raise AttributeError(f"{inner} has no attribute {attr_name!r}")
        values = inner.get_attr(attr_name)
        return [values[i] for i in chosen]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the vector environment, which all environments share."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise LLMGymError("The environments are one object: set an attribute for all of them.")
        setattr(self.vector_env.unwrapped, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of the vector environment, whose result has an entry for each index."""
        method = self.get_attr(method_name, 0)[0]
        result = method(*method_args, **method_kwargs)
        return [result[i] for i in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def unbatch_info(info: dict[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """The infos of the single environments: what each key's mask ``_key`` says that they have."""
    keys = [key for key in info if not key.startswith("_")]
    everywhere = [
        k for k in keys if isinstance(info[k], np.ndarray) and np.all(info.get(f"_{k}", True))
    ]
    # Columns to Python lists, then rows to dicts: under a microsecond for each environment.
    columns = [info[k].tolist() if info[k].ndim == 1 else list(info[k]) for k in everywhere]
    infos = [dict(zip(everywhere, row, strict=True)) for row in zip(*columns, strict=True)]
    infos = infos or [{} for _ in range(num_envs)]
    rest = {
        f"{dash}{k}": info[f"{dash}{k}"] for k in keys if k not in everywhere for dash in ("", "_")
    }
    for i in range(num_envs) if rest else ():
        infos[i] |= info_of(rest, i)
    return infos


def info_of(info: dict[str, Any], env: int) -> dict[str, Any]:
    """The info of one environment out of the batched one."""
    found = {}
    for key, value in info.items():
        if key.startswith("_") or not info.get(f"_{key}", np.True_ | np.zeros(env + 1, bool))[env]:
            continue
        if isinstance(value, dict):
            found[key] = info_of(value, env)
        else:
            found[key] = value[env].item() if np.ndim(value[env]) == 0 else value[env]
    return found
