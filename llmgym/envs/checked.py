"""A vector environment each of whose answers is checked: shapes, dtypes, spaces, info and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from llmgym.core.errors import LLMGymError


def require(condition: bool, broken: str, fix: str) -> None:
    """Hold a vector environment to a rule.

    Args:
        condition: whether it is kept.
        broken: what is wrong if it is not, as a sentence without a full stop.
        fix: how to fix it, likewise.

    Raises:
        LLMGymError: it is not kept; the message is made of the two sentences.
    """
    if not condition:
        raise LLMGymError(f"check_vector_env: {broken}; {fix}.")


class CheckedEnv:
    """Passes ``reset`` and ``step`` on to a vector environment and checks what comes back.

    Raises LLMGymError where a rule is broken: at once for spaces and metadata.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.unchecked = env
        for name in ("num_envs", "observation_space", "action_space", "single_observation_space",
                     "single_action_space"):  # fmt: skip
            require(hasattr(env, name), f"{name} is missing", "set it in __init__")
        self.num_envs = env.num_envs
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.single_observation_space = env.single_observation_space
        self.single_action_space = env.single_action_space
        require(
            isinstance(self.num_envs, int) and self.num_envs >= 1,
            f"num_envs is {self.num_envs!r}",
            "it must be a whole number of 1 or more",
        )
        # Bounds of observations may differ between environments; actions are the same for all.
        expected = batch_space(self.single_observation_space, self.num_envs)
        require(
            type(expected) is type(self.observation_space)
            and is_space_dtype_shape_equiv(expected, self.observation_space),
            f"observation_space is {self.observation_space}, and a batch of "
            f"single_observation_space is {expected}",
            "make it with gymnasium.vector.utils.batch_space",
        )
        expected = batch_space(self.single_action_space, self.num_envs)
        require(
            expected == self.action_space,
            f"action_space is {self.action_space}, and a batch of single_action_space is "
            f"{expected}",
            "make it with gymnasium.vector.utils.batch_space",
        )
        self.mode = env.metadata.get("autoreset_mode")
        require(
            isinstance(self.mode, AutoresetMode),
            f'metadata["autoreset_mode"] is {self.mode!r}',
            "it must be a gymnasium.vector.AutoresetMode",
        )

    def reset(
        self, seed: int | None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The observation and info of a reset."""
        result = self.unchecked.reset(seed=seed, options=options)
        require(
            isinstance(result, tuple) and len(result) == 2,
            f"reset returned {type(result).__name__}",
            "return (observation, info)",
        )
        observation, info = result
        _check_member(self.observation_space, observation, "the observation of reset")
        self._check_info(info)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Observation, reward, terminated, truncated and info of a step."""
        result = self.unchecked.step(actions)
        require(
            isinstance(result, tuple) and len(result) == 5,
            f"step returned {type(result).__name__}",
            "return (observation, reward, terminated, truncated, info)",
        )
        observation, reward, terminated, truncated, info = result
        _check_member(self.observation_space, observation, "the observation of step")
        self._check_array("the reward", reward, np.floating)
        require(bool(np.isfinite(reward).all()), "a reward is not finite", "fix the reward")
        self._check_array("terminated", terminated, np.bool_)
        self._check_array("truncated", truncated, np.bool_)
        self._check_info(info)
        # Copies: what comes back may be a buffer that the next step overwrites.
        return observation, reward.copy(), terminated.copy(), truncated.copy(), info

    def _check_array(self, name: str, value: Any, kind: Any) -> None:
        shape = (self.num_envs,)
        require(
            isinstance(value, np.ndarray)
            and value.shape == shape
            and np.issubdtype(value.dtype, kind),
            f"{name} is {_describe(value)}",
            f"it must be a NumPy array of shape {shape} and dtype {_kind_name(kind)}",
        )

    def _check_info(self, info: Any) -> None:
        require(isinstance(info, dict), f"info is {_describe(info)}", "return a dict")
        for key, value in info.items():
            if key.startswith("_"):
                require(key[1:] in info, f"info has {key!r} without {key[1:]!r}", "remove it")
                continue
            require(
                f"_{key}" in info,
                f"info has {key!r} without its mask '_{key}'",
                "add a boolean array that says which environments the key holds for",
            )
            self._check_array(f"info['_{key}']", info[f"_{key}"], np.bool_)
            rows = len(value) if isinstance(value, np.ndarray) and value.ndim else None
            require(
                isinstance(value, dict) or rows == self.num_envs,
                f"info[{key!r}] is {_describe(value)}",
                "it must be an array with a row for each environment, or a dict of such",
            )
        self._check_action_masks(info)

    def _check_action_masks(self, info: dict[str, Any]) -> None:
        """Flat masks of Discrete and MultiDiscrete actions: some choice in every dimension."""
        space = self.single_action_space
        if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            return
        sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec.ravel())
        method = getattr(self.unchecked.unwrapped, "action_masks", None)
        everywhere = np.ones(self.num_envs, bool)
        # Each with the environments that it speaks of.
        masks = (
            ("action_masks()", None if method is None else method(), everywhere),
            ("info['action_mask']", info.get("action_mask"), info.get("_action_mask")),
        )
        for name, mask, known in masks:
            if mask is None:
                continue
            shape = (self.num_envs, int(sizes.sum()))
            require(
                np.shape(mask) == shape,
                f"{name} is {_describe(mask)}",
                f"it must have the shape {shape}: one entry for each choice",
            )
            for part in np.split(np.asarray(mask, bool), np.cumsum(sizes)[:-1], axis=1):
                require(
                    bool(part[known].any(axis=1).all()),
                    f"{name} leaves an environment no choice",
                    "allow at least one choice in every dimension of the action",
                )

    def check_final(self, done: np.ndarray, info: dict[str, Any]) -> None:
        """Require ``final_obs`` and ``final_info`` where episodes ended, in mode SAME_STEP alone."""
        ended = done if self.mode is AutoresetMode.SAME_STEP else np.zeros_like(done)
        for key in ("final_obs", "final_info"):
            given = info.get(f"_{key}", np.zeros_like(done))
            require(
                bool((given == ended).all()),
                f"info has {key!r} for the environments {np.flatnonzero(given).tolist()} where "
                f"those that need it are {np.flatnonzero(ended).tolist()} ({self.mode})",
                "set it in mode SAME_STEP, where an episode ended and nowhere else",
            )
        final = self.rows(info["final_obs"]) if ended.any() else []
        for i in np.flatnonzero(ended):
            require(
                self.single_observation_space.contains(final[i]),
                f"final_obs of environment {i} is not in {self.single_observation_space}",
                "put the last observation of the episode there",
            )

    def rows(self, observation: Any) -> list[Any]:
        """The observations of the single environments."""
        if isinstance(observation, np.ndarray):
            return list(observation)
        return list(iterate(self.observation_space, observation))


def _check_member(space: spaces.Space[Any], value: Any, what: str) -> None:
    """Require that a batched value is a member of its space, the exact dtype included."""
    if isinstance(space, spaces.Dict) and isinstance(value, dict):
        for key in space.spaces.keys() & value.keys():
            _check_member(space[key], value[key], f"{what}[{key!r}]")
    elif isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        require(
            isinstance(value, np.ndarray)
            and value.shape == space.shape
            and value.dtype == space.dtype,
            f"{what} is {_describe(value)}",
            f"it must be a NumPy array of shape {space.shape} and dtype {space.dtype}",
        )
        if isinstance(space, spaces.Box):
            outside = np.argwhere(~((value >= space.low) & (value <= space.high)))
            require(
                outside.size == 0,
                f"entry {tuple(map(int, outside[0])) if outside.size else ()} of {what} is outside "
                "its bounds",
                "fix the observation, or widen the space",
            )
    require(space.contains(value), f"{what} is not in its space", "fix it, or the space")


def _kind_name(kind: Any) -> str:
    return {np.floating: "float", np.bool_: "bool"}[kind]


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"of type {type(value).__name__}"
