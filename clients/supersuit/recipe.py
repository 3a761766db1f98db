"""SuperSuit and Stable-Baselines3: PPO with one policy that all engines of a network share."""

import supersuit
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from llmgym.integrations.pettingzoo import NetworkParallelEnv

network = NetworkParallelEnv(scenario="rybko-stolyar", load=0.8, max_steps=256)
agents = supersuit.pettingzoo_env_to_vec_env_v1(network)
envs = supersuit.concat_vec_envs_v1(agents, 2, num_cpus=0, base_class="stable_baselines3")
envs = VecNormalize(VecMonitor(envs), norm_obs=False, gamma=0.99)
model = PPO("MlpPolicy", envs, n_steps=512, device="cpu").learn(4096)
returns = [episode["r"] for episode in model.ep_info_buffer]
print(
    f"PPO: {model.num_timesteps} steps of {envs.num_envs} agents, {len(returns)} episodes, "
    f"mean return {sum(returns) / len(returns):.1f}"
)
