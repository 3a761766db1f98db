"""``gym.make_vec("llmgym/Engine-v0")``: many engines as compiled JAX batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmgym.core.checks import check_name, check_seed, check_settings, check_size
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.precision import in_32_bits
from llmgym.envs.interface.sound import check_rewards, sound_actions, tell_of_drops
from llmgym.envs.rendering.network import NetworkRenderer
from llmgym.envs.rendering.renderer import Renderer
from llmgym.envs.scenarios import Scenarios
from llmgym.envs.side_by_side import SideBySide

RENDERED = 4
"""How many environments ``render`` shows, the first ones."""

RENDER_MODES = ("rgb_array",)


class EngineVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` engines, stepped together. NumPy in, NumPy out; environments stand first.

    Every environment keeps the rules of Gymnasium for its autoreset mode. SAME_STEP, the default: where an
    episode ends, the observation returned is the first of the next, and ``info["final_obs"]`` and
    ``info["final_info"]`` hold the last of the old, with masks ``_final_obs`` and ``_final_info``. NEXT_STEP:
    the step after the last ignores its action, and gives reward 0 and the first observation of the next
    episode. DISABLED: ``reset(options={"reset_mask": mask})`` begins new ones.
    ``info`` describes the step just made, except for ``action_mask``, (num_envs, choices) int8, which belongs
    to the observation; every key has its mask ``_key``.

    Args:
        num_envs: how many.
        render_mode: "rgb_array": ``render`` gives images of the first few environments.
        autoreset_mode: a gymnasium.vector.AutoresetMode, or its value.
        max_episode_steps: Gymnasium's name for ``max_steps``.
        settings: those of llmgym.envs.functional.FunctionalEngine. ``scenario`` may be a list: environment i
            plays number i modulo its length. Those of one form share a compiled program.
    """

    metadata = {  # noqa: RUF012
        "render_modes": list(RENDER_MODES),
        "render_fps": 8,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    env_id: ClassVar[str] = "llmgym/Engine-v0"

    @in_32_bits
    def __init__(
        self,
        num_envs: int = 1,
        render_mode: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        num_envs = check_number("num_envs", num_envs, low=1, integer=True)
        if render_mode is not None:
            check_name("render mode", render_mode, RENDER_MODES)
        self.autoreset_mode = _mode(autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": self.autoreset_mode}
        if max_episode_steps is not None:
            settings["max_steps"] = max_episode_steps
        self._scenarios = Scenarios(self.env_id, settings, num_envs)
        self.core = self._scenarios.cores[0]
        self.num_envs, self.render_mode = num_envs, render_mode
        self.single_action_space = self.core.action_space
        self.single_observation_space = self._scenarios.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._groups = self._grouped()
        self._options: dict[str, Any] = {}
        self._conditions = self._scenarios.conditions({})
        self._done = np.zeros(num_envs, bool)
        self._action_mask: np.ndarray | None = None
        self._renderers: list[Any] = []
        self._told_of_drops = False
        if self.core.reward_is_own:
            self._try_rewards()

    def _try_rewards(self) -> None:
        """Refuse a user's reward that is not finite in the first step of empty engines."""
        space = self.single_action_space
        kind = np.float32 if isinstance(space, gym.spaces.Box) else np.int32
        for group, (_, members), conditions in zip(
            self._grouped(), self._scenarios.pairs(), self._conditions, strict=True
        ):
            group.reset(np.arange(len(members)), conditions, np.ones(len(members), bool))
            assert space.shape is not None
            zeros = np.zeros((len(members), *space.shape), kind)
            check_rewards(group.step(conditions, zeros, None)["reward"])

    def _grouped(self) -> list[SideBySide]:
        same_step = self.autoreset_mode is AutoresetMode.SAME_STEP
        return [SideBySide(core, len(m), same_step) for core, m in self._scenarios.pairs()]

    @property
    def load(self) -> Any:
        """The load of episodes to come, as the argument; may be set at any time."""
        return self._scenarios.load

    @load.setter
    def load(self, load: Any) -> None:
        self._scenarios.set_load(load)
        self._options.pop("load", None)
        self._conditions = self._scenarios.conditions(self._options)

    @in_32_bits
    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every environment, or in some.

        Args:
            seed: one number, or one for each environment.
            options: for all episodes until the next reset, in place of the settings: load, start,
                backlog_tokens, window_s, offset_s, scenario (see FunctionalEngine). ``reset_mask``, bool
                (num_envs,): the environments to reset; the others stay as they are.
        """
        given = check_settings("options", options)
        mask = given.pop("reset_mask", None)
        some, whole = self._reset_mask(mask), mask is None or self._action_mask is None
        if "scenario" in given and not whole:
            raise LLMGymError("A scenario is changed in all environments: leave out reset_mask.")
        numbers = self._numbers(seed, whole)
        if "scenario" in given:
            self._scenarios.replace_all(given.pop("scenario"))
            self.core = self._scenarios.cores[0]
            self._groups = self._grouped()
        self._options = given
        self._conditions = self._scenarios.conditions(given)
        masks, observations = [], []
        for group, (_, members), conditions in zip(
            self._groups, self._scenarios.pairs(), self._conditions, strict=True
        ):
            fresh = None if numbers is None else numbers[members]
            seen, mask = group.reset(fresh, conditions, some[members])
            observations.append(seen)
            masks.append(mask)
        self._action_mask = self._scattered(masks)
        self._done = self._done & ~some
        self._begin_rendering()
        info = {"action_mask": self._action_mask.astype(np.int8), "_action_mask": some}
        return self._scattered(observations), info

    def _reset_mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        check_size("reset_mask", mask)
        try:
            found = np.asarray(mask)
        except Exception:  # lists of several lengths, and what cannot be an array at all
            found = np.empty(0)
        if found.shape != (self.num_envs,) or found.dtype != bool or not found.any():
            raise LLMGymError(
                f"reset_mask must be a bool array of shape ({self.num_envs},) with a True in it, got "
                f"{shown(mask)}."
            )
        if self._action_mask is None and not found.all():
            raise LLMGymError("Call reset() first: the other environments have no state yet.")
        return found

    def _numbers(self, seed: Any, of_all: bool) -> np.ndarray | None:
        """A random number for each environment; None where a partial reset goes on with its own."""
        if isinstance(seed, (list, tuple)) or (isinstance(seed, np.ndarray) and seed.ndim):
            return self._listed_seeds(list(seed))
        if seed is None and not of_all:  # each goes on with its own stream
            return None
        super().reset(seed=None if seed is None else check_seed(seed, 2**63 - 1))
        return self.np_random.integers(2**31, size=self.num_envs)

    def _listed_seeds(self, seeds: list[int | None]) -> np.ndarray:
        if len(seeds) != self.num_envs:
            raise LLMGymError(f"{len(seeds)} seeds for {self.num_envs} environments.")
        given = [None if seed is None else check_seed(seed, 2**63 - 1) for seed in seeds]
        generators = (gym.utils.seeding.np_random(s)[0] for s in given)
        return np.array([g.integers(2**31) for g in generators])

    def _scattered(self, of_groups: list[np.ndarray]) -> np.ndarray:
        """Rows of the groups, each where its environment stands."""
        if len(of_groups) == 1:
            return of_groups[0]
        whole = np.empty((self.num_envs, *of_groups[0].shape[1:]), of_groups[0].dtype)
        for (_, members), rows in zip(self._scenarios.pairs(), of_groups, strict=True):
            whole[members] = rows
        return whole

    @in_32_bits
    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run one batch in every engine."""
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: the environments have no state yet.")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            raise LLMGymError(
                f"Episodes of environments {np.flatnonzero(self._done)[:10].tolist()} are over: call "
                'reset(options={"reset_mask": terminated | truncated}) first.'
            )
        assert self.action_space.shape is not None
        actions = sound_actions(actions, self.single_action_space, self.action_space.shape)
        waiting = self._done if self.autoreset_mode is AutoresetMode.NEXT_STEP else None
        found = [
            group.step(conditions, actions[members], None if waiting is None else waiting[members])
            for group, (_, members), conditions in zip(
                self._groups, self._scenarios.pairs(), self._conditions, strict=True
            )
        ]
        result = found[0]
        if len(found) > 1:
            result = {k: self._scattered([one[k] for one in found]) for k in found[0]}
        self._action_mask = result.pop("action_mask")
        observation, final = result.pop("observation"), result.pop("final_obs")
        final_mask = result.pop("final_mask")
        rewards, done = result.pop("reward"), result.pop("truncated")
        check_rewards(rewards)
        self._done = done.copy()
        if not self._told_of_drops:
            slots = self.core.scenario.slots
            self._told_of_drops = tell_of_drops(result["dropped"], result["load"], slots)
        everywhere = np.ones(self.num_envs, bool) if waiting is None else ~waiting
        facts = result
        info = _masked(facts, everywhere)
        info |= {
            "action_mask": self._action_mask.astype(np.int8),
            "_action_mask": np.ones(self.num_envs, bool),
        }
        if self.autoreset_mode is AutoresetMode.SAME_STEP and done.any():
            last = facts | {"action_mask": final_mask.astype(np.int8)}
            info |= _masked({"final_obs": final, "final_info": _masked(last, done)}, done)
        self._record(facts)
        return observation, rewards, np.zeros(self.num_envs, bool), done, info

    def action_masks(self) -> np.ndarray:
        """Feasible choices of every environment, bool (num_envs, choices)."""
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: there is no state to mask actions in.")
        return self._action_mask

    def _begin_rendering(self) -> None:
        if self.render_mode is None:
            return
        cores = {int(i): core for core, members in self._scenarios.pairs() for i in members}
        shown_ones = range(min(RENDERED, self.num_envs))
        self._renderers = [self._make_renderer(cores[i]) for i in shown_ones]

    def _make_renderer(self, core: Any) -> Any:
        return Renderer(core, "rgb_array")

    def _record(self, facts: Mapping[str, np.ndarray]) -> None:
        for i, renderer in enumerate(self._renderers):
            renderer.record({name: value[i] for name, value in facts.items()})
            if self._done[i]:
                renderer.reset()

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Images (height, width, 3) uint8 of the first few environments; None without a render mode."""
        if self.render_mode is None:
            return None
        if self._action_mask is None:
            raise LLMGymError("Call reset() first: the environments have no state yet.")
        states = {}
        for group, (_, members) in zip(self._groups, self._scenarios.pairs(), strict=True):
            for row, i in enumerate(members[members < RENDERED]):
                states[int(i)] = group.state_of(row)
        return tuple(r.render(states[i]) for i, r in enumerate(self._renderers))


class NetworkVectorEnv(EngineVectorEnv):
    """``num_envs`` networks of engines, stepped together; see EngineVectorEnv and NetworkEnv."""

    env_id: ClassVar[str] = "llmgym/Network-v0"

    def _make_renderer(self, core: Any) -> Any:
        return NetworkRenderer(core, "rgb_array")


def _mode(mode: Any) -> AutoresetMode:
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise LLMGymError(
            f"autoreset_mode must be one of {[m.value for m in AutoresetMode]}, got {shown(mode)}."
        ) from None


def _masked(values: dict[str, Any], where: np.ndarray) -> dict[str, Any]:
    """Vector info: every value with its mask ``_key`` of the environments that it holds for, one for all."""
    return values | {f"_{name}": where for name in values}
