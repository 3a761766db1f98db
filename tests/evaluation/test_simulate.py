"""``simulate``: published examples batch by batch, and its tables and averages against one another."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import llmgym
from llmgym import Affine, LLMGymError, Replay, Run, Scenario, Workload, baselines, simulate
from llmgym.engine.view import Batch, View

FIGURE_8 = [
    ("vllm", 4, "ABCd | DEp | ABCDd | BCEd | Bd"),
    ("faster_transformer", 4, "ABCd | ABCd | BCd | Bd | DEp | DEd"),
    ("sarathi", 4, "ABCd | ABCd+Dp | BCDd+Ep | BEd"),
    ("orca", 5, "ABCd | ABCd+DEp | BCDEd | Bd"),
    ("orca", 4, "ABCd | ABd+DEp | BCDEd | BCd"),
]


def row_of(text: str) -> list[dict[str, str]]:
    """Requests of each batch by phase: {"d": "ABC", "p": "D"}."""
    batches = [batch.split("+") for batch in text.split(" | ")]
    return [{part[-1]: part[:-1] for part in parts} for parts in batches]


@pytest.mark.parametrize(("policy", "budget", "text"), FIGURE_8, ids=lambda v: str(v).split()[0])
def test_figure_8_batch_by_batch(policy: str, budget: int, text: str) -> None:
    # t_b = 1; A, B and C have 2, 4 and 3 output tokens left; D, then E, arrive during batch 1.
    workload = Replay([0, 0, 0, 0.0002, 0.0004], [0, 0, 0, 1, 1], [2, 4, 3, 1, 1])
    scenario = Scenario.single_engine(
        batch_time=Affine(c_ms=1, a_ms_per_token=0), token_budget=budget, workload=workload
    )
    run = simulate(scenario, policy, record=True)
    expected = row_of(text)
    prefill = [len(batch.get("p", "")) for batch in expected]
    decode = [len(batch.get("d", "")) for batch in expected]
    assert run.batches.prefill_tokens.tolist() == prefill
    assert run.batches.decode_tokens.tolist() == decode
    assert run.batches.requests.tolist() == [p + d for p, d in zip(prefill, decode, strict=True)]
    assert run.batches.start_ms.tolist() == list(range(len(expected)))
    for name, request in zip("ABCDE", run.requests.itertuples(), strict=True):
        ends = [at + 1 for at, batch in enumerate(expected) if name in batch.get("d", "")]
        assert len(ends) == request.decode_tokens
        assert (request.first_token_ms, request.finish_ms) == (ends[0], ends[-1])


@pytest.mark.parametrize(
    ("policy", "budget", "backlog"),
    [("sarathi", 128, 50_140), ("orca", 128, 98_219), ("sarathi", 1024, 103_187)],
)
def test_corner_c(policy: str, budget: int, backlog: int) -> None:
    scenario = llmgym.scenario("corner-c", token_budget=budget)
    run = simulate(scenario, policy, duration_s=140)
    assert run.summary["backlog_tokens"] == backlog
    assert run.summary["dropped"] == 0
    last = run.batches.tail(500)
    locked = (last.prefill_tokens == 29) & (last.decode_tokens == 99)
    assert locked.all() == (policy == "sarathi" and budget == 128)


@pytest.mark.parametrize("policy", ["faster_transformer", "vllm"])
def test_whole_prompts_never_run_at_corner_c(policy: str) -> None:
    scenario = llmgym.scenario("corner-c", token_budget=128)
    with pytest.warns(llmgym.UnservableWarning, match="290 tokens") as told:
        run = simulate(scenario, policy, duration_s=140)
    assert told[0].filename == __file__  # the line of the user's, not one of llmgym
    assert len(run.batches) == 0
    assert run.summary["backlog_tokens"] == 382_720
    assert run.summary["elapsed_s"] == pytest.approx(140)


def two_classes(slots: int = 40) -> Scenario:
    """Two job types near full load."""
    jobs = (
        Workload(llmgym.Poisson(9.0), llmgym.Geometric(40.0), llmgym.Geometric(20.0), name="chat"),
        Workload(llmgym.Deterministic(4.0), 70, llmgym.Uniform(0, 30), name="code"),
    )
    return Scenario.single_engine(Affine(9.0, 0.8), 64, jobs, slots=slots, max_num_seqs=12)


@cache
def busy_run(num_envs: int = 3, record: bool = True, slots: int = 40, warmup_s: float = 0) -> Run:
    """A run with drops, unfinished requests and several chunks."""
    scenario = two_classes(slots)
    return simulate(
        scenario,
        "orca",
        duration_s=90,
        num_envs=num_envs,
        seed=5,
        record=record,
        warmup_s=warmup_s,
    )


def ticks(column: pd.Series) -> np.ndarray:
    """Milliseconds as ticks of 0.01 ms, which they are."""
    values = column.to_numpy() * 100
    np.testing.assert_allclose(values, np.rint(values), atol=1e-4)
    return np.rint(values)


@pytest.mark.parametrize(("slots", "warmup_s"), [(40, 0), (40, 30), (400, 0)])
def test_littles_law_holds_exactly(slots: int, warmup_s: float) -> None:
    run = busy_run(slots=slots, warmup_s=warmup_s)
    begin, end = run.raw["warm_clock"], run.raw["end_clock"]
    requests = run.requests
    arrival, env = ticks(requests.arrival_ms), requests.env.to_numpy()
    finish = np.where(requests.finish_ms.isna(), end[env], ticks(requests.finish_ms.fillna(0)))
    sojourn = np.maximum(finish - np.maximum(arrival, begin[env]), 0)
    expected = sojourn.sum() / (end - begin).sum()
    assert run.summary["mean_in_system"] == pytest.approx(expected, rel=1e-12)
    assert (run.summary["dropped"] > 0) == (slots == 40)
    assert requests.finish_ms.isna().any()


@pytest.mark.parametrize("warmup_s", [0, 30])
def test_the_summary_follows_from_the_tables(warmup_s: float) -> None:
    run = busy_run(warmup_s=warmup_s)
    summary, begin_ms = run.summary, run.raw["warm_clock"] * run.tick_ms
    seconds = (run.raw["end_clock"] - run.raw["warm_clock"]).sum() * run.tick_ms / 1000
    requests, batches = run.requests, run.batches
    assert seconds == pytest.approx(3 * (90 - warmup_s), rel=0.01)

    end = batches.start_ms + batches.duration_ms
    counted = batches[end > begin_ms[batches.env] + 1e-6]
    tokens = (counted.prefill_tokens + counted.decode_tokens).sum()
    assert summary["tokens_per_s"] == pytest.approx(tokens / seconds)
    assert summary["batches"] == len(batches)

    done = requests[requests.finish_ms > begin_ms[requests.env] + 1e-6]
    assert summary["requests_per_s"] == pytest.approx(len(done) / seconds)
    assert summary["completed"] == requests.finish_ms.notna().sum()
    assert summary["unfinished"] * 3 == requests.finish_ms.isna().sum()
    assert summary["in_system"] == summary["unfinished"]
    assert summary["arrived"] == len(requests) + summary["dropped"]
    served = (batches.prefill_tokens + batches.decode_tokens).sum()
    offered = (requests.prefill_tokens + requests.decode_tokens).sum()
    assert offered == served + summary["backlog_tokens"] * 3

    several = done[done.decode_tokens > 1]
    latencies = {
        "ttft_ms": (done.env, done.first_token_ms - done.arrival_ms),
        "e2e_ms": (done.env, done.finish_ms - done.arrival_ms),
        "tpot_ms": (
            several.env,
            (several.finish_ms - several.first_token_ms) / (several.decode_tokens - 1),
        ),
    }
    for name, (env, values) in latencies.items():
        quantiles = values.quantile([0.5, 0.9, 0.99]).tolist()
        expected = dict(zip(("p50", "p90", "p99"), quantiles, strict=True))
        for key, value in {"mean": values.mean(), **expected}.items():
            assert summary[name][key] == pytest.approx(value), (name, key)
        assert summary[name]["low"] < values.groupby(env).mean().mean() < summary[name]["high"]


def test_the_tables_are_consistent() -> None:
    run = busy_run()
    batches, requests, trajectory = run.batches, run.requests, run.trajectory
    for _, one in batches.groupby("env"):
        end = (one.start_ms + one.duration_ms).to_numpy()
        assert (one.start_ms.to_numpy()[1:] >= end[:-1] - 1e-6).all()
    tokens = batches.prefill_tokens + batches.decode_tokens
    np.testing.assert_allclose(batches.duration_ms, 9 + 0.8 * tokens)
    assert (batches.requests <= 12).all()
    assert tokens.max() <= 64
    assert set(batches.engine) == set(requests.engine) == {"engine"}
    assert set(requests.job_type) == {"chat", "code"}
    assert requests.arrival_ms.groupby(requests.env).is_monotonic_increasing.all()
    assert not requests.duplicated(["env", "job_type", "job"]).any()
    done = requests.dropna()
    assert (done.first_token_ms > done.arrival_ms).all()
    assert (done.finish_ms >= done.first_token_ms).all()
    assert requests.columns.tolist() == [
        "env",
        "job",
        "stage",
        "engine",
        "job_type",
        "prefill_tokens",
        "decode_tokens",
        "arrival_ms",
        "first_token_ms",
        "finish_ms",
        "preemptions",
    ]
    assert trajectory.in_system.max() == 40
    at_start = trajectory[trajectory.time_ms == 0]
    assert (at_start.in_system == 0).all()


def test_another_seed_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert "Compiling" in caplog.text  # else the rest could not fail
        simulate(two_classes(), "orca", duration_s=5, seed=0)
        caplog.clear()
        runs = [simulate(two_classes(), "orca", duration_s=5, seed=seed) for seed in (1, 2)]
        assert len({len(run.requests) for run in runs}) == 2
    assert "Compiling" not in caplog.text


def test_an_environment_and_its_seed_fix_everything() -> None:
    three, one = busy_run(), busy_run(num_envs=1)
    for name in ("requests", "batches", "trajectory"):
        first = getattr(three, name)
        alone = first[first.env == 0].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, getattr(one, name))
    again = simulate(two_classes(), "orca", duration_s=90, seed=5)
    pd.testing.assert_frame_equal(again.requests, one.requests)
    other = simulate(two_classes(), "orca", duration_s=90, seed=6)
    assert not other.requests.arrival_ms.head(50).equals(one.requests.arrival_ms.head(50))
    assert three.requests.groupby("env").arrival_ms.first().nunique() == 3


def test_without_a_record_only_the_latencies_are_missing() -> None:
    full, bare = busy_run(), busy_run(record=False)
    assert len(bare.requests) == 0
    pd.testing.assert_frame_equal(full.batches, bare.batches)
    for name, value in full.summary.items():
        if isinstance(value, dict):
            assert np.isnan(list(bare.summary[name].values())).all()
        else:
            assert bare.summary[name] == value, name


def test_a_replay_runs_to_its_end() -> None:
    replay = Replay([0.0, 1.0, 500.0], [5, 0, 3], [2, 1, 0], name="list")
    scenario = Scenario.single_engine(Affine(2.0, 1.0), 8, replay)
    run = simulate(scenario, "sarathi")
    # 5 prompt tokens take 7 ms, a token 3 ms, 3 prompt tokens 5 ms.
    assert run.requests.finish_ms.tolist() == [13.0, 1003.0, 500_005.0]
    assert run.requests.first_token_ms.tolist() == [10.0, 1003.0, 500_005.0]
    assert run.requests.job_type.tolist() == ["list"] * 3
    assert run.requests.job.tolist() == [0, 1, 2]
    assert run.summary["elapsed_s"] == pytest.approx(500.005)
    short = simulate(scenario, "sarathi", duration_s=1.001)
    assert short.requests.finish_ms.tolist() == [13.0, 1003.0]
    assert short.summary["elapsed_s"] == pytest.approx(1.003)  # the batch under way ends


def test_an_idle_engine_stops_at_the_horizon() -> None:
    scenario = llmgym.scenario("paper-figure-1", slots=40)
    run = simulate(scenario, "idle", duration_s=7.5, num_envs=2, warmup_s=2.5)
    np.testing.assert_array_equal(run.raw["end_clock"], 750_000)
    np.testing.assert_array_equal(run.raw["warm_clock"], 250_000)
    assert run.summary["requests_per_s"] == run.summary["tokens_per_s"] == 0
    assert run.summary["in_system"] == 40
    assert np.isnan(run.summary["ttft_ms"]["mean"])


def head_of_line(key: jax.Array, view: View) -> Batch:
    """One request at a time, as much of it as fits."""
    first = jnp.cumsum(view.live) == 1
    return Batch(jnp.where(first & view.live, view.demand, 0))


def test_any_function_is_a_policy() -> None:
    replay = Replay([0.0, 0.0], [20, 3], [2, 1])
    scenario = Scenario.single_engine(Affine(1.0, 0.0), 8, replay)
    run = simulate(scenario, head_of_line, num_envs=2)
    assert run.policy == "head_of_line"
    one = run.batches[run.batches.env == 1]
    assert one.prefill_tokens.tolist() == [8, 8, 4, 0, 0, 3, 0]
    assert one.decode_tokens.tolist() == [0, 0, 0, 1, 1, 0, 1]
    own = simulate(scenario, baselines.make("sarathi", token_budget=4))
    assert (own.batches.prefill_tokens + own.batches.decode_tokens).max() == 4


def test_progress_goes_up_to_one() -> None:
    seen: list[float] = []
    simulate(two_classes(), "sarathi", duration_s=60, record=False, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_load_is_a_fraction_of_the_capacity() -> None:
    scenario = llmgym.scenario("paper-figure-1", token_budget=512)
    run = simulate(scenario, "sarathi", load=0.5, duration_s=5)
    limit = llmgym.capacity(scenario).requests_per_s
    assert run.scenario.arrival_rate_per_s == pytest.approx(0.5 * limit)
    unscaled = simulate(scenario, "sarathi", duration_s=5)
    assert unscaled.scenario.arrival_rate_per_s == scenario.arrival_rate_per_s


NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "paper-figure-2"}, "Did you mean 'paper-figure-1'"),
        ({"policy": "saratji"}, "Did you mean 'sarathi'"),
        ({"policy": 7}, "policy is a name or a function"),
        ({"load": 0}, "load must be greater than 0"),
        ({"load": -0.5}, "load must be greater than 0"),
        ({"load": NAN}, "load must be finite"),
        ({"duration_s": None}, "duration_s is needed"),
        ({"duration_s": 0}, "duration_s must be greater than 0"),
        ({"duration_s": -3}, "duration_s must be greater than 0"),
        ({"duration_s": NAN}, "duration_s must be finite"),
        ({"duration_s": "long"}, "duration_s must be a number"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"num_envs": 1.5}, "num_envs must be a whole number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be at most"),
        ({"seed": 0.5}, "seed must be a whole number"),
        ({"warmup_s": -1}, "warmup_s must be at least 0"),
        ({"warmup_s": 10}, "must be below duration_s"),
        ({"warmup_s": NAN}, "warmup_s must be finite"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"scenario": "paper-figure-1", "policy": "sarathi", "duration_s": 10.0}
    with pytest.raises(LLMGymError, match=message):
        simulate(**(arguments | changes))


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_backlog_beyond_32_bits_is_counted_to_the_last_token(replicas: int) -> None:
    # 2,100 prompts of a megatoken: 2.2e9 tokens, more than 2**31.
    prompts = np.full(2100, 2**20)
    replay = llmgym.Replay(np.zeros(2100), prompts, np.ones(2100, int))
    scenario = llmgym.Scenario.single_engine(llmgym.Affine(1.0, 0.0), 2**16, replay, slots=2100)
    scenario = scenario.override(replicas=replicas, router="round_robin")
    run = llmgym.simulate(scenario, "sarathi", duration_s=0.02, record=False)
    served = run.raw["prefill_tokens"].sum() + run.raw["decode_tokens"].sum()
    assert served == 20 * 2**16 * replicas
    assert run.summary["backlog_tokens"] == 2100 * (2**20 + 1) - served
    assert run.trajectory.backlog_tokens.iloc[0] == 2100 * (2**20 + 1)
    assert run.trajectory.backlog_tokens.is_monotonic_decreasing
