"""Minari: rollouts of a policy as a data set for learning offline."""

import os

os.environ.setdefault("MINARI_DATASETS_PATH", os.path.abspath("datasets"))

import minari

from llmgym.integrations.minari import export

settings = {"scenario": "latency", "load": 0.8, "max_steps": 256}
export(
    "llmgym/latency/sarathi-v0",
    policy="sarathi",
    episodes=4,
    action="budget",
    action_settings={"base": "sarathi"},
    **settings,
)
dataset = minari.load_dataset("llmgym/latency/sarathi-v0")
env = dataset.recover_environment()
first = dataset[0]
env.reset(seed=int(next(iter(dataset.storage.get_episode_metadata([0])))["seed"]))
again = [env.step(action)[1] for action in first.actions]
assert again == first.rewards.tolist(), "the environment does not repeat its data set"
mean = sum(sum(episode.rewards) for episode in dataset) / dataset.total_episodes
print(
    f"Minari: {dataset.total_steps} steps, {dataset.total_episodes} episodes, mean return {mean:.1f}"
)
