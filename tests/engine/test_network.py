"""Networks of engines: one engine as a network, the paper's examples, jobs and their parts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import Repeat, Stage, baselines
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.evaluation import policies, rollout
from llmgym.scenario.prefixes import SharedPrefix
from llmgym.theory.capacity import at_load

CHAT = llmgym.Workload(llmgym.Poisson(5), llmgym.Geometric(120), llmgym.Geometric(60), name="chat")
DIGEST = llmgym.Workload(llmgym.Poisson(2), llmgym.Geometric(700), llmgym.Fixed(9), name="digest")

SYSTEM_PROMPT = SharedPrefix(200, variants=3)


def everything(scenario: llmgym.Scenario, as_network: bool, policy: str, steps: int) -> list:
    """Batches, times and counts of a few environments, step by step."""
    physics, keys = simulator.lower(scenario, as_network=as_network), rollout.keys(0, 3)
    chosen = baselines.make(policy)
    carry = rollout.begin(physics, chosen, keys)
    carry, kept = rollout.run_chunk(physics, carry, keys, None, chosen, steps, False)
    state = carry.state
    parts = ("duration", "prefill_tokens", "decode_tokens", "requests", "present")
    found = [np.asarray(getattr(kept, name)).reshape(steps, 3) for name in parts]
    found.append(kept.backlog.to_numpy().reshape(steps, 3))
    totals = state.totals
    for name in ("lost", "found"):
        found.append(np.asarray(getattr(kept, name)).reshape(steps, 3))
    if kept.service is not None:
        found += [np.asarray(x).reshape(steps, -1) for x in vars(kept.service).values()]
    return [*found, state.clock.to_numpy(), totals.arrived, totals.dropped_of_class,
            totals.completed, totals.dropped, totals.request_ticks.to_numpy()]  # fmt: skip


MEMORY = llmgym.KVCache(60, 16)
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"max_num_seqs": 60},
    "recompute": {"kv_cache": MEMORY, "first_token": "prefill"},
    "swap": {"kv_cache": replace(MEMORY, swap_tokens_per_ms=50.0), "lengths_known": True},
    "prefix": {"kv_cache": replace(MEMORY, prefix_caching=True), "first_token": "prefill"},
    "roofline": {
        "batch_time": "a100-llama-3-8b",
        "max_num_seqs": 12,
        "seq_limit": "resident",
        "service_weights": (1, 2),
    },
}
POLICIES = {"plain": "sarathi", "recompute": "vllm_v1", "swap": "srpt", "roofline": "vtc"}
SLOW = {"swap", "prefix"}


@pytest.mark.parametrize(
    "feature", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FEATURES]
)
def test_one_engine_is_a_network_of_one(feature: str) -> None:
    digest = replace(DIGEST, stages=(replace(DIGEST.stages[0], shared_prefix=SYSTEM_PROMPT),))
    scenario = llmgym.scenario("paper-figure-1", workload=(CHAT, digest), **FEATURES[feature])
    scenario = replace(scenario.at_rate(9.0), slots=96 if feature == "prefix" else 256)
    policy, steps = POLICIES.get(feature, "orca"), 150 if feature == "prefix" else 300
    one, other = (everything(scenario, as_network, policy, steps) for as_network in (False, True))
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one[-3].sum() > 10, "completed"


def test_a_replay_keeps_its_tenants_behind_replicas() -> None:
    """Two replicas in turn serve what two engines serve that each get every second request."""
    times, tenant = np.arange(40) * 0.05, np.array(["a", "b", "b"] * 14)[:40]
    replay = llmgym.Replay(times, [90] * 40, [20] * 40, tenant=tenant,
        tenants=(llmgym.Tenant("a", priority=1), llmgym.Tenant("b")))  # fmt: skip
    base = llmgym.scenario("paper-figure-1", workload=replay, slots=64)
    both = llmgym.simulate(base.override(replicas=2, router="round_robin"), "vllm_v1_priority")
    for replica in range(2):
        mine = slice(replica, None, 2)
        half = replace(replay, arrival_s=times[mine], prefill_tokens=[90] * 20,
            decode_tokens=[20] * 20, tenant=tenant[mine])  # fmt: skip
        alone = llmgym.simulate(replace(base, workload=half), "vllm_v1_priority").requests
        found = both.requests[both.requests.engine == f"engine-{replica + 1}"]
        for column in ("job_type", "arrival_ms", "first_token_ms", "finish_ms"):
            assert found[column].tolist() == alone[column].tolist(), column


def workflow() -> llmgym.Scenario:
    """Everything at once: a fork, a delay, a join that inherits, a choice, a loop, replicas."""
    stages = (
        Stage(100, 20, engine="a", name="plan"),
        Stage(200, 30, engine="a", name="left", after="plan"),
        Stage(llmgym.Geometric(150), 30, engine="b", name="right", after="plan"),
        Stage(delay_ms=llmgym.Geometric(300), name="tool", after="left"),
        Stage(50, 20, engine="b", name="join", after=("tool", "right"), inherits=True,
              repeat=Repeat("plan", probability=0.3)),
        Stage(10, 10, engine="a", name="short", after="join", probability=0.25),
        Stage(10, 20, engine="b", name="long", after="join", probability=0.75),
    )  # fmt: skip
    engines = (
        llmgym.Engine(llmgym.CODELLAMA_34B_A100, 512, name="a"),
        llmgym.Engine(llmgym.Affine(20.0, 0.1), 512, name="b", replicas=2),
    )
    job = llmgym.JobType(llmgym.Poisson(2), stages, name="job")
    return llmgym.Scenario(engines, (job,), slots=64)


@pytest.fixture(scope="module")
def run() -> llmgym.Run:
    return llmgym.simulate(workflow(), "sarathi", duration_s=200, num_envs=3, seed=1)


def test_calls_follow_the_workflow(run: llmgym.Run) -> None:
    calls, flow = run.requests, run.scenario.job_types[0].workflow
    per_job = calls.groupby("stage").size() / run.summary["arrived"]
    assert np.abs(per_job.to_numpy() / flow.visits - 1).max() < 0.12
    done = calls[calls.finish_ms.notna()]
    mine = done[done.stage == 4]
    assert mine.prefill_tokens.mean() == pytest.approx(flow.means[4, 0], rel=0.05)
    # A join starts when the later of its two sides ends.
    sides = [done[(done.stage == v) & (done.visit == 0)].set_index(["env", "job"]) for v in (2, 3)]
    first = mine[mine.visit == 0].set_index(["env", "job"])
    last = np.maximum(*(s.finish_ms.reindex(first.index) for s in sides))
    np.testing.assert_allclose(first.arrival_ms, last)
    context = [s.prefill_tokens + s.decode_tokens for s in sides[:1]]
    inherited = first.prefill_tokens - 50 - 230  # own prompt; what `left` passes through the tool
    np.testing.assert_array_equal(inherited, context[0].reindex(first.index))
    assert set(done[done.stage == 2].engine) == {"b-1", "b-2"}
    assert set(done[done.stage == 3].engine) == {""}


def test_the_parts_of_a_job_add_up(run: llmgym.Run) -> None:
    jobs = run.jobs
    assert len(jobs) == run.summary["completed"] > 900
    parts = jobs.waiting_ms + jobs.service_ms + jobs.delay_ms
    np.testing.assert_allclose(parts, jobs.e2e_ms, atol=1e-6)
    assert (jobs.join_waiting_ms >= 0).all()
    assert jobs.join_waiting_ms.max() > 0
    stages = run.stages
    assert stages.critical_share.sum() == pytest.approx(1.0)
    assert (run.summary["completed"] + run.raw["end_present"].sum()) == run.summary["arrived"]
    in_system = run.summary["requests_per_s"] * run.summary["e2e_ms"]["mean"] / 1000
    assert run.summary["mean_in_system"] == pytest.approx(in_system, rel=0.1)  # Little's law


@pytest.mark.parametrize(
    "router",
    [
        "power_of_two",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("random", "round_robin", "fewest_requests", "fewest_tokens", "least_kv")
        ),
    ],
)
def test_routers_use_all_replicas(router: str) -> None:
    scenario = llmgym.scenario("load-balanced", router=router, replicas=3)
    batches = llmgym.simulate(scenario, "orca", duration_s=60, seed=2).batches
    share = batches.groupby("engine").prefill_tokens.sum() / batches.prefill_tokens.sum()
    # The emptiest replica, the first at a tie, has the most to do at low load.
    assert len(share) == 3
    assert share.min() > (
        0.05 if router in ("fewest_requests", "fewest_tokens", "least_kv") else 0.3
    )
    counts = batches.groupby("engine").requests.sum()
    assert counts.sum() > 5000


def test_a_state_that_no_one_serves_waits() -> None:
    scenario = llmgym.scenario("rybko-stolyar", slots=64)
    run = llmgym.simulate(scenario, "idle", duration_s=1, num_envs=2)
    assert len(run.batches) == 0
    assert run.summary["dropped"] == run.summary["arrived"] - 2 * 64


@pytest.mark.parametrize(
    "name",
    [
        "priority",
        "global_fcfs",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "fbfs",
                "lbfs",
                "round_robin",
                "longest_queue",
                "longest_workload",
                "token_pressure",
            )
        ),
    ],
)
def test_network_policies_serve_everyone_at_low_load(name: str) -> None:
    scenario = at_load(llmgym.scenario("rybko-stolyar-reversed", slots=256), 0.4)
    run = llmgym.simulate(scenario, name, duration_s=0.6, num_envs=2)
    served = run.requests
    assert run.summary["dropped"] == 0
    late = served[served.finish_ms.isna()].arrival_ms.min()
    assert late > 400


@pytest.mark.slow
def test_priorities_come_first() -> None:
    scenario = llmgym.scenario("rybko-stolyar", slots=512)
    physics, keys = simulator.lower(scenario), rollout.keys(0, 8)
    policy = baselines.make("priority")
    carry = rollout.begin(physics, policy, keys)
    clashes = 0
    for _ in range(20):
        carry, _ = rollout.run_chunk(physics, carry, keys, None, policy, 20, False)
        view = simulator.view(physics, carry.state)
        batch = np.asarray(policy(keys, view).tokens)
        first = np.isin(np.asarray(view.job_class), (1, 3))  # the second calls
        demand = np.asarray(view.demand)
        left = (demand - batch)[:]
        starved = (np.where(first, left, 0).sum(0) > 0) & (np.where(~first, batch, 0).sum(0) > 0)
        assert not starved.any()
        clashes += int(
            (
                (np.where(first, demand, 0).sum(0) > 0) & (np.where(~first, demand, 0).sum(0) > 0)
            ).sum()
        )
    assert clashes > 30


@pytest.mark.slow
def test_the_oldest_job_comes_first() -> None:
    scenario = llmgym.scenario("lu-kumar", slots=256)
    physics, keys = simulator.lower(scenario), rollout.keys(0, 8)
    policy = baselines.make("global_fcfs")
    start = rollout.begin(physics, policy, keys)
    carry, _ = rollout.run_chunk(physics, start, keys, None, policy, 800, False)
    view = simulator.view(physics, carry.state)
    tokens = np.asarray(policy(keys, view).tokens)
    prompts, age = np.asarray(view.prefill), np.asarray(view.job_age)
    whole = (prompts > 0) & (tokens == prompts)
    none = (prompts > 0) & (tokens == 0)
    youngest = np.where(whole, age, 2**30).min(0)
    oldest = np.where(none, age, -1).max(0)
    assert (oldest <= youngest).all()
    assert none.any()
    assert (np.asarray(jnp.sum(policy(keys, view).tokens, 0)) <= 768).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "b", "after": "c"}, "stage 'b': Unknown stage 'c'"),
        ({"name": "b", "after": "b"}, "stage 'b': it waits for itself"),
        ({"name": "a"}, "two stages have this name"),
        ({"name": "b", "probability": 0.5}, "add up to 0.5, not 1"),
        ({"name": "b", "engine": "x"}, "stage 'b': Unknown engine 'x'"),
        ({"name": "b", "repeat": Repeat("z", rounds=2)}, "stage 'b': Unknown stage 'z'"),
    ],
)
def test_workflows_that_make_no_sense(change: dict, message: str) -> None:
    def build() -> llmgym.Scenario:
        stages = (Stage(5, 5, name="a"), Stage(5, 5, **change))
        job = llmgym.JobType(llmgym.Poisson(1), stages)
        return llmgym.Scenario((llmgym.Engine(llmgym.CODELLAMA_34B_A100, 128),), (job,))

    with pytest.raises(LLMGymError, match=message):
        build()


def test_stages_and_loops_that_make_no_sense() -> None:
    for bad in (
        {"probability": 1.0},
        {"probability": -0.1},
        {"rounds": 0},
        {},
        {"rounds": 2, "probability": 0.5},
    ):
        with pytest.raises(LLMGymError):
            Repeat("a", **bad)
    with pytest.raises(LLMGymError, match="never ends"):
        Repeat("a", probability=1.0)
    with pytest.raises(LLMGymError, match="nothing leads to it"):
        llmgym.JobType(
            llmgym.Poisson(1),
            (Stage(5, 5, name="a"), Stage(5, 5, name="b", after="a", probability=1.0),
             Stage(5, 5, name="c", after="a", probability=0.0)),
        )  # fmt: skip
    with pytest.raises(LLMGymError, match="all are delays"):
        llmgym.Scenario(
            (llmgym.Engine(llmgym.CODELLAMA_34B_A100, 128),),
            (llmgym.JobType(llmgym.Poisson(1), (Stage(delay_ms=5),)),),
        )
    with pytest.raises(LLMGymError, match="make it two stages"):
        Stage(5, 5, delay_ms=5)
    with pytest.raises(LLMGymError, match="left at stage"):
        llmgym.JobType(
            llmgym.Poisson(1),
            (Stage(5, 5, name="a"), Stage(5, 5, name="b", repeat=Repeat("a", rounds=2)),
             Stage(5, 5, name="c", after="a")),
        )  # fmt: skip
    with pytest.raises(LLMGymError, match="Network-v0"):
        llmgym.functional("llmgym/Engine-v0", scenario="rybko-stolyar")


def test_longest_prompts_carry_the_context() -> None:
    short, long = llmgym.Uniform(5, 10), llmgym.Uniform(50, 100)

    def stage(name: str, after: str | None = None, repeat: Repeat | None = None) -> Stage:
        return Stage(short, long, name=name, engine=name, after=after, inherits=True, repeat=repeat)

    chain = llmgym.JobType(llmgym.Poisson(1), (stage("a"), stage("b", "a")))
    assert chain.workflow.longest_prompts == (10, 120)
    back = Repeat("b", rounds=2)
    loop = llmgym.JobType(llmgym.Poisson(1), (stage("a"), stage("b", "a", back)))
    assert loop.workflow.longest_prompts == (10, math.inf)

    engines = tuple(llmgym.Engine(llmgym.Affine(1.0, 0.1), 100, name=n) for n in "ab")
    scenario = llmgym.Scenario(engines, (chain,))
    assert policies.check(baselines.make("vllm", token_budget=10), scenario) is not None
    assert "120 tokens" in (policies.check(baselines.make("vllm"), scenario) or "")
    assert policies.check(baselines.make("vllm", prompts="split"), scenario) is None
    roomy = tuple(replace(engine, token_budget=120) for engine in engines)
    assert policies.check(baselines.make("vllm"), replace(scenario, engines=roomy)) is None


@pytest.mark.slow
def test_load_balancing() -> None:
    scenario = llmgym.scenario("load-balanced")
    limit = llmgym.capacity(scenario).requests_per_s
    assert limit == pytest.approx(33.43, abs=0.01)  # arXiv:2504.07347v3, Prop. 3
    found = llmgym.estimate_capacity(scenario, "sarathi")
    assert found.requests_per_s == pytest.approx(limit, rel=0.003)


@pytest.mark.slow
def test_rybko_stolyar() -> None:
    """Section 5.4: exit priority oscillates with growing peaks, entry priority does not."""
    peaks = {}
    for name, slots in (("rybko-stolyar", 8192), ("rybko-stolyar-reversed", 1024)):
        scenario = llmgym.scenario(name, slots=slots)
        run = llmgym.simulate(scenario, "priority", duration_s=4.5, num_envs=8, record=False)
        assert run.summary["dropped"] == 0
        peaks[name] = run.raw["backlog"].max(axis=0)
    assert np.median(peaks["rybko-stolyar"]) > 1e6
    assert peaks["rybko-stolyar-reversed"].max() < 60_000
