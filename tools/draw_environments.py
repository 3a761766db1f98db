"""Draw the pictures in docs/environments again: a frame of each environment, under a random policy.

python tools/draw_environments.py
"""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np

import llmgym  # noqa: F401 - registers the environments

FRAMES = {
    "engine": ("llmgym/Engine-v0", "two-class", "split", 150),
    "network": ("llmgym/Network-v0", "planner-workers-critic", "tiles", 900),
}
"""Environment, scenario, action encoding and number of steps of each picture."""


def frame(env_id: str, scenario: str, action: str, steps: int) -> np.ndarray:
    """What the environment shows after some steps (height, width, 3)."""
    env = gym.make(env_id, scenario=scenario, load=0.8, action=action, render_mode="rgb_array")
    env.action_space.seed(0)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(env.action_space.sample())
    return np.asarray(env.render())


if __name__ == "__main__":
    folder = Path(__file__).parents[1] / "docs" / "environments"
    for name, settings in FRAMES.items():
        plt.imsave(folder / f"{name}.png", frame(*settings))
