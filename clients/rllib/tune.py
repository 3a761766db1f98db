"""Ray Tune: PPO of RLlib's new API stack at three loads, on one machine."""

import gymnasium as gym
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig


def make(settings):
    import llmgym  # noqa: F401 - registers the environments, in every worker

    env = gym.make("llmgym/Engine-v0", scenario="latency", max_steps=256, **settings)
    return gym.wrappers.NormalizeReward(env, gamma=0.99)


tune.register_env("llmgym", make)
config = (
    PPOConfig()
    .environment("llmgym", env_config={"load": tune.grid_search([0.6, 0.8, 0.95])})
    .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    .training(train_batch_size_per_learner=1024, minibatch_size=256, num_epochs=2)
)
results = tune.Tuner(
    "PPO", param_space=config, run_config=tune.RunConfig(stop={"training_iteration": 2}, verbose=0)
).fit()
if results.errors:
    raise results.errors[0]
means = {
    r.config["env_config"]["load"]: r.metrics["env_runners"]["episode_return_mean"] for r in results
}
found = ", ".join(f"{mean:.1f} at {load}" for load, mean in sorted(means.items()))
print(f"Tune: {len(means) * 2048} steps, mean return (scaled rewards) {found}")
