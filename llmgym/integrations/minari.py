"""Rollouts of a policy as a Minari data set, for learning offline.

    export("llmgym/latency/sarathi-v0", policy="sarathi", scenario="latency", load=0.8,
           action="budget", action_settings={"base": "sarathi"})

Needs the extra ``minari``: ``pip install llmgym[minari]``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.decisions import decide, keys_of, start
from llmgym.core.checks import check_seed
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.precision import in_32_bits
from llmgym.engine.fill import feasible
from llmgym.envs.functional import FunctionalEngine
from llmgym.evaluation.policies import PolicyLike, resolve

Act = Callable[[np.ndarray, np.ndarray], Any]

MOST_CHOICES = 1024
"""Most choices of an action encoding among which the one that a policy means is looked for."""


@in_32_bits
def export(
    dataset_id: str,
    policy: PolicyLike | None = None,
    *,
    act: Act | None = None,
    episodes: int = 10,
    seed: int = 0,
    **settings: Any,
) -> Any:
    """Play episodes and keep them as a Minari data set, in Minari's own folder.

    A data set holds actions, so the environment's action encoding must be able to say what the policy
    does. ``act`` chooses actions itself and fits any encoding. A policy composes batches: in every
    state the choice is looked for whose batch is the same, token for token. ``tiles`` says all that
    a policy of tiles does; ``budget`` with the policy as its ``base`` says whatever the policy does.

    Args:
        dataset_id: as Minari names it: "llmgym/latency/sarathi-v0".
        policy: a policy of llmgym, as ``simulate`` takes it.
        act: in its place, a function of observation and flat action mask that returns an action, say
            ``lambda seen, mask: model.predict(seen, action_masks=mask)[0]``.
        episodes: how many.
        seed: of the first; the next ones count on.
        settings: those of ``gym.make("llmgym/Engine-v0")``.

    Returns:
        The ``minari.MinariDataset``. Where all settings are plain values it knows its environment:
        ``dataset.recover_environment()``.

    Raises:
        LLMGymError: the encoding cannot say what the policy does.
    """
    if (policy is None) == (act is None):
        raise LLMGymError("Give either policy= or act=.")
    check_number("episodes", episodes, low=1, integer=True)
    check_seed(seed)
    minari = _minari()
    env = gym.make("llmgym/Engine-v0", **settings)
    core: FunctionalEngine = env.unwrapped.core  # type: ignore[attr-defined]
    player = _Chooser(core, policy) if act is None else _Actor(act)  # type: ignore[arg-type]
    buffers = [
        minari.data_collector.EpisodeBuffer(id=n, seed=seed + n, **_episode(env, player, seed + n))
        for n in range(episodes)
    ]
    known = {"env": env} if _plain(settings) else {}
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        observation_space=core.observation_space,
        action_space=core.action_space,
        algorithm_name=policy if isinstance(policy, str) else None,
        requirements=[f"llmgym=={version('llmgym')}"],
        **known,
    )


def _minari() -> Any:
    """The package, or one line that says how to get it."""
    try:
        import minari
        import minari.data_collector
    except ImportError as error:
        raise LLMGymError("Data sets need Minari: pip install llmgym[minari]") from error
    return minari


def _episode(env: gym.Env[Any, Any], player: Any, seed: int) -> dict[str, Any]:
    """One episode, played to its end, as Minari's EpisodeBuffer takes it."""
    seen, _ = env.reset(seed=seed)
    one: Any = env.unwrapped
    observations, actions, rewards, ended = [seen], [], [], False
    player.begin(env)
    while not ended:
        action = player.choose(env, seen, one.action_masks())
        seen, reward, _, ended, _ = env.step(action)
        observations.append(seen)
        actions.append(action)
        rewards.append(reward)
    return {
        "observations": np.array(observations),
        "actions": np.array(actions),
        "rewards": rewards,
        "terminations": [False] * len(rewards),
        "truncations": [False] * (len(rewards) - 1) + [True],
    }


class _Actor:
    """A function of the observation and the mask."""

    def __init__(self, act: Act) -> None:
        self.act = act

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """It remembers nothing."""

    def choose(self, env: gym.Env[Any, Any], seen: np.ndarray, mask: np.ndarray) -> Any:
        """What it answers."""
        return self.act(seen, mask)


class _Chooser:
    """A policy of llmgym, in each state as the action that stands for the same batch."""

    def __init__(self, core: FunctionalEngine, policy: PolicyLike) -> None:
        self.core, self.policy = core, resolve(policy)
        self.choices = _choices(core)
        self._find = jax.jit(self._look)
        self.memory: Any = None

    def _look(self, state: Any, memory: Any, params: Any) -> tuple[jax.Array, Any]:
        view = self.core.view(state, params)
        wanted, memory = decide(self.policy, keys_of(view), view, memory)
        wanted = feasible(view, wanted)

        def same(action: jax.Array) -> jax.Array:
            batch = feasible(view, self.core.expand(state, action, params))
            found = jnp.all(batch.tokens == wanted.tokens)
            if wanted.preempt is not None or batch.preempt is not None:
                none = jnp.zeros(view.prefill.shape, bool)
                gone = [none if b.preempt is None else b.preempt for b in (batch, wanted)]
                found &= jnp.all(gone[0] == gone[1])
            return found

        # The last of those that are the same: where nothing limits, a full budget.
        found = jax.vmap(same)(jnp.asarray(self.choices, jnp.int32))
        last = len(self.choices) - 1 - jnp.argmax(found[::-1])
        return jnp.where(jnp.any(found), last, -1), memory

    def begin(self, env: gym.Env[Any, Any]) -> None:
        """An episode begins with no memory of the last one."""
        state = env.unwrapped.state  # type: ignore[attr-defined]
        self.memory = start(self.policy, self.core.view(state))

    def choose(self, env: gym.Env[Any, Any], seen: np.ndarray, mask: np.ndarray) -> Any:
        """The action, or one clear line where there is none."""
        state = env.unwrapped.state  # type: ignore[attr-defined]
        found, self.memory = self._find(state, self.memory, self.core.params)
        if int(found) < 0:
            name = self.core.encoding.name
            raise LLMGymError(
                f"action={name!r} has no choice whose batch is that of the policy, at decision "
                f"{int(state.engine.steps)}. Use action='budget' with "
                "action_settings={'base': the policy}, or act=."
            )
        return self.choices[int(found)]


def _choices(core: FunctionalEngine) -> np.ndarray:
    """All actions of an encoding, in a row."""
    space = core.action_space
    if isinstance(space, gym.spaces.Discrete):
        return np.arange(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete) and np.prod(space.nvec, dtype=float) <= (
        MOST_CHOICES
    ):
        return np.array(list(itertools.product(*(range(n) for n in space.nvec))))
    raise LLMGymError(
        f"The action space {space} has too many choices to find the one that a policy means: use "
        "action='tiles', 'split' or 'budget', or act=."
    )


def _plain(settings: dict[str, Any]) -> bool:
    """Whether settings can be written down, so that the data set can make its environment again."""
    try:
        json.dumps(settings)
    except TypeError:
        return False
    return True


__all__ = ["export"]
