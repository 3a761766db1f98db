"""llmgym: reinforcement-learning environments for scheduling LLM inference.

Importing it registers the Gymnasium environments ``llmgym/...``.
"""

from __future__ import annotations

import gymnasium as _gym

from llmgym import agents, baselines
from llmgym.arrivals import MMPP, Deterministic, GammaRenewal, Poisson, RateCurve
from llmgym.batch_time import (
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    Affine,
    BatchTime,
    Hinge,
    MeasuredTable,
    Roofline,
    Staircase,
)
from llmgym.composition import Batch, View, fill
from llmgym.envs.checker import check_vector_env
from llmgym.envs.functional import functional
from llmgym.errors import LLMGymError, UnservableWarning
from llmgym.evaluation.capacity_estimate import CapacityEstimate, estimate_capacity
from llmgym.evaluation.simulate import Run, simulate
from llmgym.evaluation.stability import Stability, stability
from llmgym.kv_cache import KVCache
from llmgym.lengths import Empirical, Fixed, Geometric, LogNormal, Uniform
from llmgym.lengths import Poisson as PoissonLength
from llmgym.scenario import Engine, Scenario
from llmgym.scenario_files import scenario
from llmgym.tenants import Tenant
from llmgym.theory.capacity import capacity
from llmgym.workload import JobType, Paired, Repeat, Replay, Stage, Workload

__version__ = "0.1.0"

_gym.register(
    id="llmgym/Engine-v0",
    entry_point="llmgym.envs.gym_env:EngineEnv",
    vector_entry_point="llmgym.envs.vector_env:EngineVectorEnv",
)
_gym.register(
    id="llmgym/Network-v0",
    entry_point="llmgym.envs.gym_env:NetworkEnv",
    vector_entry_point="llmgym.envs.vector_env:NetworkVectorEnv",
)
