"""CleanRL's ppo.py, unmodified. PyPI's version still speaks the old ``gym``; this shows it Gymnasium so.

CleanRL's newer ppo.py, in its repository, uses Gymnasium and needs nothing of this:
``python cleanrl/ppo.py --env-id llmgym:llmgym/Engine-v0``.
"""

import importlib.util
import runpy
import sys
import types

import gymnasium
from gymnasium.vector import AutoresetMode

import llmgym  # noqa: F401 - registers the environments


class Old(gymnasium.Wrapper):
    def seed(self, seed):
        self.unwrapped.reset(seed=seed)


class SyncVectorEnv(gymnasium.vector.SyncVectorEnv):
    def __init__(self, makers):
        super().__init__(makers, autoreset_mode=AutoresetMode.SAME_STEP)

    def reset(self):
        return super().reset()[0]

    def step(self, actions):
        observation, reward, terminated, truncated, info = super().step(actions)
        last = info.get("final_info", {}).get("episode", {"r": [], "l": []})
        episodes = [
            {"episode": {"r": r, "l": n}} for r, n in zip(last["r"], last["l"], strict=True)
        ]
        return observation, reward, terminated | truncated, episodes


def make(env_id):
    env = gymnasium.make(env_id, scenario="latency", load=0.8, max_steps=256)
    return gymnasium.wrappers.NormalizeReward(env, gamma=0.99)


gym = types.ModuleType("gym")
gym.make, gym.spaces = make, gymnasium.spaces
gym.vector = types.SimpleNamespace(SyncVectorEnv=SyncVectorEnv)
gym.wrappers = types.SimpleNamespace(
    RecordEpisodeStatistics=lambda env: Old(gymnasium.wrappers.RecordEpisodeStatistics(env))
)
sys.modules["gym"] = gym

program = importlib.util.find_spec("cleanrl").submodule_search_locations[0] + "/ppo.py"
sys.argv = [program, "--env-id", "llmgym/Engine-v0", "--num-envs", "2", "--total-timesteps", "4096"]
left = runpy.run_path(program, run_name="__main__")
print(f"ppo.py: {left['global_step']} steps, explained variance {left['explained_var']:.2f}")
