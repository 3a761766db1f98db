"""TableFullWarning: a table that is full at a load that can be served is told of, once, with the mend."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from env_samples import SCENARIO

from llmgym.core.errors import TableFullWarning
from llmgym.envs.interface.sound import tell_of_drops

SLOTS = 8
SETTINGS: dict[str, Any] = {"max_steps": 30, "slots": SLOTS}
NETWORK: dict[str, Any] = {"scenario": "rybko-stolyar", "max_steps": 200, "slots": SLOTS}


def made(kind: str, load: Any) -> Any:
    """One environment, several, or a network."""
    if kind == "network":
        return gym.make("llmgym/Network-v0", load=load, **NETWORK)
    settings = SETTINGS | {"scenario": SCENARIO, "load": load}
    if kind == "single":
        return gym.make("llmgym/Engine-v0", **settings)
    return gym.make_vec("llmgym/Engine-v0", num_envs=2, **settings)


def idle(env: Any, steps: int = 80) -> tuple[int, list[warnings.WarningMessage]]:
    """Serve nothing, over several episodes: requests dropped, and what was told of them."""
    dropped = 0
    nothing = np.zeros_like(env.action_space.sample())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        env.reset(seed=0)
        for _ in range(steps):
            _, _, _, truncated, info = env.step(nothing)
            dropped += int(np.sum(info["dropped"]))
            if isinstance(truncated, bool) and truncated:
                env.reset()
    return dropped, of_tables(told)


def of_tables(told: Iterable[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    return [one for one in told if one.category is TableFullWarning]


@pytest.mark.parametrize("kind", ["single", "several", "network"])
def test_a_full_table_is_told_of_once_with_its_mend(kind: str) -> None:
    env = made(kind, 0.9)
    dropped, told = idle(env, 400 if kind == "network" else 80)
    assert dropped > 1
    assert len(told) == 1
    message = str(told[0].message)
    for part in (f"the table of {SLOTS} slots", 'slots="auto"', "more slots", "a lower load"):
        assert part in message
    assert "\n" not in message
    assert idle(env)[1] == []  # and not again after a reset with a seed


def test_another_environment_tells_again_at_the_line_of_its_user() -> None:
    made_before = made("several", 0.9)
    assert len(idle(made_before)[1]) == 1
    (told,) = idle(made("several", 0.9))[1]
    assert told.filename == __file__


@pytest.mark.parametrize("kind", ["single", "several", "network"])
@pytest.mark.parametrize("load", [1.0, 1.3])
def test_at_loads_that_no_policy_serves_nothing_is_told(kind: str, load: float) -> None:
    """There every table is full in the end."""
    dropped, told = idle(made(kind, load), 400 if kind == "network" else 80)
    assert dropped > 1 and told == []


def test_of_several_only_those_below_the_limit_count() -> None:
    for dropped, load, is_told in (
        ([0, 3], [0.5, 1.0], False),
        ([1, 3], [0.5, 1.0], True),
        ([0, 0], [0.5, 0.9], False),
        (0, 0.5, False),
        (2, 0.999, True),
        (2, 1.0, False),
    ):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert tell_of_drops(np.array(dropped), np.array(load), SLOTS) is is_told
        assert len(of_tables(told)) == is_told


def test_a_table_with_room_is_not_told_of() -> None:
    assert idle(made("single", 0.05), 10) == (0, [])
