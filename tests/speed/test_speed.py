"""The measurement of speed, and the event loops that it is compared with."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.cli.tables import speed_table
from llmgym.core import blocks
from llmgym.core.errors import LLMGymError, UnservableWarning
from llmgym.core.files import to_json
from llmgym.evaluation import fleet, rollout
from llmgym.speed import event_loop as rival
from llmgym.speed import interfaces as speed

LOOPS = [False] if rival.machine_code() is None else [False, True]
"""The event loop in Python, and compiled where numba is installed."""

RANDOM = baselines.make("random")


def leaves(made: fleet.Fleet) -> list[np.ndarray]:
    """Every array of the states, blocks joined along the axis of environments."""
    blocks = [jax.tree.leaves(state) for state in made.states]
    return [np.concatenate(parts, axis=-1) for parts in zip(*blocks, strict=True)]


@pytest.mark.slow
def test_results_do_not_depend_on_blocks_and_threads() -> None:
    scenario = fleet.speed_scenario(slots=32)
    whole = fleet.Fleet(scenario, RANDOM, 13, steps=30, seed=5, block=13, threads=1)
    split = fleet.Fleet(scenario, RANDOM, 13, steps=30, seed=5, block=3, threads=2)
    assert [len(f.states) for f in (whole, split)] == [1, 6]
    assert whole.run(2) == split.run(2) == 13 * 60
    for one, other in zip(leaves(whole), leaves(split), strict=True):
        np.testing.assert_array_equal(one, other)
    # And they are those of every other run.
    key = rollout.keys(5, 13)
    carry = rollout.begin(whole.physics, RANDOM, key)
    carry, _ = rollout.run_chunk(whole.physics, carry, key, None, RANDOM, 60, False)
    for one, other in zip(leaves(whole), jax.tree.leaves(carry), strict=True):
        np.testing.assert_array_equal(one, other)


def test_default_blocks_give_every_thread_the_same() -> None:
    cases = [(1024, 256), (1000, 256), (64, 256), (1, 256), (300, 2048)]
    for num_envs, slots in cases:
        sizes = blocks.block_sizes(num_envs, slots, threads=2)
        assert sum(sizes) == num_envs
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) * slots <= 2**16
        assert len(sizes) % 2 == 0 or num_envs == 1


def test_measure_counts_what_it_did() -> None:
    result = speed.measure(6, slots=16, steps=20, warm_up=40, repeats=5, seed=1)
    assert 0 < result.steps_per_s <= result.best_steps_per_s
    assert result.compile_s > 0
    assert result.peak_memory_mb > 50
    # 16 slots are far too few: most arrivals are lost, and all slots are taken most of the time.
    assert 0 < result.dropped < result.arrived
    assert 14 < result.mean_in_system <= 16
    assert 0 < result.cores_used < result.cores + 1
    printed = json.loads(to_json(speed.as_json(result)))
    assert printed["steps_per_s"] == result.steps_per_s
    assert printed["policy"] == "sarathi"
    assert printed["load"] == fleet.LOAD


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs"),
        ({"slots": 0}, "slots"),
        ({"policy": "sarathy"}, "Did you mean 'sarathi'"),
        ({"load": -1.0}, "load"),
        ({"steps": 0}, "steps"),
        ({"block": 0}, "block"),
        ({"threads": 0}, "threads"),
        ({"repeats": 0}, "repeats"),
        ({"seed": -1}, "seed"),
    ],
)
def test_measure_names_bad_arguments(settings: dict[str, object], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        speed.measure(**settings)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error::llmgym.core.errors.UnservableWarning")
def test_measure_warns_where_prompts_never_fit() -> None:
    with pytest.raises(UnservableWarning, match="prompts='split'"):
        speed.measure(2, slots=16, policy="vllm")


@pytest.mark.parametrize(("slots", "budget"), [(12, 40), (48, 16)])
def test_rival_runs_the_batches_of_the_engine(slots: int, budget: int) -> None:
    # Bursts that overflow the slots, gaps that empty the engine, prompts above the budget.
    random = np.random.default_rng(budget)
    gaps = random.integers(0, 9_000, 300) * (random.random(300) < 0.4)
    gaps[::60] = 4_000_000
    requests = rival.Requests(
        np.cumsum(gaps), random.integers(1, 60, 300), random.integers(1, 30, 300)
    )
    replay = llmgym.Replay(requests.arrival / 1e5, requests.prefill, requests.decode)
    scenario = llmgym.scenario("geometric", slots=slots, token_budget=budget, workload=replay)
    run = llmgym.simulate(scenario, "sarathi")
    assert 0 < run.summary["dropped"] < 200
    served = run.requests.set_index("job").sort_index()
    assert np.isfinite(served.finish_ms).all()
    for compiled in LOOPS:
        history = rival.simulate(scenario, requests, steps=20_000, compiled=compiled)
        ran = history.prefill + history.decode > 0
        assert history.dropped == run.summary["dropped"]
        np.testing.assert_array_equal(history.prefill[ran], run.batches.prefill_tokens)
        np.testing.assert_array_equal(history.decode[ran], run.batches.decode_tokens)
        np.testing.assert_allclose(history.start[ran] / 100, run.batches.start_ms, rtol=1e-12)
        for name, ticks in (("finish_ms", history.finish), ("first_token_ms", history.first_token)):
            np.testing.assert_array_equal(np.flatnonzero(ticks >= 0), served.index)
            np.testing.assert_allclose(ticks[served.index] / 100, served[name], rtol=1e-12)
        assert history.request_ticks == run.raw["end_request_ticks"].sum()


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(values.size))


@pytest.mark.slow
@pytest.mark.parametrize("slots", [128, 256])
def test_rival_agrees_with_the_engine_in_the_long_run(slots: int) -> None:
    scenario, count, warm_s, end_s = fleet.speed_scenario(slots), 24, 100, 500
    run = llmgym.simulate(
        scenario, "sarathi", duration_s=end_s, warmup_s=warm_s, num_envs=count, record=False
    )
    passed = {k: run.raw[f"end_{k}"] - run.raw[f"warm_{k}"] for k in ("clock", "completed")}
    present = run.raw["end_request_ticks"] - run.raw["warm_request_ticks"]
    engine = {
        "requests_per_s": passed["completed"] / passed["clock"] * 1e5,
        "mean_in_system": present / passed["clock"],
    }
    loop: dict[str, list[float]] = {name: [] for name in engine}
    for seed in range(count):
        requests = rival.Requests.draw(scenario, 13 * end_s, seed)
        history = rival.simulate(scenario, requests, 50_000, compiled=LOOPS[-1])
        served = history.finish >= 0
        arrival, finish = requests.arrival[served] / 1e5, history.finish[served] / 1e5
        inside = (finish > warm_s) & (finish <= end_s)
        stays = np.clip(finish, warm_s, end_s) - np.clip(arrival, warm_s, end_s)
        loop["requests_per_s"].append(inside.sum() / (end_s - warm_s))
        loop["mean_in_system"].append(stays.sum() / (end_s - warm_s))
    for name, values in engine.items():
        (mean, error), (other, other_error) = (
            mean_and_error(np.asarray(v)) for v in (values, loop[name])
        )
        assert error < 0.02 * mean
        assert mean == pytest.approx(other, abs=4 * math.hypot(error, other_error))


def test_rival_names_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LLMGymError, match="at least one token"):
        rival.Requests([0], [5], [0])  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="sort"):
        rival.Requests([5, 3], [5, 5], [1, 1])  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="one entry each"):
        rival.Requests([5], [5, 5], [1, 1])  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="geometric lengths"):
        rival.Requests.draw(llmgym.scenario("paper-figure-1"), 5)
    one = rival.Requests([0], [5], [1])  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match="max_num_seqs"):
        rival.simulate(llmgym.scenario("geometric", max_num_seqs=4), one, 5, compiled=False)
    monkeypatch.setattr(rival, "machine_code", lambda: None)
    with pytest.raises(LLMGymError, match="numba"):
        rival.simulate(llmgym.scenario("geometric"), one, 5, compiled=True)
    assert [row["steps_per_s"] for row in rows("compiled event loop, 1")] == [None]


def rows(label: str) -> list[speed.Row]:
    return [job() for name, job in speed._jobs(quick=True) if name == label]


def test_rows_of_the_event_loop() -> None:
    (row,) = rows("event loop")
    assert row["steps_per_s"] > 100
    assert row["compile_s"] is None
    for quick in (True, False):
        labels = [label for label, _ in speed._jobs(quick)]
        assert len(set(labels)) == len(labels)
    assert {
        "gym.make_vec, 1024",
        "SB3VecEnv, 1024",
        "greedy_rate, 1024 environments, 256 slots",
    } < set(labels)


@pytest.mark.slow
def test_table_has_every_row_and_says_where_it_is() -> None:
    calls: list[tuple[int, int, str]] = []
    found = speed.table(quick=True, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(len(found) + 1))
    assert {total for _, total, _ in calls} == {len(found)}
    for row in found:
        assert row["steps_per_s"] is None or row["steps_per_s"] > 0
        assert row["steps_per_s"] is not None or "pip install" in row["note"]
    assert {row["what"] for row in found} == {
        "compiled rollout",
        "compiled rollout, rybko-stolyar-reversed",
        "gym.make",
        "gym.make_vec",
        "SB3VecEnv",
        "event loop in Python",
        "compiled event loop (numba)",
    }
    assert f"{found[0]['steps_per_s']:,.0f}" in speed_table(found).to_text()


def test_compiler_options_change_no_number() -> None:
    x = jnp.linspace(0.1, 9.0, 4097)
    lowered = jax.jit(lambda x: jnp.log(x) * 3.7 + jnp.exp(-x) / x).lower(x)
    np.testing.assert_array_equal(blocks.compiled(lowered)(x), lowered.compile()(x))


def test_unknown_compiler_options_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "COMPILER_OPTIONS", {"xla_no_such_option": True})
    lowered = jax.jit(lambda x: x + 1).lower(jnp.float32(1))
    assert blocks.compiled(lowered)(jnp.float32(1)) == 2
