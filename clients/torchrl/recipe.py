"""TorchRL: GymEnv of one engine, and engines that step together, both as its own check asks."""

import gymnasium as gym
from torchrl.envs import GymEnv, GymWrapper, RewardScaling, RewardSum, TransformedEnv
from torchrl.envs.transforms import Compose
from torchrl.envs.utils import check_env_specs

import llmgym  # noqa: F401 - registers the environments

settings = {"scenario": "latency", "load": 0.8, "max_steps": 64}
one = GymEnv("llmgym/Engine-v0", **settings)
many = GymWrapper(gym.make_vec("llmgym/Engine-v0", num_envs=8, **settings))
for env in (one, many):
    check_env_specs(env)
    scaled = TransformedEnv(env, Compose(RewardScaling(loc=0.0, scale=0.01), RewardSum()))
    steps = scaled.rollout(192, break_when_any_done=False)
    returns = steps["next", "episode_reward"][steps["next", "done"]]
    print(
        f"check_env_specs and rollout: {steps.numel()} steps of {tuple(env.batch_size) or 'one'}, "
        f"{len(returns)} episodes, mean return (scaled rewards) {returns.mean().item():.2f}"
    )
