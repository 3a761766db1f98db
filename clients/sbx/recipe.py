"""SBX, Stable-Baselines in JAX: PPO and DQN, on eight engines that step together."""

import gymnasium as gym
from sbx import DQN, PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import llmgym  # noqa: F401 - registers the environments
from llmgym.integrations.sb3 import SB3VecEnv

engines = gym.make_vec("llmgym/Engine-v0", num_envs=8, scenario="latency", load=0.8, max_steps=256)
for algorithm in (PPO, DQN):
    envs = VecNormalize(VecMonitor(SB3VecEnv(engines)), norm_obs=False, gamma=0.99)
    model = algorithm("MlpPolicy", envs, seed=0).learn(4096)
    returns = [episode["r"] for episode in model.ep_info_buffer]
    print(
        f"{algorithm.__name__}: {model.num_timesteps} steps, {len(returns)} episodes, "
        f"mean return {sum(returns) / len(returns):.1f}"
    )
