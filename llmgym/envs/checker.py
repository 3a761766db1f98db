"""``check_vector_env``: does a Gymnasium vector environment keep the rules of the interface?

Gymnasium checks single environments (``gymnasium.utils.env_checker.check_env``); this is the same
for any ``gymnasium.vector.VectorEnv``.
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from llmgym.core.checks import check_seed
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.user_code import warn
from llmgym.envs.checked import CheckedEnv, require

START_SAMPLES = 128
"""First observations that are compared before a start counts as always the same."""


class Moment(NamedTuple):
    """What an environment returned at one step; at the start only the observation is real."""

    observation: list[Any]  # one for each environment
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    info: dict[str, Any]
    restarted: list[Any] | None = None  # observations after a partial reset, in mode DISABLED

    @property
    def done(self) -> np.ndarray:
        """Which episodes ended."""
        return self.terminated | self.truncated


def check_vector_env(env: VectorEnv[Any, Any, Any], steps: int = 200, seed: int = 0) -> None:
    """Check any Gymnasium vector environment; returns None if no rule is found broken.

    - Spaces: the batched spaces are ``num_envs`` copies of the single ones.
    - reset and step: shapes and dtypes, observations inside the space, float rewards, boolean
      flags, a boolean mask ``_key`` for each ``key`` of info.
    - Autoreset as ``metadata["autoreset_mode"]`` says. SAME_STEP: ``final_obs`` and ``final_info``
      where an episode ended and nowhere else, and the observation is that of a reset. NEXT_STEP:
      the next step ignores its action and gives reward 0 and the observation of a reset. DISABLED:
      ``reset(options={"reset_mask": ...})`` resets these environments and leaves the others alone.
    - Seeding: the same seed repeats everything; another seed, and another environment, does not
      (unless nothing is random).
    - Actions of a wrong shape raise. Action masks (``info["action_mask"]``, ``action_masks()``)
      leave a choice.

    Args:
        env: the environment; it is reset and stepped, and has to be reset before further use.
        steps: length of each of the four runs. Episodes must end within it for autoreset to be
            checked; a warning says where none did.
        seed: of the environment; it and the next one are used.

    Raises:
        LLMGymError: a rule is broken; the message says which and how to fix it.
    """
    steps, seed = check_number("steps", steps, low=1, integer=True), check_seed(seed, 2**63 - 2)
    if not isinstance(env, VectorEnv):
        raise LLMGymError(f"check_vector_env takes a gymnasium.vector.VectorEnv, got {shown(env)}.")
    checked = CheckedEnv(env)
    run = _run(checked, seed, steps)
    _check_seeding(checked, run, seed, steps)
    _check_autoreset(checked, run, _constant_start(checked, seed))
    if checked.mode is AutoresetMode.NEXT_STEP:
        _check_action_ignored(checked, run, seed)
    _check_wrong_shape(checked, seed)
    if not any(moment.done.any() for moment in run):
        warn(
            f"No episode ended within {steps} steps, so autoreset was not checked: "
            "use more steps or shorter episodes."
        )


def _run(
    env: CheckedEnv, seed: int | None, steps: int, alike: bool = False, last: Any = None
) -> list[Moment]:
    """A run under random actions, always the same ones; ``alike``: one action for all environments.

    ``last``: a function from the actions of the last step to those used instead.
    """
    space = deepcopy(env.single_action_space)
    space.seed(0)
    observation, info = env.reset(seed)
    nothing = np.zeros(env.num_envs)
    none = nothing.astype(bool)
    run = [deepcopy(Moment(env.rows(observation), nothing, none, none, info))]
    mask = _action_mask(info, None)
    for step in range(steps):
        if env.mode is AutoresetMode.DISABLED and run[-1].done.any():
            rows, info = _reset_some(env, run[-1])
            run[-1] = run[-1]._replace(restarted=rows)
            mask = _action_mask(info, mask)
        actions = _random_actions(env, space, mask, alike)
        if last is not None and step == steps - 1:
            actions = last(actions)
        empty: Any = create_empty_array(space, env.num_envs)
        batch = concatenate(space, actions, empty)
        observation, reward, terminated, truncated, info = env.step(batch)
        # A copy: what came back may be a buffer that the next step overwrites.
        run.append(deepcopy(Moment(env.rows(observation), reward, terminated, truncated, info)))
        mask = _action_mask(info, mask)
    return run


def _action_mask(info: dict[str, Any], before: np.ndarray | None) -> np.ndarray | None:
    """The action masks of ``info``, and those known before where it has none."""
    if "action_mask" not in info or before is None:
        return info.get("action_mask", before)
    return np.where(info["_action_mask"][:, None], info["action_mask"], before)


def _random_actions(
    env: CheckedEnv, space: spaces.Space[Any], mask: np.ndarray | None, alike: bool
) -> list[Any]:
    """An action for each environment, inside its mask where there is one."""
    if mask is None or not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        masks: list[Any] = [None] * env.num_envs
    else:
        if alike:
            mask = np.repeat(mask.all(axis=0, keepdims=True), env.num_envs, axis=0)
        masks = list(np.asarray(mask, np.int8))
        if isinstance(space, spaces.MultiDiscrete):
            ends = np.cumsum(space.nvec)[:-1]
            masks = [tuple(np.split(row, ends)) for row in masks]
    if alike:
        return [space.sample(masks[0])] * env.num_envs
    return [space.sample(row) for row in masks]


def _reset_some(env: CheckedEnv, before: Moment) -> tuple[list[Any], dict[str, Any]]:
    """Reset the environments whose episodes ended (DISABLED) and check that the others stay."""
    done = before.done
    observation, info = env.reset(None, {"reset_mask": done.copy()})
    rows = deepcopy(env.rows(observation))
    for i in np.flatnonzero(~done):
        require(
            _equal(rows[i], before.observation[i]),
            f"reset with a reset_mask changed environment {i}, which is not in the mask",
            "reset the environments of the mask only",
        )
    return rows, info


def _equal(one: Any, other: Any) -> bool:
    return data_equivalence(one, other, exact=True)


def _same_run(one: list[Moment], other: list[Moment]) -> bool:
    return all(
        _equal(a.observation, b.observation)
        and _equal(a.reward, b.reward)
        and _equal(a.terminated, b.terminated)
        and _equal(a.truncated, b.truncated)
        for a, b in zip(one, other, strict=True)
    )


def _check_seeding(env: CheckedEnv, run: list[Moment], seed: int, steps: int) -> None:
    require(
        _same_run(run, _run(env, seed, steps)),
        f"two runs from reset(seed={seed}) with the same actions differ",
        "draw all randomness from generators that reset(seed=...) seeds",
    )
    alike, other = (_run(env, s, steps, alike=True) for s in (seed, seed + 1))
    seeds_differ = not _same_run(alike, other)
    environments_differ = any(
        not _equal(row, moment.observation[0]) or moment.reward[i] != moment.reward[0]
        for moment in alike
        for i, row in enumerate(moment.observation)
    )
    require(
        seeds_differ or not environments_differ,
        f"runs from reset(seed={seed}) and reset(seed={seed + 1}) are the same",
        "let reset use its seed",
    )
    require(
        environments_differ or not seeds_differ or env.num_envs == 1,
        "with the same actions all environments behave the same: they share their randomness",
        "give every environment a random stream of its own",
    )


def _constant_start(env: CheckedEnv, seed: int) -> Any:
    """The first observation, if it is the same in every episode; else None."""
    first = None
    for n in range(-(-START_SAMPLES // env.num_envs)):
        rows = env.rows(env.reset(seed + n)[0])
        first = deepcopy(rows[0]) if first is None else first
        if not all(_equal(row, first) for row in rows):
            return None
    return first


def _check_autoreset(env: CheckedEnv, run: list[Moment], start: Any) -> None:
    restarts: list[tuple[Any, Any]] = []  # first observation of an episode, last of the one before
    for before, moment in itertools.pairwise(run):
        env.check_final(moment.done, moment.info)
        ended, new, old = before.done, moment.observation, before.observation
        if env.mode is AutoresetMode.SAME_STEP:
            ended = moment.done
            old = env.rows(moment.info["final_obs"]) if ended.any() else []
        elif env.mode is AutoresetMode.DISABLED:
            new = before.restarted or []
        else:
            require(
                not (moment.reward[ended].any() or moment.done[ended].any()),
                "the step after the end of an episode gives a reward or ends the next (NEXT_STEP)",
                "only reset in that step: reward 0, not terminated, not truncated",
            )
        restarts += [(new[i], old[i]) for i in np.flatnonzero(ended)]
    if start is not None:
        is_fresh = all(_equal(new, start) for new, _ in restarts)
    else:
        is_fresh = not restarts or not all(_equal(new, old) for new, old in restarts)
    require(
        is_fresh,
        f"the observation after the end of an episode is not that of a reset ({env.mode})",
        "reset the environment and return the first observation of the new episode",
    )


def _check_action_ignored(env: CheckedEnv, run: list[Moment], seed: int) -> None:
    """NEXT_STEP: repeat the run up to the first reset, with other actions where it takes place."""
    ends = [n for n, moment in enumerate(run[:-1]) if moment.done.any()]
    if not ends:
        return
    done = run[ends[0]].done
    space = deepcopy(env.single_action_space)

    def others(actions: list[Any]) -> list[Any]:
        drawn = [[space.sample() for _ in range(10)] for _ in actions]
        return [
            next((d for d in drawn[i] if not _equal(d, action)), action) if done[i] else action
            for i, action in enumerate(actions)
        ]

    again = _run(env, seed, ends[0] + 1, last=others)
    for i in np.flatnonzero(done):
        require(
            _equal(again[-1].observation[i], run[ends[0] + 1].observation[i]),
            f"the step that resets environment {i} depends on its action (NEXT_STEP)",
            "ignore the action in the step after the end of an episode",
        )


def _check_wrong_shape(env: CheckedEnv, seed: int) -> None:
    # One action for several environments is the fault that NumPy broadcasts away.
    count = 1 if env.num_envs > 1 else 2
    actions = batch_space(env.single_action_space, count).sample()
    env.reset(seed)
    try:
        env.unchecked.step(actions)
    except Exception:  # any error will do
        return
    require(
        False,
        f"step accepts actions for {count} where there are {env.num_envs} environments",
        "raise an error unless the actions have the shape of action_space",
    )
