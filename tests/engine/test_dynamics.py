"""Properties of the engine: conservation, constraints, published batch times, and small cases by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import requests, start, trace
from reference import affine, exact, hinge, staircase
from workloads import MIXED, POLICIES, random_workload

from llmgym.engine import simulator
from llmgym.engine.info import StepInfo
from llmgym.engine.params import Params
from llmgym.engine.state import State
from llmgym.engine.view import Batch
from llmgym.evaluation.rollout import keys
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, LLAMA_3_70B, Affine, BatchTime
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario

EXAMPLES = settings(max_examples=20, deadline=None)
STEPS, ENVS = 96, 3
seeds = st.integers(0, 2**16)
policy_numbers = st.integers(0, len(POLICIES) - 1)

ONE_MS = Affine(c_ms=1.0, a_ms_per_token=0.0)


def physics_of(seed: int) -> tuple[Params, dict[str, jax.Array]]:
    """The engine of a random workload of the structure MIXED, and settings of policies."""
    workload = random_workload(MIXED, seed)
    lowered = simulator.lower(workload.scenario, workload.burst)
    chosen = {name: jnp.int32(value) for name, value in workload.settings.items()}
    return replace(lowered, fresh=MIXED.fresh), chosen


def names(out: dict[str, np.ndarray], mask: np.ndarray, env: int) -> list[tuple[int, int]]:
    """(class, number) of the requests that a mask (steps, rows, envs) marks."""
    at = np.nonzero(mask[..., env])
    classes, numbers = (out[c][..., env][at].tolist() for c in ("job_class", "request"))
    return list(zip(classes, numbers, strict=True))


@given(seed=seeds, number=policy_numbers)
@EXAMPLES
def test_requests_and_tokens_are_conserved(seed: int, number: int) -> None:
    physics, chosen = physics_of(seed)
    key = keys(seed, ENVS)
    state, out = jax.device_get(
        trace(physics, start(physics, key), key, jnp.int32(number), chosen, STEPS)
    )
    totals = state.totals
    np.testing.assert_array_equal(totals.arrived, totals.completed + state.present + totals.dropped)
    served = totals.prefill_tokens.to_numpy() + totals.decode_tokens.to_numpy()
    np.testing.assert_array_equal(served, out["tokens"].sum(axis=(0, 1)))
    left = (state.table.prefill + state.table.decode).sum(axis=0)
    np.testing.assert_array_equal(left, state.backlog.to_numpy())
    np.testing.assert_array_equal(np.asarray(state.table.live).sum(axis=0), state.present)
    for env, stream in enumerate(requests(physics, key, 1000)):
        arrived = {r.name: r for r in stream if r.arrival <= state.clock.to_numpy()[env]}
        assert len(arrived) == totals.arrived[env]
        finished = names(out, out["finished"], env)
        live = np.asarray(state.table.live)[:, env]
        classes, numbers = state.table.job_class[live, env], state.table.request[live, env]
        inside = list(zip(classes.tolist(), numbers.tolist(), strict=True))
        assert len({*finished, *inside}) == len(finished) + len(inside)
        tokens = sum(arrived[n].prefill + arrived[n].decode for n in (*finished, *inside))
        assert tokens == served[env] + state.backlog.to_numpy()[env]


@given(seed=seeds, number=policy_numbers)
@EXAMPLES
def test_rows_stand_in_order_of_arrival(seed: int, number: int) -> None:
    physics, chosen = physics_of(seed)
    key = keys(seed, ENVS)
    _, out = jax.device_get(
        trace(physics, start(physics, key), key, jnp.int32(number), chosen, STEPS)
    )
    for step in range(STEPS):
        for env in range(ENVS):
            live = out["present"][step, :, env]
            arrival = out["arrival"][step, live, env].astype(np.int64)
            job_class, request = (out[c][step, live, env] for c in ("job_class", "request"))
            order = np.lexsort((request, job_class, arrival))
            np.testing.assert_array_equal(order, range(order.size))


@given(seed=seeds, pair=st.tuples(policy_numbers, policy_numbers))
@EXAMPLES
def test_requests_do_not_depend_on_the_policy(seed: int, pair: tuple[int, int]) -> None:
    physics, chosen = physics_of(seed)
    key = keys(seed, ENVS)
    met: list[dict[Any, Any]] = []
    for number in pair:
        begin = start(physics, key)
        out = jax.device_get(trace(physics, begin, key, jnp.int32(number), chosen, STEPS)[1])
        step, row, env = np.nonzero(out["present"] | out["finished"])
        who = zip(env.tolist(), *(out[c][step, row, env].tolist() for c in WHO), strict=True)
        prompt, output = out["lengths"][step, :, row, env].T.tolist()
        what = zip(out["arrival"][step, row, env].tolist(), prompt, output, strict=True)
        met.append(dict(zip(who, what, strict=True)))
    both = met[0].keys() & met[1].keys()
    assert both or not met[0] or not met[1]
    assert all(met[0][name] == met[1][name] for name in both)


WHO = ("job_class", "request")


@jax.jit
def forced(
    physics: Params, state: State, asked: jax.Array
) -> tuple[State, tuple[State, StepInfo, jax.Array]]:
    """Steps with batches given from outside (steps, rows, envs)."""

    def body(state: State, tokens: jax.Array) -> tuple[State, tuple[State, StepInfo, jax.Array]]:
        started = simulator.view(physics, state).started
        after, info = simulator.step(physics, state, Batch(tokens))
        return after, (state, info, started)

    return jax.lax.scan(body, state, asked)


def wild_batches(seed: int, rows: int) -> np.ndarray:
    """Any int32 numbers: sensible, negative, huge, or nothing at all."""
    rng = np.random.default_rng(seed)
    shape = (48, rows, ENVS)
    kinds = (
        rng.integers(0, 4, shape),
        rng.integers(-5, 100, shape),
        rng.integers(-(2**31), 2**31, shape),
        rng.choice([-(2**31), 2**31 - 1, 0, 1, 2**20], shape),
        np.zeros(shape),
    )
    kind = rng.integers(0, len(kinds), (48, 1, 1))
    return np.choose(kind, kinds).astype(np.int32)


@pytest.mark.parametrize("cap", ["batch", "resident"])
def test_no_batch_from_outside_breaks_the_constraints(cap: str) -> None:
    @given(seed=seeds)
    @EXAMPLES
    def check(seed: int) -> None:
        physics, _ = physics_of(seed)
        seats = np.random.default_rng(seed).integers(1, MIXED.slots)
        physics = replace(physics, max_num_seqs=jnp.int32(seats), resident_limit=cap == "resident")
        asked = wild_batches(seed, physics.slots + physics.fresh)
        begin = start(replace(physics, max_num_seqs=None), keys(seed, ENVS))
        _, (before, info, started) = jax.device_get(forced(physics, begin, asked))
        ran, old, new = info.batch.tokens, before.table, info.table
        assert (ran >= 0).all()
        assert (ran.sum(axis=1) <= physics.token_budget).all()  # (6d)
        waiting = old.prefill > 0  # (6a): prompt tokens only, even where the prompt ends
        assert (ran <= np.where(waiting, old.prefill, np.minimum(old.decode, 1))).all()  # (6c)
        np.testing.assert_array_equal(new.prefill, old.prefill - np.where(waiting, ran, 0))
        np.testing.assert_array_equal(new.decode, old.decode - np.where(waiting, 0, ran))
        seated = (ran > 0) | (started if cap == "resident" else False)
        assert (seated.sum(axis=1) <= seats).all()
        np.testing.assert_array_equal(info.clipped, (ran != asked).any(axis=1))
        np.testing.assert_array_equal(info.idle, ran.sum(axis=1) == 0)
        assert info.clipped.any()
        assert (info.duration > 0).all()

    check()


def batch_ticks(batch_time: BatchTime, tokens: np.ndarray) -> np.ndarray:
    """What the engine takes for batches of so many tokens."""
    model = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch_time)
    return np.asarray(model.ticks(jnp.asarray(tokens), jnp.float32(0.01)))


@pytest.mark.parametrize(
    ("model", "formula"),
    [
        (CODELLAMA_34B_A100, staircase("11.28", "35.47", 128)),
        (LLAMA_3_70B, hinge("45.5", "0.30", 64)),
        (Affine(5.0, 0.07), affine("5", "0.07")),
    ],
    ids=["staircase", "hinge", "affine"],
)
def test_published_batch_times_are_exact_ticks(model: BatchTime, formula: Any) -> None:
    tokens = np.arange(1, 2**15)
    ticks = [formula(b) / exact("0.01") for b in tokens.tolist()]
    assert all(t.denominator == 1 for t in ticks)
    np.testing.assert_array_equal(batch_ticks(model, tokens), [int(t) for t in ticks])


def test_staircase_fixed_points() -> None:
    tokens = np.array([1, 128, 129, 256, 512, 1024])
    expected = [4675, 4675, 8222, 8222, 15316, 29504]
    np.testing.assert_array_equal(batch_ticks(CODELLAMA_34B_A100, tokens), expected)


def simple(
    arrival_s: list[float], prefill: list[int], decode: list[int], as_network: bool = False
) -> Params:
    """Five requests on an engine of 3 slots whose batches, of up to 8 tokens, all take 100 ticks."""
    scenario = Scenario.single_engine(ONE_MS, 8, Replay(arrival_s, prefill, decode), slots=3)
    lowered = simulator.lower(scenario, as_network=as_network)
    return lowered if as_network else replace(lowered, fresh=13)


step = jax.jit(simulator.step)


def run_all(physics: Params, state: State, tokens: int = 8) -> list[tuple[State, StepInfo]]:
    """Ask for everything (the engine clips it) until nothing is left; states before, infos."""
    history = []
    for _ in range(40):
        wanted = Batch(jnp.full_like(state.table.prefill, tokens))
        after, info = step(physics, state, wanted)
        if int(info.duration) == 0:
            break
        history.append((state, info))
        state = after
    return [*history, (state, info)]


@pytest.mark.parametrize("as_network", [False, True])
def test_a_request_that_arrives_as_a_batch_ends_is_in_the_next_one(as_network: bool) -> None:
    arrival_s = [0.0, 0.001, 0.00201, 0.00399, 0.004]
    physics = simple(arrival_s, [1, 1, 1, 3, 1], [1, 1, 0, 0, 0], as_network)
    history = run_all(physics, start(physics, keys(0, 1)[0]))
    assert [int(s.clock.low) for s, _ in history] == [0, 100, 200, 300, 400, 500]
    assert [int(i.requests.sum()) for _, i in history[:-1]] == [1, 2, 1, 1, 2]
    assert [int(i.prefill_tokens.sum()) for _, i in history[:-1]] == [1, 1, 0, 1, 4]
    assert [int(i.arrived) for _, i in history[:-1]] == [1, 0, 1, 2, 0]


def test_an_idle_engine_restarts_exactly_at_the_next_arrival() -> None:
    physics = simple([0.00123, 5.0, 5.0, 5.0, 5.01], [3, 2, 4, 0, 1], [0, 1, 0, 1, 0])
    history = run_all(physics, start(physics, keys(0, 1)[0]))
    runs = [(int(s.clock.low), int(i.duration), bool(i.idle)) for s, i in history[:-1]]
    assert runs == [
        (0, 123, True),
        (123, 100, False),
        (223, 499_777, True),
        (500_000, 100, False),
        (500_100, 100, False),
        (500_200, 800, True),
        (501_000, 100, False),
    ]


def test_times_of_first_token_and_end() -> None:
    physics = simple([0.0, 0.0, 0.0, 1.0, 1.0], [9, 0, 2, 1, 0], [1, 3, 0, 2, 1])
    history = run_all(physics, start(physics, keys(0, 1)[0]))
    first, finish = {}, {}
    for state, info in history[:-1]:
        end = int(state.clock.low) + int(info.duration)
        for row in np.flatnonzero(info.finished):
            name = int(info.table.request[row])
            first[name], finish[name] = int(info.table.first_token[row]), end
    # Budget 8: 8p of 0 | 1p of 0, d of 1, 2p of 2 | d of 0 and 1 | d of 1; then p of 3, d of 4 | ...
    assert first == {0: 300, 1: 200, 2: 200, 3: 100_200, 4: 100_100}
    assert finish == {0: 300, 1: 400, 2: 200, 3: 100_300, 4: 100_100}


def test_what_finds_no_slot_is_dropped_and_counted() -> None:
    physics = simple([0.0, 0.0, 0.0, 0.0, 0.001], [8] * 5, [0] * 5)
    history = run_all(physics, start(physics, keys(0, 1)[0]))
    end = history[-1][0]
    counts = [int(getattr(end.totals, c)) for c in ("arrived", "dropped", "completed")]
    assert counts == [5, 1, 4]  # 3 finds no slot; 0 leaves just as 4 comes
    left = [int(i.table.request[np.flatnonzero(i.finished)[0]]) for _, i in history[:-1]]
    assert left == [0, 1, 2, 4]


def test_idling_ends_at_its_limit_or_at_an_arrival() -> None:
    physics = simple([0.002, 0.01, 0.01, 0.01, 0.01], [1] * 5, [1] * 5)
    state = start(physics, keys(0, 1)[0])
    nothing, limits = Batch(jnp.zeros_like(state.table.prefill)), (150, 150, 70, 1000, 1000)
    seen = []
    for limit in limits:
        state, info = step(physics, state, nothing, jnp.int32(limit))
        assert (bool(info.idle), bool(info.clipped)) == (True, False)
        seen.append((int(info.duration), int(info.arrived)))
    assert seen == [(150, 0), (50, 1), (70, 0), (730, 4), (1000, 0)]
    state, info = step(physics, state, nothing)
    assert int(info.duration) == 0  # no limit, and nothing to come
    assert int(state.backlog.to_numpy()) == 6  # three slots


def test_a_hot_start_has_its_requests_at_time_zero() -> None:
    scenario = random_workload(MIXED, 0).scenario
    physics = replace(simulator.lower(scenario, burst=5), fresh=MIXED.fresh)
    state = start(physics, keys(0, ENVS))
    np.testing.assert_array_equal(state.present, 10)  # of two job types
    np.testing.assert_array_equal(state.clock.low, 0)
    arrival = np.asarray(state.table.arrival)[np.asarray(state.table.live)]
    np.testing.assert_array_equal(arrival, 0)
    assert (np.asarray(simulator.next_arrival(physics, state)) > 0).all()
