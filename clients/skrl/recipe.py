"""skrl: PPO on eight engines that step together."""

import gymnasium as gym
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.trainers.torch import SequentialTrainer
from skrl.utils.model_instantiators.torch import categorical_model, deterministic_model

import llmgym  # noqa: F401 - registers the environments

engines = gym.make_vec("llmgym/Engine-v0", num_envs=8, scenario="latency", load=0.8, max_steps=256)
engines = gym.wrappers.vector.RecordEpisodeStatistics(engines)
env = wrap_env(engines)
spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
layers = [{"name": "net", "input": "OBSERVATIONS", "layers": [64, 64], "activations": "tanh"}]
models = {
    "policy": categorical_model(**spaces, device=env.device, network=layers, output="ACTIONS"),
    "value": deterministic_model(**spaces, device=env.device, network=layers, output="ONE"),
}
settings = PPO_CFG(
    rollouts=64,
    mini_batches=4,
    time_limit_bootstrap=True,
    rewards_shaper=lambda rewards, *_: rewards * 0.01,
)
memory = RandomMemory(memory_size=64, num_envs=8, device=env.device)
agent = PPO(models=models, memory=memory, cfg=settings, device=env.device, **spaces)
SequentialTrainer(env=env, agents=agent, cfg={"timesteps": 1024, "headless": True}).train()
returns = list(engines.return_queue)
print(f"PPO: 8192 steps, {len(returns)} episodes, mean return {sum(returns) / len(returns):.1f}")
