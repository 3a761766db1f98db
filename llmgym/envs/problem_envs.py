"""The Gymnasium environments of the problems with names."""

from __future__ import annotations

from typing import Any

from llmgym.envs.gym_env import EngineEnv, NetworkEnv
from llmgym.envs.problems import settings_of
from llmgym.envs.vector_env import EngineVectorEnv, NetworkVectorEnv


class ProblemEnv(EngineEnv):
    """A problem of one engine; see EngineEnv."""

    def __init__(self, problem: str, render_mode: str | None = None, **given: Any) -> None:
        super().__init__(render_mode, **settings_of(problem, given))


class NetworkProblemEnv(NetworkEnv):
    """A problem of a network; see NetworkEnv."""

    def __init__(self, problem: str, render_mode: str | None = None, **given: Any) -> None:
        super().__init__(render_mode, **settings_of(problem, given))


OF_VECTORS = ("num_envs", "render_mode", "autoreset_mode", "max_episode_steps")
"""What may be chosen of vector environments."""


class ProblemVectorEnv(EngineVectorEnv):
    """A problem of one engine, many times; see EngineVectorEnv."""

    def __init__(self, problem: str, **given: Any) -> None:
        own = {name: given.pop(name) for name in OF_VECTORS if name in given}
        super().__init__(**own, **settings_of(problem, given))


class NetworkProblemVectorEnv(NetworkVectorEnv):
    """A problem of a network, many times; see NetworkVectorEnv."""

    def __init__(self, problem: str, **given: Any) -> None:
        own = {name: given.pop(name) for name in OF_VECTORS if name in given}
        super().__init__(**own, **settings_of(problem, given))
