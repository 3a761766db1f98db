"""Tianshou 2: PPO by its high-level interface."""

import gymnasium as gym
from tianshou.highlevel.config import OnPolicyTrainingConfig
from tianshou.highlevel.env import EnvFactory, VectorEnvType
from tianshou.highlevel.experiment import ExperimentConfig, PPOExperimentBuilder

import llmgym  # noqa: F401 - registers the environments


class Engines(EnvFactory):
    def _create_env(self, mode):
        env = gym.make("llmgym/Engine-v0", scenario="latency", load=0.8, max_steps=256)
        return gym.wrappers.NormalizeReward(env, gamma=0.99)


experiment = (
    PPOExperimentBuilder(
        Engines(VectorEnvType.DUMMY),
        ExperimentConfig(persistence_enabled=False),
        OnPolicyTrainingConfig(
            max_epochs=1,
            epoch_num_steps=4096,
            collection_step_num_env_steps=1024,
            num_training_envs=2,
            num_test_envs=1,
        ),
    )
    .with_actor_factory_default(hidden_sizes=(64, 64))
    .with_critic_factory_default(hidden_sizes=(64, 64))
    .build()
)
result = experiment.run(run_name="llmgym").trainer_result
print(
    f"PPO: {result.train_step} steps, "
    f"mean return of the best test (scaled rewards) {result.best_reward:.1f}"
)
