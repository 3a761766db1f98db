"""llmgym: reinforcement-learning environments for scheduling LLM inference.

Importing it registers the Gymnasium environments ``llmgym/...``.
"""

from __future__ import annotations

import gymnasium as _gym

from llmgym import agents, baselines, traces
from llmgym.core.dispatch import run_in_the_calling_thread as _run_in_the_calling_thread
from llmgym.core.errors import LLMGymError, UnservableWarning
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View
from llmgym.envs.checker import check_vector_env
from llmgym.envs.interface.actions import register_action
from llmgym.envs.interface.encoding import ActionEncoding
from llmgym.envs.interface.features import Feature, register_feature
from llmgym.envs.interface.interface import Interface
from llmgym.envs.interface.observations import ObservationBase
from llmgym.envs.problems import PROBLEMS
from llmgym.envs.registration import functional
from llmgym.envs.rewards import Transition, register_reward
from llmgym.evaluation.capacity import CapacityEstimate, estimate_capacity
from llmgym.evaluation.simulate import Run, simulate
from llmgym.evaluation.stability import Stability, stability
from llmgym.scenario.arrivals import MMPP, Deterministic, GammaRenewal, Poisson, RateCurve
from llmgym.scenario.batch_time import (
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    Affine,
    BatchTime,
    Hinge,
    MeasuredTable,
    Roofline,
    Staircase,
)
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.lengths import Empirical, Fixed, Geometric, LogNormal, Uniform
from llmgym.scenario.lengths import Poisson as PoissonLength
from llmgym.scenario.library import scenario
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import Tenant
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.workload import JobType, Workload
from llmgym.theory.capacity import at_load, capacity

__version__ = "0.1.0"

_run_in_the_calling_thread()

for _name in ("Engine", "Network"):
    _gym.register(
        id=f"llmgym/{_name}-v0",
        entry_point=f"llmgym.envs.gym_env:{_name}Env",
        vector_entry_point=f"llmgym.envs.vector_env:{_name}VectorEnv",
    )
for _problem in PROBLEMS.values():
    _kind = "" if _problem.base == "llmgym/Engine-v0" else "Network"
    _gym.register(
        id=_problem.id,
        entry_point=f"llmgym.envs.problem_envs:{_kind}ProblemEnv",
        vector_entry_point=f"llmgym.envs.problem_envs:{_kind}ProblemVectorEnv",
        kwargs={"problem": _problem.id},
    )
