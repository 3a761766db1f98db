"""The view of a network with one agent an engine."""

from __future__ import annotations

import numpy as np
import pytest
from pettingzoo.test import api_test, parallel_api_test, parallel_seed_test
from pettingzoo.utils.conversions import parallel_to_aec

from llmgym.core.errors import LLMGymError
from llmgym.integrations.pettingzoo import NetworkParallelEnv


def make() -> NetworkParallelEnv:
    return NetworkParallelEnv(scenario="planner-workers-critic", max_steps=120)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_the_api_test_of_pettingzoo_passes() -> None:
    parallel_api_test(make(), num_cycles=300)
    parallel_seed_test(make)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["tiles", "split"])
def test_turn_by_turn_the_api_test_passes_too(action: str) -> None:
    """It samples actions inside the masks: int8, a tuple for MultiDiscrete."""
    env = NetworkParallelEnv(scenario="planner-workers-critic", action=action, max_steps=60)
    api_test(parallel_to_aec(env), num_cycles=200)


def test_options_and_pictures() -> None:
    env = NetworkParallelEnv(scenario="planner-workers-critic", render_mode="rgb_array", load=0.5)
    with pytest.raises(LLMGymError, match=r"reset\(\)"):
        env.render()
    env.reset(seed=0, options={"load": 0.9, "start": "backlog", "backlog_tokens": 4000})
    assert float(env._state.episode.load) == pytest.approx(0.9)  # type: ignore[union-attr]
    picture = env.render()
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    with pytest.raises(LLMGymError, match="Unknown option of reset"):
        env.reset(options={"lode": 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'lode'"):
        NetworkParallelEnv(lode=1)


@pytest.mark.slow
def test_masks_leave_busy_engines_one_choice() -> None:
    env = make()
    _, infos = env.reset(seed=3)
    busy = 0
    for _ in range(119):
        actions = {a: np.int64(np.flatnonzero(infos[a]["action_mask"])[-1]) for a in env.agents}
        observations, rewards, _, _, infos = env.step(actions)
        assert len(set(rewards.values())) == 1
        for agent in env.agents:
            if observations[agent][-3] > 0:  # its batch runs
                busy += 1
                assert infos[agent]["action_mask"].sum() == 1
    assert busy > 5


def test_bad_use_is_refused() -> None:
    with pytest.raises(LLMGymError, match="functional"):
        NetworkParallelEnv(scenario="planner-workers-critic", action="batch")
    with pytest.raises(LLMGymError, match="router"):
        _routed()
    env = make()
    with pytest.raises(LLMGymError, match="reset"):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(LLMGymError, match="No action for agent 'large'"):
        env.step({})
    with pytest.raises(LLMGymError, match="Actions of 'large' must be whole numbers"):
        env.step(dict.fromkeys(env.agents, np.int64(99)))


def _routed() -> NetworkParallelEnv:
    import llmgym

    return NetworkParallelEnv(scenario=llmgym.scenario("load-balanced", router="action"))
