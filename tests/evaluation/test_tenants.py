"""Tenants of a replay: classes with targets, weights and priorities of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmgym
from llmgym import Affine, JobType, LLMGymError, Poisson, Replay, Stage, Tenant
from llmgym.evaluation.benchmark import Benchmark
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.toml_reader import loads
from llmgym.scenario.toml_writer import dumps
from llmgym.traces.readers import read_trace

CHAT = Tenant("chat", ttft_ms=1000.0, tpot_ms=100.0, weight=3.0, priority=1)
BATCH = Tenant("batch", tpot_ms=500.0)
SHARED = Replay(
    [0.0, 0.1, 0.2, 0.3],
    [10, 20, 30, 40],
    [1, 2, 3, 4],
    tenant=["batch", "chat", "chat", "batch"],
    tenants=(CHAT, BATCH),
)


def engine(workload: Any) -> Scenario:
    return Scenario.single_engine(Affine(9.0, 0.35), 48, workload, slots=36, service_weights=(1, 2))


def test_tenants_are_classes() -> None:
    scenario = engine(SHARED)
    assert scenario.class_names == scenario.job_names == ("chat", "batch")
    chat, batch = scenario.classes
    assert (chat.targets_ms, batch.targets_ms) == ((1000.0, 100.0), (None, 500.0))
    assert (chat.weight, batch.weight) == (3.0, 1.0)
    assert (chat.priority, batch.priority) == (1, 0)
    assert (chat.mean_prefill, chat.mean_decode) == (25.0, 2.5)
    assert (batch.mean_prefill, batch.mean_decode) == (25.0, 2.5)
    assert [(one.job, one.stage) for one in scenario.classes] == [(0, 0), (1, 0)]
    np.testing.assert_array_equal(SHARED.request_class, [1, 0, 0, 1])
    part = SHARED.window(0.1, 0.25)  # of one of them nothing is left
    assert [one.name for one in part.classes] == ["chat", "batch"]
    assert scenario.override(workload=part).classes[1].mean_tokens == 0.0
    changed = scenario.override(ttft_ms=50.0)
    assert [one.targets_ms for one in changed.classes] == [(50.0, 100.0), (50.0, 500.0)]


def test_tenants_without_a_list_share_the_replays_targets() -> None:
    replay = Replay([0, 0, 1], [1, 2, 3], [1, 1, 1], tenant=["b", "a", "b"], ttft_ms=7.0, weight=2)
    assert replay.levels == (Tenant("a", 7.0, weight=2), Tenant("b", 7.0, weight=2))
    assert [(one.name, *one.targets_ms, one.weight) for one in replay.classes] == [
        ("a", 7.0, None, 2.0),
        ("b", 7.0, None, 2.0),
    ]
    np.testing.assert_array_equal(replay.request_class, [1, 0, 1])


def test_a_benchmark_keeps_the_tenants() -> None:
    endless = Benchmark(engine(SHARED), ("sarathi",)).endless
    chat, batch = endless.job_types
    assert (chat.name, chat.weight, chat.ttft_ms, chat.stages[0].priority) == ("chat", 3, 1000, 1)
    assert chat.rate_per_s == batch.rate_per_s == SHARED.rate_per_s / 2
    assert chat.stages[0].paired is not None
    np.testing.assert_array_equal(chat.stages[0].paired.prefill_tokens, [20, 30])
    alone = Benchmark(engine(Replay([0, 1, 3], [1] * 3, [1] * 3)))
    assert alone.endless.arrival_rate_per_s == alone.scenario.arrival_rate_per_s


def test_tenants_and_weights_in_toml(tmp_path: Path) -> None:
    scenario = engine(SHARED)
    text = dumps(scenario)
    assert text.count("[[replay.tenants]]") == 2
    again = loads(text)
    assert again.workload.tenants == (CHAT, BATCH)
    assert dumps(again) == text
    assert again.service_weights == (1, 2)
    job = JobType(Poisson(1.0), (Stage(1, 1),), weight=0.25)
    assert loads(dumps(engine(job))).classes[0].weight == 0.25
    (tmp_path / "trace.csv").write_text("arrival,prefill,decode,tenant\n0,5,1,chat\n1,6,1,x\n")
    head = text[: text.index("[replay]")]
    lines = '[replay]\ntrace = "trace.csv"\nname = "mine"\n'
    lines += '[[replay.tenants]]\nname = "chat"\nttft_ms = 5.0\n[[replay.tenants]]\nname = "x"\n'
    (tmp_path / "s.toml").write_text(head + lines)
    traced = llmgym.scenario(tmp_path / "s.toml")
    assert traced.class_names == ("chat", "x")
    assert [one.targets_ms for one in traced.classes] == [(5.0, None), (None, None)]


def test_tenants_in_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival,class,prefill,decode\n0,chat,5,1\n1, x ,6,1\n")
    assert read_trace(path).tenant.tolist() == ["chat", "x"]  # type: ignore[union-attr]
    path.write_text("arrival,prefill,decode,tenant\n0,5,1,chat\n1,6,1,\n")
    with pytest.raises(LLMGymError, match="line 3: tenant is ''"):
        read_trace(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tenants": (CHAT, BATCH, CHAT)}, "'chat' is listed twice"),
        ({"tenants": (CHAT,)}, "Unknown tenant 'batch'"),
        ({"tenants": ("chat", "batch")}, "must be a list of Tenant"),
        ({"tenant": None}, "does not say which"),
        ({"tenant": ["chat"]}, "one for each of the 4"),
        ({"tenant": ["chat", "chat", "", "batch"]}, "one for each of the 4"),
        ({"priority": [0, 1, 0, 1]}, "which then overlap"),
        ({"ttft_ms": 9.0}, "given twice"),
        ({"weight": 9.0}, "given twice"),
        ({"tenants": (), "tenant": list("abcd"), "weight": 0.0}, "weight must be greater than 0"),
    ],
)
def test_classes_that_overlap_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        replace(SHARED, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": 3}, "name of a tenant must be a string"),
        ({"weight": float("nan")}, "weight must be finite"),
        ({"ttft_ms": -1.0}, "ttft_ms must be greater than 0"),
        ({"priority": 0.5}, "priority must be a whole number"),
    ],
)
def test_bad_tenants(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        Tenant(**{"name": "x", **fields})
    if "weight" in fields:
        with pytest.raises(LLMGymError, match=message):
            JobType(Poisson(1.0), (Stage(1, 1),), weight=fields["weight"])


@pytest.mark.slow
def test_multi_tenant_is_what_priority_is_for() -> None:
    found = {}
    for policy in ("vllm_v1", "vllm_v1_priority", "vtc"):
        done = llmgym.simulate("multi-tenant", policy, duration_s=300, warmup_s=60, num_envs=4)
        assert done.summary["dropped"] == 0
        assert done.summary["fairness"]["gap"] <= done.summary["fairness"]["bound"]
        found[policy] = done.summary["slo"]["interactive"]["attainment"]
    assert found["vllm_v1_priority"] > 0.97
    assert max(found["vllm_v1"], found["vtc"]) < 0.92
