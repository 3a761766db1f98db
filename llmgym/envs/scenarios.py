"""The scenarios that an environment plays, one or several, each in its functional form."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np

from llmgym.core.checks import check_settings
from llmgym.core.errors import LLMGymError
from llmgym.envs.conditions import Conditions
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.registration import array_form


class Scenarios:
    """Functional environments with one action space and observations of one shape.

    Args:
        env_id: of the environment.
        settings: as ``gym.make`` takes them; ``scenario`` may be a list.
        num_envs: environments, dealt out in turn; None: one, which changes its scenario.

    Raises LLMGymError where the scenarios do not go together.
    """

    def __init__(
        self, env_id: str, settings: Mapping[str, Any], num_envs: int | None = None
    ) -> None:
        self._env_id, self._settings, self._num_envs = env_id, dict(settings), num_envs
        given = self._settings.pop("scenario", None)
        several = list(given) if isinstance(given, (list, tuple)) else [given]
        if not several or (num_envs is not None and len(several) > num_envs):
            raise LLMGymError(
                f"scenario is a list of {len(several)} for {num_envs or 1} environments: give each "
                "environment one at most, and at least one in all."
            )
        count = num_envs or len(several)
        self._turns = [range(n, count, len(several)) for n in range(len(several))]
        self.cores = [self._made(n, scenario) for n, scenario in enumerate(several)]
        for core in self.cores[1:]:
            self._check(core)
        self.observation_space = self._widest()

    @cached_property
    def members(self) -> list[np.ndarray]:
        """The environments of each scenario; made when asked for, as too many are refused before."""
        return [np.arange(t.start, t.stop, t.step) for t in self._turns]

    def _made(self, n: int, scenario: Any) -> FunctionalEngine:
        settings = self._settings
        if "load" in settings:
            settings = settings | {"load": self._own_load(settings["load"], n)}
        if self._num_envs is not None:
            settings = settings | {"num_envs": len(self._turns[n])}
        return array_form(self._env_id, scenario=scenario, **settings)

    def _check(self, core: FunctionalEngine) -> None:
        """Refuse an environment with other spaces than the first."""
        first = self.cores[0]
        same = core.action_space == first.action_space
        if not same or core.observation_space.shape != first.observation_space.shape:
            raise LLMGymError(
                f"Scenarios of one environment need the same actions and entries of observations; "
                f"{first.scenario.name!r} and {core.scenario.name!r} have {first.action_space} and "
                f"{core.action_space}, {first.observation_space.shape} and "
                f"{core.observation_space.shape}. Make an environment for each."
            )

    def _widest(self) -> gym.spaces.Box:
        """The space that holds the observations of all."""
        spaces = [core.observation_space for core in self.cores]
        if len(spaces) == 1:
            return spaces[0]
        low, high = (np.array([getattr(s, side) for s in spaces]) for side in ("low", "high"))
        return gym.spaces.Box(low.min(axis=0), high.max(axis=0), dtype=np.float32)

    def pairs(self) -> list[tuple[FunctionalEngine, np.ndarray]]:
        """Each functional environment with the numbers of the environments that play it."""
        return list(zip(self.cores, self.members, strict=True))

    @property
    def load(self) -> Any:
        """The load of episodes to come, as it was given."""
        return self._settings.get("load")

    def set_load(self, load: Any) -> None:
        """The load of episodes to come, of all scenarios."""
        for n, core in enumerate(self.cores):
            core.set_load(self._own_load(load, n))
        self._settings["load"] = load

    def _own_load(self, load: Any, n: int) -> Any:
        """The part of a load that is for scenario ``n``: of a list that of its environments."""
        listed = load.ndim == 1 if isinstance(load, np.ndarray) else isinstance(load, list)
        if listed and self._num_envs is not None and len(load) == self._num_envs:
            return [load[i] for i in self._turns[n]]
        return load

    def conditions(self, options: Mapping[str, Any]) -> list[Conditions]:
        """The conditions of each scenario's environments under options of a reset."""
        if not options:
            return [core.conditions for core in self.cores]
        found = []
        for n, core in enumerate(self.cores):
            own = {k: self._own_load(v, n) if k == "load" else v for k, v in options.items()}
            found.append(core.conditions_for(own))
        return found

    def replace_all(self, scenario: Any) -> None:
        """Play another scenario in all environments, from the next episode on."""
        self.cores = [self.another(scenario, n) for n in range(len(self.cores))]

    def chosen(
        self, options: Mapping[str, Any] | None, number: int
    ) -> tuple[FunctionalEngine, Conditions]:
        """The environment and the conditions of one episode.

        Args:
            options: of the reset; a ``scenario`` among them is played in this episode.
            number: random; among several scenarios it draws one.
        """
        given = check_settings("options", options)
        if "scenario" not in given:
            core = self.cores[number % len(self.cores)]
        else:
            core = self.another(given.pop("scenario"))
        return core, core.conditions_for(given) if given else core.conditions

    def another(self, scenario: Any, n: int = 0) -> FunctionalEngine:
        """The environment of another scenario, in place of number ``n``; it must have the same spaces."""
        core = self._made(n, scenario)
        self._check(core)
        wide, new = self.observation_space, core.observation_space
        if (new.high > wide.high).any() or (new.low < wide.low).any():
            raise LLMGymError(
                f"Observations of {core.scenario.name!r} may leave the bounds of this environment; name it "
                "in the list scenario=[...] when the environment is made."
            )
        return core
