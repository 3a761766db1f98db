"""Data sets of rollouts: actions say exactly what the policy did, or the export is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import settings

from llmgym import LLMGymError, View, baselines
from llmgym.integrations.minari import export

pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))


def test_a_policy_is_its_own_budget() -> None:
    given = settings("budget") | {"action_settings": {"base": "sarathi"}, "max_steps": 12}
    dataset = export("llmgym/sarathi-v0", policy="sarathi", episodes=2, seed=3, **given)
    assert (dataset.total_episodes, dataset.total_steps) == (2, 24)
    assert dataset.storage.metadata["algorithm_name"] == "sarathi"
    # The actions, played again, give the same episode.
    env = gym.make("llmgym/Engine-v0", **given)
    for number, episode in enumerate(dataset):
        seen = [env.reset(seed=3 + number)[0]]
        steps = [env.step(action) for action in episode.actions]
        seen += [step[0] for step in steps]
        np.testing.assert_array_equal(episode.observations, seen)
        np.testing.assert_array_equal(episode.rewards, [step[1] for step in steps])
        assert episode.truncations.tolist() == [False] * 11 + [True]
        assert not episode.terminations.any()


def test_a_function_of_the_observation_chooses_actions() -> None:
    given = settings("tiles") | {"max_steps": 5}
    dataset = export(
        "llmgym/most-v0",
        act=lambda seen, mask: np.flatnonzero(mask)[-1],
        episodes=1,
        **given,
    )
    env = gym.make("llmgym/Engine-v0", **given)
    _, info = env.reset(seed=0)
    for action in dataset[0].actions:
        assert action == np.flatnonzero(info["action_mask"])[-1]
        info = env.step(action)[4]


def test_what_the_encoding_cannot_say_is_refused() -> None:
    half = baselines.make("sarathi", token_budget=100)  # no whole number of tiles of 64

    def policy(key: Any, view: View) -> Any:
        return half(key, view)

    given = settings("tiles") | {"max_steps": 40, "load": 0.95}
    with pytest.raises(LLMGymError, match="action='tiles' has no choice whose batch is that of"):
        export("llmgym/half-v0", policy=policy, **given)


def test_spaces_without_end_are_refused() -> None:
    with pytest.raises(LLMGymError, match="too many choices"):
        export("llmgym/scores-v0", policy="sarathi", **settings("scores"))
    with pytest.raises(LLMGymError, match="either policy= or act="):
        export("llmgym/neither-v0", **settings("tiles"))
