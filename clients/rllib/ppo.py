"""RLlib's new API stack: PPO for 20,000 steps."""

import gymnasium as gym
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env


def make(settings):
    import llmgym  # noqa: F401 - registers the environments, in every worker

    env = gym.make("llmgym/Engine-v0", scenario="latency", max_steps=256, **settings)
    return gym.wrappers.NormalizeReward(env, gamma=0.99)


register_env("llmgym", make)
algorithm = (
    PPOConfig()
    .environment("llmgym", env_config={"load": 0.8})
    .env_runners(num_env_runners=1, num_envs_per_env_runner=4)
    .training(train_batch_size_per_learner=4000, minibatch_size=500, num_epochs=4)
    .build_algo()
)
steps = 0
while steps < 20_000:
    result = algorithm.train()
    steps = result["num_env_steps_sampled_lifetime"]
mean = result["env_runners"]["episode_return_mean"]
print(f"PPO: {steps:.0f} steps, mean return (scaled rewards) {mean:.1f}")
algorithm.stop()
