"""Odd values in constructors and arguments: a right result, or one short LLMGymError, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_values import ENGINE, JOB, ODD, ONE, changed, try_out

import llmgym
from llmgym import Affine, Engine, KVCache, LLMGymError, Replay, Scenario, Stage, Tenant, baselines
from llmgym.agents.ppo import PPO
from llmgym.agents.training import Training
from llmgym.core.checks import MOST_ITEMS, as_list, check_numbers, check_seed, check_size
from llmgym.core.errors import MOST_CHARACTERS, plain_number
from llmgym.evaluation.benchmark import Benchmark
from llmgym.evaluation.evaluate import Evaluation
from llmgym.scenario import arrivals, batch_time, lengths
from llmgym.scenario.prefixes import SharedPrefix
from llmgym.scenario.stage import Paired, Repeat
from llmgym.scenario.workload import JobType, Workload

GOOD: dict[Callable[..., Any], dict[str, Any]] = {
    Scenario: {
        "engines": (ENGINE,), "workload": JOB, "slots": 16, "tick_ms": 0.01, "lengths_known": True,
        "router": "random", "name": "a", "description": "", "source": "", "service_weights": (1, 2),
    },
    Engine: {
        "batch_time": Affine(10.0, 0.1), "token_budget": 64, "max_num_seqs": 4, "seq_limit": "batch",
        "name": "e", "replicas": 1, "kv_cache": None, "first_token": "decode",
    },
    KVCache: {"blocks": 9, "block_size": 16, "prefix_caching": False, "swap_tokens_per_ms": None},
    KVCache.left_over: {
        "memory_gb": 80, "weights_gb": 30, "bytes_per_token": 1e5, "utilization": 0.9, "block_size": 16,
    },
    Workload: {
        "arrivals": arrivals.Poisson(1.0), "prefill": 5, "decode": 5, "name": "a", "ttft_ms": 1.0,
        "tpot_ms": 1.0, "weight": 1.0, "e2e_ms": 2.0,
    },
    JobType: {"arrivals": arrivals.Poisson(1.0), "stages": (Stage(1, 1),), "name": "a"},
    Stage: {
        "prefill": 5, "decode": 5, "paired": None, "engine": "e", "name": "a", "after": None,
        "probability": None, "repeat": None, "inherits": False, "priority": 0, "delay_ms": None,
        "shared_prefix": None,
    },
    SharedPrefix: {"tokens": 16, "variants": 2},
    Paired: {"prefill_tokens": [1, 2], "decode_tokens": [3, 4]},
    Repeat: {"to": "a", "probability": 0.5, "rounds": None},
    Tenant: {"name": "a", "ttft_ms": 1.0, "weight": 1.0, "priority": 0},
    Replay: {
        "arrival_s": [0.0, 1.0], "prefill_tokens": [1, 2], "decode_tokens": [3, 4], "name": "r",
        "ttft_ms": 1.0, "priority": None, "weight": 1.0, "tenant": None, "tenants": (),
        "prefix_ids": None, "prefix_tokens": 16,
    },
    arrivals.Poisson: {"rate_per_s": 1.0},
    arrivals.Deterministic: {"rate_per_s": 1.0},
    arrivals.GammaRenewal: {"rate_per_s": 1.0, "cv": 2.0},
    arrivals.MMPP: {"rate_per_s": 1.0, "weights": (1, 2), "sojourn_s": (1, 2)},
    arrivals.RateCurve: {
        "rate_per_s": 1.0, "weights": (1, 2), "period_s": 9.0, "burst_weights": (1, 2),
        "burst_sojourn_s": (1, 2),
    },
    lengths.Fixed: {"tokens": 3},
    lengths.Geometric: {"mean_tokens": 3.0},
    lengths.Uniform: {"low": 1, "high": 5},
    lengths.LogNormal: {"mean_tokens": 3.0, "cv": 1.0},
    lengths.Poisson: {"mean_tokens": 3.0},
    lengths.Empirical: {"quantiles": [1, 2]},
    lengths.Empirical.from_samples: {"samples": [1, 2], "points": 5},
    batch_time.Staircase: {"c_ms": 1.0, "a_ms": 1.0, "tile": 8},
    batch_time.Hinge: {"c_ms": 1.0, "a_ms_per_token": 1.0, "free_tokens": 8},
    batch_time.Affine: {"c_ms": 1.0, "a_ms_per_token": 1.0},
    batch_time.Roofline: {
        "c_ms": 1.0, "a_ms_per_token": 1.0, "free_tokens": 8, "kv_ms_per_kilotoken": 0.1,
    },
    batch_time.MeasuredTable: {"tokens": [1, 8], "times_ms": [1.0, 2.0]},
    Benchmark: {
        "scenario": ONE, "policies": ("sarathi",), "loads": (0.5,), "replications": 2, "arrivals": 30,
        "capacity_requests": 20, "seed": 0,
    },
    Evaluation: {
        "scenario": ONE, "policies": ("sarathi",), "rates": (0.5,), "budgets": (64,), "seeds": 2,
        "arrivals": 40, "seed": 0, "reference": "sarathi",
    },
    Training: {"scenarios": (ONE,), "settings": PPO(), "steps": 10, "seeds": (0,), "patience": None},
    PPO: {"num_envs": 4, "steps": 8, "minibatches": 4, "learning_rate": 1e-3, "hidden": 8, "trace": 0.9},
    llmgym.at_load: {"scenario": ONE, "load": 0.5},
    llmgym.capacity: {"scenario": ONE},
    ONE.at_rate: {"rate_per_s": 1.0},
    ONE.override: {"slots": 16, "token_budget": 64, "prefill_tokens": 4, "ttft_ms": 5.0, "arrivals": None},
    llmgym.scenario: {"name_or_path": "geometric", "slots": 16, "tick_ms": 0.01},
}  # fmt: skip
"""Arguments that are right; the fuzz puts an odd value in the place of one or two."""

REFUSED_BEFORE: dict[Callable[..., Any], dict[str, Any]] = {
    llmgym.simulate: {
        "scenario": ONE, "policy": "no-such-policy", "load": 0.5, "duration_s": 1.0, "num_envs": 1,
        "seed": 0, "record": True, "warmup_s": 0.0, "progress": None, "burst": 0,
    },
    llmgym.stability: {"scenario": ONE, "policy": "none", "load": 0.5, "replications": 2, "seed": 0},
    llmgym.estimate_capacity: {
        "scenario": ONE, "policy": "none", "method": None, "replications": 2, "requests": 10, "seed": 0,
    },
}  # fmt: skip
"""Functions that would run; a name that stands for no policy stops what no check stops before."""


@settings(max_examples=400, deadline=None)
@given(changed(GOOD | REFUSED_BEFORE))
def test_odd_arguments_are_right_or_refused(case: Any) -> None:
    try_out(*case)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(changed(GOOD | REFUSED_BEFORE))
def test_ten_thousand_odd_arguments_are_right_or_refused(case: Any) -> None:
    try_out(*case)


SETTINGS = [
    (name, field)
    for name in baselines.names()
    for field in [f.name for f in fields(baselines.POLICIES[name])]
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SETTINGS), ODD)
def test_odd_settings_of_policies_are_right_or_refused(
    setting: tuple[str, str], value: Any
) -> None:
    name, field = setting
    try_out(lambda: baselines.make(name, **{field: value}), {})


@pytest.mark.parametrize(("name", "field"), SETTINGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan")])
def test_no_policy_takes_what_is_not_finite(name: str, field: str, value: float) -> None:
    with pytest.raises(LLMGymError):
        baselines.make(name, **{field: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: llmgym.at_load(ONE, 1e5), "requests per second: tables of any size fill"),
        (lambda: llmgym.simulate(ONE, "sarathi", duration_s=1e300), "must be at most .* holds"),
        (lambda: llmgym.simulate(ONE, "sarathi", duration_s=1.0, num_envs=10**9), "would take .* GB"),
        (lambda: llmgym.simulate(ONE, "sarathi", duration_s=1.0, seed=0.5), "seed must be a whole number"),
        (lambda: Scenario((ENGINE,), JOB, slots=Decimal(4)), r"slots must be a number, got Decimal"),
        (lambda: Scenario((ENGINE,), JOB, slots=10**400), "slots must be at most 32768, got a whole number"),
        (lambda: baselines.make("x" * 10**6), "Unknown policy 'xxx"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_reason(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message) as raised:
        call()
    assert len(str(raised.value)) <= MOST_CHARACTERS


def test_whole_floats_and_numpy_scalars_are_whole_numbers() -> None:
    scenario = Scenario((ENGINE,), JOB, slots=np.float32(16.0))
    assert scenario == Scenario((ENGINE,), JOB, slots=16)
    assert type(scenario.slots) is int


def test_a_list_may_have_so_many_entries_and_no_more() -> None:
    assert len(as_list("values", range(MOST_ITEMS))) == MOST_ITEMS
    with pytest.raises(LLMGymError, match=f"values has more than {MOST_ITEMS} entries"):
        as_list("values", range(MOST_ITEMS + 1))


def test_a_number_is_what_stands_for_one() -> None:
    for value in (3, 3.0, np.int32(3), np.float32(3), np.array(3), jax.numpy.array(3)):
        assert plain_number(value) == 3 and type(plain_number(value)) in (int, float)
    for value in (True, np.True_, "3", None, [3], np.array([3]), np.array("3"), 3j, object()):
        assert plain_number(value) is None


def test_limits_are_those_that_are_promised() -> None:
    assert check_seed(2**32 - 1) == 2**32 - 1
    for seed in (2**32, -1):
        with pytest.raises(LLMGymError, match="seed must be at"):
            check_seed(seed)
    check_size("values", range(50_000_000))
    with pytest.raises(LLMGymError, match="50,000,001 entries; at most 50,000,000"):
        check_size("values", range(50_000_001))


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = " ".join(map(str, range(1000)))
    assert str(LLMGymError(text[:500])) == text[:500]
    message = str(LLMGymError(text[:501]))
    start, end = message.split(" ... ")
    assert len(message) == 500 and len(start) == 330
    assert text.startswith(start) and text[:501].endswith(end)


@pytest.mark.parametrize(
    ("axes", "must"),
    [(None, "numbers, got"), (1, "numbers in a flat list"), (2, "numbers in an array of 2 axes")],
)
def test_numbers_say_what_shape_they_must_have(axes: int | None, must: str) -> None:
    assert check_numbers("x", np.ones([2] * (axes or 3)), axes).ndim == (axes or 3)
    with pytest.raises(LLMGymError, match=f"x must hold {must}"):
        check_numbers("x", [["a"]], axes)


def test_numbers_may_be_of_any_size_but_nothing_else_is_one() -> None:
    assert check_numbers("x", [1, 10**30]).tolist() == [1.0, 1e30]  # objects to NumPy
    for wrong in ([1, None], [10**30, True], [10**30, "3"], [None]):
        with pytest.raises(LLMGymError, match="x must hold numbers"):
            check_numbers("x", wrong)


def answer_of(file: Any, body: str) -> str:
    """The error of a policy with this body, from its file."""
    file.write_text(f"import numpy as np\nimport llmgym\n\ndef mine(key, view):\n    {body}\n")
    with pytest.raises(LLMGymError) as raised:
        llmgym.simulate(ONE, f"{file}:mine", duration_s=1.0)
    return str(raised.value)


def test_a_policy_is_told_what_it_must_return_and_its_line(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    assert "asks for the value" in (
        text := answer_of(file, "return 1 if view.waited[0] > 3 else 2")
    )
    assert "mine.py, line 5" in text
    wrong = ("return None", "return np.zeros(16)", "return llmgym.Batch(view.prefill[1:])",
             "return llmgym.Batch(view.prefill * 1.0)")  # fmt: skip
    for body in wrong:
        assert "it must return a Batch" in (text := answer_of(file, body))
        assert "(mine.py, line 4)" in text
    assert "ZeroDivisionError" in answer_of(file, "return 1 / 0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"# caf\xe9\n", "is not UTF-8 text"),
        (b"x = '\0'\n", "line 1, holds a NUL byte"),
        (b"\nraise SystemExit(3)\n", "SystemExit: 3 in line 2"),
    ],
)
def test_a_damaged_policy_file_is_one_line(data: bytes, message: str, tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_bytes(data)
    with pytest.raises(LLMGymError, match=message):
        llmgym.simulate(ONE, f"{tmp_path}/mine.py:mine", duration_s=1.0)


def test_a_priority_column_is_read(tmp_path: Any) -> None:
    path = tmp_path / "own.csv"
    path.write_text("arrival,prefill,decode,priority\n0,3,2,1\n1,3,2,0\n")
    assert llmgym.traces.read_trace(path).priorities == (1, 0)
