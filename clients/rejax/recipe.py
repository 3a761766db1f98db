"""rejax: PPO, compiled whole, with its evaluation."""

import jax
import numpy as np
from rejax import PPO

import llmgym
from llmgym.integrations.gymnax import GymnaxEnv

env = GymnaxEnv(
    "llmgym/Engine-v0",
    scenario=llmgym.scenario("latency", slots=128),
    load=0.8,
    max_steps=256,
)
ppo = PPO.create(
    env=env,
    env_params=env.default_params,
    num_envs=64,
    num_steps=64,
    num_minibatches=4,
    num_epochs=4,
    total_timesteps=32_768,
    eval_freq=16_384,
    normalize_rewards=True,
    skip_initial_evaluation=True,
)
state, (lengths, returns) = jax.jit(ppo.train)(jax.random.key(0))
print(f"PPO: {ppo.total_timesteps} steps, mean return {np.asarray(returns).mean(axis=1)[-1]:.1f}")
