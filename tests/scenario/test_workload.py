"""The protocol of workloads: job types and replays tell the rest of llmgym the same things."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Deterministic, Poisson
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.engine import Engine
from llmgym.scenario.job_types import JobTypes
from llmgym.scenario.lengths import Geometric, Uniform
from llmgym.scenario.prefixes import SharedPrefix
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import RequestClass, Tenant
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.toml_reader import loads
from llmgym.scenario.toml_writer import dumps
from llmgym.scenario.workload import Demand, JobType

ONE = (Engine(Affine(10.0, 0.1), 64),)
TWO = (Engine(Affine(10.0, 0.1), 64, name="a"), Engine(Affine(5.0, 0.1), 64, name="b", replicas=2))

CHAT = JobType(
    Poisson(2.0),
    (Stage(Geometric(30), Uniform(1, 9), priority=1, shared_prefix=SharedPrefix(16, 3)),),
    "chat",
    ttft_ms=500.0,
    weight=2.0,
)
CODE = JobType(Deterministic(1.0), (Stage(paired=Paired([8, 40], [2, 0])),), "code", tpot_ms=50.0)
AGENT = JobType(
    Poisson(0.5),
    (
        Stage(20, 4, engine="a", name="plan"),
        Stage(delay_ms=Geometric(100), name="tool"),
        Stage(10, 2, engine="b", name="act", inherits=True, repeat=Repeat("tool", 0.5)),
    ),
    "agent",
    ttft_ms=300.0,
    e2e_ms=9000.0,
)
FLAT = JobType(Poisson(1.5), (Stage(12, 3, engine="b"),), "flat", weight=0.5)

ROWS: Any = ([0.0, 0.5, 0.5, 2.0], [10, 20, 30, 40], [4, 3, 2, 1])
PLAIN = Replay(
    *ROWS, "list", ttft_ms=70.0, e2e_ms=800.0, prefix_ids=[[0], [0, 1], [2], []], prefix_tokens=16
)
RANKED = Replay(*ROWS, "list", priority=[0, 5, 0, 0], tpot_ms=9.0)
SHARED = Replay(
    *ROWS,
    "list",
    tenant=["x", "y", "x", "x"],
    tenants=(Tenant("y", 5.0, e2e_ms=60.0), Tenant("x", tpot_ms=7.0, weight=3.0, priority=-1)),
)

KINDS = {
    "job type": Scenario(ONE, CHAT),
    "job types": Scenario(ONE, (CHAT, CODE)),
    "network": Scenario(TWO, (AGENT, FLAT)),
    "replay": Scenario(ONE, PLAIN),
    "priorities": Scenario(ONE, RANKED),
    "tenants": Scenario(ONE, SHARED),
    "replicas": Scenario((replace(ONE[0], replicas=2),), RANKED),
}


@pytest.fixture(params=KINDS, name="scenario")
def _scenario(request: pytest.FixtureRequest) -> Scenario:
    return KINDS[request.param]


def test_the_workload_is_what_users_wrote(scenario: Scenario) -> None:
    assert isinstance(scenario.workload, Demand)
    assert isinstance(scenario.workload, (tuple, Replay))
    assert scenario.demand is scenario.workload
    if isinstance(scenario.workload, tuple):
        assert scenario.workload == tuple(scenario.workload) == scenario.job_types
        assert hash(scenario.workload) == hash(tuple(scenario.workload))
        assert scenario == replace(scenario, workload=tuple(scenario.workload))
        assert pickle.loads(pickle.dumps(scenario.workload)).classes == scenario.classes
    else:
        assert scenario.job_types == ()


def test_classes_fit_what_they_refer_to(scenario: Scenario) -> None:
    demand, classes = scenario.demand, scenario.classes
    assert len({one.name for one in classes}) == len(classes) == len(demand.length_of)
    assert {one.job for one in classes} == set(range(len(demand.job_names)))
    assert len(demand.job_targets_ms) == len(demand.job_names)
    streams = len(demand.gap_samplers(1e5))
    assert {one.stream for one in classes} == set(range(streams))
    assert len(demand.workflows) == len(scenario.jobs) == len(demand.weights) == streams
    assert set(demand.length_of) == set(range(len(demand.length_samplers())))
    assert len(demand.prefix_sources(8)) in (1, len(classes))
    for one in classes:
        assert all(0 <= k < len(classes) for k in one.children)
        assert (one.engine in scenario.engine_names) or one.engine in ("a", "b", None)
        assert one.is_delay <= (one.engine is None and not any(one.targets_ms))


def test_rates_balance_and_means_add_up(scenario: Scenario) -> None:
    demand, classes = scenario.demand, scenario.classes
    rates = np.array([one.rate_per_s for one in classes])
    np.testing.assert_allclose(rates, demand.entering_per_s + demand.follows.T @ rates)
    calls = [one for one in classes if not one.is_delay]
    for name in ("mean_prefill", "mean_decode"):
        total = sum(one.rate_per_s * getattr(one, name) for one in calls)
        assert total == pytest.approx(demand.rate_per_s * getattr(demand, name))
        as_jobs = JobTypes(scenario.jobs)
        assert getattr(as_jobs, name) == pytest.approx(getattr(demand, name))
    assert demand.calls_per_job == pytest.approx(rates.sum() / demand.rate_per_s)
    assert demand.single_calls == (not any(one.children for one in classes))


def test_samplers_draw_what_the_classes_say(scenario: Scenario) -> None:
    demand, classes, count = scenario.demand, scenario.classes, 20_000
    words = np.random.default_rng(0).integers(0, 2**32, (2, count), np.uint32)
    samplers, index = demand.length_samplers(), jnp.arange(count) % 4
    for k, (one, law) in enumerate(zip(classes, demand.length_of, strict=True)):
        if one.is_delay or one.inherits:
            continue
        prefill, decode = map(np.asarray, samplers[law](index, jnp.asarray(words)))
        listed = getattr(samplers[law], "request_class", None)
        mine = np.full(count, True) if listed is None else np.asarray(listed)[index] == k
        assert prefill[mine].mean() == pytest.approx(one.mean_prefill, rel=0.03)
        assert decode[mine].mean() == pytest.approx(one.mean_decode, rel=0.03)
        assert prefill.max() <= demand.longest_prompt(one.engine or scenario.engine.name)


def test_gaps_add_up_to_the_arrivals(scenario: Scenario) -> None:
    ticks_per_s, count = 1000.0, 4000
    words = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, count, np.uint32))
    rates = [job.rate_per_s for job in scenario.jobs]
    for rate, process in zip(rates, scenario.demand.gap_samplers(ticks_per_s), strict=True):
        first, memory = process.first(words[0])
        gaps, _ = process.gaps(memory, jnp.int32(0), words)
        if scenario.demand.end_s is None:
            assert gaps.to_numpy().mean() == pytest.approx(ticks_per_s / rate, rel=0.06)
        else:
            times = first.to_numpy() + np.cumsum([0, *gaps.to_numpy()[:3]])
            np.testing.assert_array_equal(times, np.array(ROWS[0]) * ticks_per_s)
            assert times[-1] == scenario.demand.end_s * ticks_per_s


def test_another_rate_changes_nothing_else(scenario: Scenario) -> None:
    faster = scenario.at_rate(3 * scenario.arrival_rate_per_s)
    assert type(faster.workload) is type(scenario.workload)
    for before, after in zip(scenario.classes, faster.classes, strict=True):
        assert after.rate_per_s == pytest.approx(3 * before.rate_per_s)
        assert replace(after, rate_per_s=0) == replace(before, rate_per_s=0)
    if scenario.demand.end_s is not None:
        assert faster.demand.end_s == pytest.approx(scenario.demand.end_s / 3)


def test_what_ends_has_parts_and_a_stand_in(scenario: Scenario) -> None:
    demand = scenario.demand
    endless = demand.endless(scenario.engine.name)
    assert endless.end_s is None
    assert endless.rate_per_s == pytest.approx(demand.rate_per_s)
    assert {(c.name, c.priority, c.targets_ms, c.weight) for c in endless.classes} == {
        (c.name, c.priority, c.targets_ms, c.weight) for c in demand.classes
    }
    means = {c.name: (c.mean_prefill, c.mean_decode) for c in demand.classes}
    for one in endless.classes:
        assert (one.mean_prefill, one.mean_decode) == pytest.approx(means[one.name])
    if demand.end_s is None:
        assert endless is demand
        assert demand.listed_tokens() is None
        with pytest.raises(LLMGymError, match="never end"):
            demand.first(2)
    else:
        assert demand.first(2).end_s == 0.5
        np.testing.assert_array_equal(demand.listed_tokens(), [14, 23, 32, 41])  # type: ignore[arg-type]


def test_targets_can_be_overridden(scenario: Scenario) -> None:
    changed = scenario.override(ttft_ms=11.0, tpot_ms=None, e2e_ms=22.0)
    for one in changed.classes:
        assert one.targets_ms == ((None, None) if one.is_delay else (11.0, None))
    assert set(changed.demand.job_targets_ms) == {22.0}
    assert changed.has_targets
    none = scenario.override(ttft_ms=None, tpot_ms=None)
    assert not none.has_targets
    assert none.demand.job_targets_ms == scenario.demand.job_targets_ms
    with pytest.raises(LLMGymError, match="e2e_ms must be greater than 0"):
        scenario.override(e2e_ms=0.0)


def test_toml_keeps_all_of_it(scenario: Scenario) -> None:
    again = loads(dumps(scenario))
    assert again.classes == scenario.classes
    assert again.demand.job_targets_ms == scenario.demand.job_targets_ms
    assert dumps(again) == dumps(scenario)
    assert type(again.workload) is type(scenario.workload)


def test_the_classes_of_a_network() -> None:
    plan, tool, act, flat = KINDS["network"].classes
    assert plan == RequestClass(
        "agent.plan", 20.0, 4.0, 0.5, ttft_ms=300.0, engine="a", children=(1,)
    )
    # Two rounds on average; a call of 10 tokens begins with the 24 of the plan, and with what the
    # rounds before it left: 12 more tokens each, and one round came before on average.
    assert tool == RequestClass(
        "agent.tool", 0.0, 0.0, 1.0, stage=1, is_delay=True, hop=1, children=(2,)
    )
    assert replace(act, mean_prefill=0.0) == RequestClass(
        "agent.act", 0.0, 2.0, 1.0, stage=2, ttft_ms=300.0, engine="b", inherits=True, hop=1
    )
    assert act.mean_prefill == pytest.approx(10 + 24 + 12)
    assert flat == RequestClass("flat", 12.0, 3.0, 1.5, job=1, stream=1, weight=0.5, engine="b")
    assert KINDS["network"].demand.job_targets_ms == (9000.0, None)
    np.testing.assert_allclose(KINDS["network"].demand.entering_per_s, [0.5, 0, 0, 1.5])


def test_the_classes_of_replays() -> None:
    rate = 3 / 2
    assert KINDS["replay"].classes == (RequestClass("list", 25.0, 2.5, rate, ttft_ms=70.0),)
    urgent, rest = KINDS["priorities"].classes
    assert urgent == RequestClass("list, priority 5", 20.0, 3.0, rate / 4, priority=5, tpot_ms=9.0)
    assert (rest.job, rest.mean_prefill, rest.rate_per_s) == (0, 80 / 3, rate * 0.75)
    assert KINDS["priorities"].job_names == ("list",)
    y, x = KINDS["tenants"].classes
    assert (y.name, y.job, y.ttft_ms, x.job, x.weight, x.priority) == ("y", 0, 5.0, 1, 3.0, -1)
    assert KINDS["tenants"].demand.job_targets_ms == (60.0, None)


def test_prefixes_are_counted_in_blocks() -> None:
    chat, code = KINDS["job types"].demand.prefix_sources(8)
    assert (chat.count, code.count) == (6, 0)  # three variants of two blocks
    (listed,) = KINDS["replay"].demand.prefix_sources(8)
    assert listed.count == 6  # three stretches of two
    with pytest.raises(LLMGymError, match="not a multiple of block_size 12"):
        KINDS["replay"].demand.prefix_sources(12)
    cut = KINDS["replay"].demand.unshared(8)
    # The second prompt begins with the stretch of 16 tokens that the first has left.
    assert cut.listed_tokens().tolist() == [14, 23 - 16, 32, 41]  # type: ignore[union-attr]
    assert KINDS["tenants"].demand.unshared(8) is SHARED


def test_what_engines_cannot_serve_is_refused() -> None:
    with pytest.raises(LLMGymError, match="served by one engine or one group"):
        Scenario(TWO, PLAIN)
    with pytest.raises(LLMGymError, match="stage 'plan': Unknown engine 'a'"):
        Scenario(ONE, AGENT)
    with pytest.raises(LLMGymError, match="all are delays"):
        Scenario(ONE, JobType(Poisson(1.0), (Stage(delay_ms=5),)))  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="must be a Replay, a JobType, or several"):
        Scenario(ONE, ())
    with pytest.raises(LLMGymError, match="different names"):
        Scenario(ONE, (CHAT, replace(CODE, name="chat")))


def test_the_calls_of_one_engine_of_a_network() -> None:
    network = KINDS["network"].demand.calls_at("b", [2, 3], 0.5)
    assert [(one.name, one.rate_per_s, one.engine) for one in network.classes] == [
        ("agent.act", 0.5, "b"),
        ("flat", 0.75, "b"),
    ]
    assert RANKED.calls_at("b", [0], 0.5) is RANKED
