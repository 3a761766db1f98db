"""An environment gives the same bits among 1, 7 and 64: runs, observations and rewards."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

import llmgym

SIZES = (1, 7, 64)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "policy", "load"),
    [
        ("rybko-stolyar", "random", 0.9),  # draws of its own for every call
        ("paper-gpu-memory", "vllm_v1", 1.1),
        ("shared-prefix", "sarathi", 0.9),
    ],
)
def test_a_replication_does_not_depend_on_how_many_there_are(
    name: str, policy: str, load: float
) -> None:
    scenario = llmgym.scenario(name, slots=32)
    settings: dict[str, Any] = {"load": load, "duration_s": 2.0, "seed": 3}
    runs = {n: llmgym.simulate(scenario, policy, num_envs=n, **settings) for n in SIZES}
    for table in ("requests", "batches", "trajectory"):
        frames = {n: getattr(run, table) for n, run in runs.items()}
        assert len(frames[1]) > 5
        for few, many in pairwise(SIZES):
            for env in {0, few // 2, few - 1}:
                one, other = (f[f.env == env].reset_index(drop=True) for f in
                              (frames[few], frames[many]))  # fmt: skip
                pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize(
    ("world", "scenario"),
    [("llmgym/Engine-v0", "geometric"), ("llmgym/Network-v0", "rybko-stolyar")],
)
def test_an_environment_does_not_depend_on_how_many_there_are(world: str, scenario: str) -> None:
    seen: dict[int, list[Any]] = {}
    for count in SIZES:
        made = llmgym.scenario(scenario, slots=32)
        env: Any = gym.make_vec(world, count, scenario=made, load=0.9, max_steps=30)
        observation, _ = env.reset(seed=list(range(5, 5 + count)))
        seen[count] = [[observation]]
        for step in range(40):  # into the second episodes
            rng = np.random.default_rng(step)
            space = env.single_action_space
            shape = (64, *np.shape(space.sample()))
            high = getattr(space, "n", None) or np.asarray(space.nvec)
            actions = rng.integers(0, high, shape)[:count]
            seen[count].append(env.step(actions)[:4])
        env.close()
    for few, many in pairwise(SIZES):
        for number, (one, other) in enumerate(zip(seen[few], seen[many], strict=True)):
            for a, b in zip(one, other, strict=True):
                left, right = np.asarray(a), np.asarray(b)[:few]
                assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), number
