"""PettingZoo: its parallel and its AEC test, on a network of two engines."""

from pettingzoo.test import api_test, parallel_api_test
from pettingzoo.utils.conversions import parallel_to_aec

from llmgym.integrations.pettingzoo import NetworkParallelEnv

settings = {"scenario": "rybko-stolyar", "load": 0.8, "max_steps": 256}
network = NetworkParallelEnv(**settings)
parallel_api_test(network, num_cycles=600)
api_test(parallel_to_aec(NetworkParallelEnv(**settings)), num_cycles=600)
print(f"parallel_api_test and api_test: passed with agents {', '.join(network.possible_agents)}")
