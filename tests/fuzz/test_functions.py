"""Odd values in functions: theory, traces, statistics, calibration, learned policies and what runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from odd_values import ENGINE, ONE, VALUES, changed, try_out

import llmgym
from llmgym import KVCache, LLMGymError, Replay, Staircase, agents, theory
from llmgym.agents import checkpoint, dynamic_programming, index_search, optimality, optimum
from llmgym.agents.budgets import BudgetChoice
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.ppo import PPO
from llmgym.agents.scores import ScoreChoice
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.training import Training, train
from llmgym.calibration import validate
from llmgym.calibration.batches import Settings
from llmgym.calibration.calibrate import calibrate
from llmgym.core.npz import read_npz
from llmgym.evaluation import benchmark, comparison, evaluate, policies, statistics, traffic
from llmgym.integrations import vllm
from llmgym.integrations.sb3 import SB3VecEnv
from llmgym.integrations.vllm import schedule
from llmgym.scenario import arrivals, batch_time, library, toml_reader, toml_writer
from llmgym.theory import bounds, kv_memory, queueing_networks
from llmgym.theory.capacity import at_load, compositions, mean_work
from llmgym.traces import arrival_fits, burstiness, fits, readers

TIMES = np.cumsum(np.random.default_rng(0).exponential(1.0, 60))
TILED = replace(
    ONE, engines=(replace(ENGINE, batch_time=Staircase(5.0, 20.0, 32), max_num_seqs=8),)
)
KV = replace(ONE, engines=(replace(ENGINE, kv_cache=KVCache(64), batch_time=batch_time.Affine(20.0, 0.0),
                                   token_budget=512, first_token="prefill"),))  # fmt: skip
POLYGON = theory.stability_polygon(ENGINE)
REPLAY = Replay(TIMES, np.full(60, 5), np.full(60, 3))
SCORES = np.arange(6.0).reshape(3, 2)
NONE = Path("no-such-folder/no-such-file")
ROW = {"id": "a", "arrival_step": 0, "prompt_len": 4, "output_len": 2, "priority": 0}
CONFIG = {
    "max_num_batched_tokens": 64, "max_num_seqs": 8, "block_size": 16, "num_blocks_incl_null": 20,
    "enable_chunked_prefill": True, "long_prefill_token_threshold": 0, "policy": "fcfs",
    "enable_prefix_caching": False, "scheduler_reserve_full_isl": True, "watermark": 0.0,
    "prefill_schedule_interval": 1, "max_model_len": 64,
}  # fmt: skip


def of_row(**row: Any) -> Any:
    return vllm.scenario_of([row], CONFIG)


def of_config(**config: Any) -> Any:
    return vllm.scenario_of([ROW], config)


THEORY: dict[Callable[..., Any], dict[str, Any]] = {
    theory.capacity: {"scenario": ONE},
    at_load: {"scenario": ONE, "load": 0.5},
    mean_work: {"scenario": ONE},
    compositions: {"engine": ENGINE},
    bounds.rate_bound: {"served_tokens": 3.0, "elapsed_ms": 9.0, "engine": ENGINE},
    bounds.theorem2_capacity: {"scenario": ONE},
    bounds.fluid_growth: {"scenario": ONE, "rate_per_s": 9.0},
    bounds.faster_transformer_capacity: {"prefill": 3, "decode": 3, "engine": ENGINE},
    bounds.resident_cap_rate: {"cap": 8, "scenario": TILED},
    bounds.best_sarathi_under_cap: {"cap": 8, "scenario": TILED},
    bounds.relaxation_time_s: {"load": 0.5, "capacity_per_s": 3.0},
    bounds.pollaczek_khinchine: {"arrival_rate_per_s": 3.0, "service_ms": 3.0},
    theory.flow_control: {"scenario": KV, "activations": 1},
    theory.mean_waiting: {"arrivals": 0.5, "activations": 2},
    kv_memory.memory_bound: {"scenario": KV, "iteration_ms": 9.0, "chunk_tokens": None},
    kv_memory.token_iterations: {"scenario": KV, "chunk_tokens": None, "engine": None},
    kv_memory.unshared: {"scenario": KV},
    queueing_networks.visit_rates: {"scenario": ONE},
    queueing_networks.traffic_equations: {"scenario": ONE},
    queueing_networks.is_cyclic: {"scenario": ONE},
    queueing_networks.check_routing: {"scenario": ONE},
    queueing_networks.virtual_station: {"scenario": llmgym.scenario("rybko-stolyar"), "priorities": None},
    theory.stability_polygon: {"engine": ENGINE},
    theory.staircase_corners: {"engine": TILED.engine},
    POLYGON.scale_to_boundary: {"direction": (1.0, 1.0)},
    POLYGON.contains: {"lambda_p": 1.0, "lambda_d": 1.0},
}  # fmt: skip

SUMMARIES: dict[Callable[..., Any], dict[str, Any]] = {
    comparison.iqm: {"scores": SCORES},
    comparison.stratified_bootstrap: {
        "scores": SCORES, "statistic": comparison.iqm, "resamples": 9, "confidence": 0.9, "seed": 0,
    },
    comparison.performance_profile: {"scores": SCORES, "thresholds": np.array([1.0])},
    comparison.probability_of_improvement: {"scores": SCORES, "others": SCORES},
    statistics.mean_interval: {"values": SCORES, "confidence": 0.9},
    statistics.latency_summary: {
        "values": np.ones(2), "env": np.zeros(2, int), "num_envs": 2,
    },
    burstiness.burstiness: {"arrival_s": TIMES},
    burstiness.time_step: {"arrival_s": TIMES},
    burstiness.spread: {"arrival_s": TIMES, "seed": 0},
    burstiness.sample_times: {
        "process": arrivals.Poisson(1.0), "count": 9, "runs": 1, "seed": 0, "ticks_per_s": 1e5,
    },
    arrival_fits.fit_arrivals: {"trace": REPLAY, "kind": "poisson"},
    arrival_fits.compare_fits: {"trace": REPLAY, "kinds": ("poisson",), "seed": 0},
    fits.fit_quantiles: {"tokens": [1, 2, 3], "points": 5},
    fits.fit_scenario: {
        "trace": REPLAY, "arrivals": arrivals.Poisson(1.0), "engine": ONE, "name": "a", "what": "a",
        "source": "a", "points": 5,
    },
    fits.describe: {"arrivals": arrivals.Poisson(1.0)},
    readers.read_trace: {"path": NONE, "format": None, "limit": None},
    readers.summary: {"replay": REPLAY},
    library.as_scenario: {"given": ONE},
    library.scenario: {"name_or_path": "geometric", "slots": 64, "token_budget": 512},
    toml_reader.loads: {"text": "", "source": "a"},
    toml_reader.load: {"path": NONE},
    REPLAY.window: {"start_s": 1.0, "end_s": 9.0},
    calibrate: {"measurements": NONE, "tile": None},
    Settings: {
        "layers": 1, "width": 64, "heads": 4, "kv_heads": 0, "feed_forward": 0, "vocabulary": 100,
        "model": None, "device": "cpu", "dtype": "float32",
    },
    of_row: ROW,
    of_config: CONFIG,
}  # fmt: skip

LEARNED: dict[Callable[..., Any], dict[str, Any]] = {
    agents.load: {"name": "no-such-agent"},
    checkpoint.load_agent: {"path": NONE, "label": None},
    TileChoice: {
        "tiles": 4, "shares": 1, "prior": 9.0, "prompt_weight": 1.0, "age_weight": 0.0, "guard": 8.0,
        "guard_weight": 0.8,
    },
    ScoreChoice: {"tiles": 4, "requests": 16, "order": 2.0},
    BudgetChoice: {"tiles": 4, "base": "vllm_v1"},
    NetworkChoice: {"engines": 2, "classes": 2, "prior": 5.0, "decode_weight": 0.01, "guard": 32.0},
    PPO: {
        "choice": TileChoice(), "num_envs": 4, "steps": 8, "epochs": 2, "minibatches": 4, "warm_up": 0.1,
        "learning_rate": 1e-3, "clip": 0.2, "value_weight": 0.5, "max_gradient": 0.5, "entropy": 0.01,
        "trace": 0.9, "average_cost": True, "horizon_s": 9.0, "prefill_weight": 1.4, "late_weight": 0.0,
        "levels": None, "control": True, "hidden": 8,
    },
    Training: {"scenarios": (ONE,), "settings": PPO(), "steps": 10, "seeds": (0,), "patience": None},
    index_search.Settings: {
        "objective": "latency", "population": 4, "elites": 2, "generations": 1, "num_envs": 2,
        "warmup_s": 1.0, "duration_s": 1.0, "late_weight": 0.0, "goodput_weight": 0.0, "smoothing": 0.7,
        "check_envs": 2, "seed": 0,
    },
    optimum.load: {"path": NONE},
    index_search.search: {
        "scenario": ONE, "loads": (), "settings": None, "start": index_search.START, "spread": None,
        "path": None, "progress": None,
    },
    dynamic_programming.solve: {
        "scenario": ONE, "load": None, "residues": 16, "tolerance": 1e-3, "most_waiting": None,
        "most_decoding": None, "progress": None,
    },
    train: {"training": None, "out": None, "progress": None, "together": None},
}  # fmt: skip

STOPPED: dict[Callable[..., Any], dict[str, Any]] = {
    llmgym.simulate: {
        "scenario": ONE, "policy": "no-such-policy", "load": 0.5, "duration_s": 1.0, "num_envs": 1,
        "seed": 0, "record": True, "warmup_s": 0.0, "progress": None, "burst": 0,
    },
    llmgym.stability: {
        "scenario": ONE, "policy": "none", "load": 0.5, "replications": 2, "horizon_s": 1.0, "seed": 0,
        "progress": None,
    },
    llmgym.estimate_capacity: {
        "scenario": ONE, "policy": "none", "method": None, "replications": 2, "requests": 10, "seed": 0,
        "progress": None, "confidence": 0.9,
    },
    optimality.optimality_gap: {
        "scenario": ONE, "policy": "none", "load": 0.5, "optimum": None, "num_envs": 2, "duration_s": 1.0,
        "warmup_s": 1.0, "seed": 0,
    },
    policies.resolve: {"policy": "none"},
    policies.check: {"policy": "none", "scenario": ONE},
    traffic.Traffic: {
        "engine": ONE, "trace": NONE, "window_s": None, "load": None, "ttft_ms": 9.0, "tpot_ms": 9.0,
        "drain_s": 1.0, "seed": 0,
    },
    benchmark.servable: {"names": ("sarathi",), "scenario": ONE},
    benchmark.from_config: {"path": NONE},
    evaluate.from_config: {"path": NONE},
    benchmark.read_result: {"path": NONE},
    benchmark.measure: {"config": {}, "todo": [], "out": NONE, "jobs": 1},
    validate.read_vllm_run: {"folder": NONE},
    llmgym.fill: {"view": None, "batch": None, "demand": None, "token_budget": None, "whole": False},
    llmgym.check_vector_env: {"env": None, "steps": 1, "seed": 0},
    schedule: {"workload": [ROW], "config": {}},
    toml_writer.save: {"scenario": ONE, "path": NONE},
    SB3VecEnv: {"vector_env": None},
    optimality.optimality_gaps: {
        "scenario": ONE, "compared": ["none"], "load": 0.5, "optimum": None, "num_envs": 2,
        "duration_s": 1.0, "warmup_s": 1.0, "seed": 0,
    },
}  # fmt: skip
"""Functions that would run or read; what is named stops what no check stops before."""

ALL = THEORY | SUMMARIES | LEARNED | STOPPED


def runs(call: Callable[..., Any], arguments: dict[str, Any]) -> bool:
    """Whether nothing stops a function: left out, as what runs takes seconds to compile."""
    if call is index_search.search:
        loads = arguments["loads"]
        listed = isinstance(loads, (list, tuple)) and len(loads) > 0
        return listed or (isinstance(loads, np.ndarray) and loads.size > 0)
    named = arguments.get("policy")
    return isinstance(named, str) and named == "sarathi"


@pytest.fixture(autouse=True, scope="module")
def in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Odd values may be names of files, and some functions write them."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("fuzz"))
    yield
    os.chdir(before)


@settings(max_examples=400, deadline=None)
@given(changed(ALL))
def test_odd_arguments_of_functions_are_right_or_refused(case: Any) -> None:
    if not runs(*case):
        try_out(*case)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(changed(ALL))
def test_ten_thousand_odd_arguments_of_functions_are_right_or_refused(case: Any) -> None:
    if not runs(*case):
        try_out(*case)


@pytest.mark.slow
@pytest.mark.parametrize("call", ALL, ids=lambda call: call.__qualname__)
def test_every_odd_value_in_every_argument(call: Callable[..., Any]) -> None:
    for name in ALL[call]:
        for value in VALUES:
            arguments = ALL[call] | {name: value}
            if not runs(call, arguments):
                try_out(call, arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.mean_waiting(0.5, 2**31), "activations must be at most 100000"),
        (lambda: theory.flow_control(KV, range(10**9)), "activations has 1,000,000,000 entries"),
        (lambda: theory.theorem2_capacity(None), "A scenario is named by a string or a path"),
        (lambda: theory.rate_bound([1, 2], [1, 2, 3], ENGINE), "must have the same shape"),
        (lambda: comparison.iqm(range(10**9)), "scores has 1,000,000,000 entries"),
        (lambda: comparison.iqm([]), "scores must hold one number or more"),
        (lambda: comparison.stratified_bootstrap(SCORES, resamples=2**31), "resamples must be at most"),
        (lambda: burstiness.sample_times(arrivals.Poisson(1.0), 1), "count must be at least 2"),
        (lambda: agents.load(10**6000), "Unknown trained policy a whole number of about"),
        (lambda: checkpoint.load_agent(3), "path must be a string or a pathlib.Path, got 3"),
        (lambda: PPO(warm_up=1.0), "warm_up must be below 1"),
        (lambda: PPO(control="no"), "control must be True or False"),
        (lambda: Training((ONE,), PPO(warm_up=0.9), steps=1), "leaves none in which the policy learns"),
        (lambda: of_row(**ROW | {"prompt_len": None}), "prompt_len of request 'a' must be a number"),
        (lambda: Settings(layers=float("nan")), "layers must be finite"),
        (lambda: traffic.Traffic(ONE, NONE, window_s=(1,)), "window_s must be two times"),
        (lambda: read_npz(7), "The path of the checkpoint must be a string"),
    ],
)  # fmt: skip
def test_what_no_function_takes_is_refused_with_its_reason(
    call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(LLMGymError, match=message):
        call()


def test_statistics_of_nan_are_nan() -> None:
    odd = np.where(SCORES == 0, np.nan, SCORES)
    assert np.isnan(comparison.probability_of_improvement(odd, SCORES))
    assert comparison.probability_of_improvement(SCORES + 1, SCORES) == pytest.approx(2 / 3)
