"""PureJaxRL's ppo.py, unmodified, from a clone of it in the folder that PUREJAXRL names."""

import os
import sys

import gymnax
import jax

import llmgym
from llmgym.integrations.gymnax import GymnaxEnv

clone = os.environ.get("PUREJAXRL", "")
if not os.path.isfile(f"{clone}/purejaxrl/ppo.py"):
    print("not run: it is in no package index; set PUREJAXRL to the folder of a clone")
    sys.exit(77)
sys.path.insert(0, clone)

env = GymnaxEnv(
    "llmgym/Engine-v0", scenario=llmgym.scenario("latency", slots=128), load=0.8, max_steps=256
)
env_params = env.default_params
gymnax.make = lambda name: (env, env_params)  # ppo.py takes its environment from here

from purejaxrl.ppo import make_train  # noqa: E402

settings = {"LR": 2.5e-4, "NUM_ENVS": 64, "NUM_STEPS": 64, "TOTAL_TIMESTEPS": 65_536}
settings |= {"UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 4, "GAMMA": 0.99, "GAE_LAMBDA": 0.95}
settings |= {"CLIP_EPS": 0.2, "ENT_COEF": 0.01, "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5}
settings |= {"ACTIVATION": "tanh", "ENV_NAME": env.name, "ANNEAL_LR": True}
metrics = jax.jit(make_train(settings))(jax.random.PRNGKey(0))["metrics"]
returns = metrics["returned_episode_returns"][metrics["returned_episode"]]
print(f"ppo.py: {65_536} steps, {len(returns)} episodes, mean return {returns.mean():.1f}")
