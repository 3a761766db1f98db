"""Capacity of networks of engines: values by hand, known networks, and one joint LP."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from small_networks import UNIT, call, engines, job, rybko_stolyar

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, BatchTime, Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.workload import Workload
from llmgym.theory import (
    capacity,
)
from llmgym.theory.capacity import at_load

# Capacity


def test_two_replicas_serve_twice_what_one_does():
    engine = Engine(CODELLAMA_34B_A100, 512, replicas=2)
    result = capacity(Scenario((engine,), Workload(Poisson(30.0), 100, 100)))
    assert result.requests_per_s == pytest.approx(33.43, abs=0.01)
    assert result.load_factor == pytest.approx(30 / 33.429, abs=1e-4)
    assert result.tokens_per_ms == pytest.approx(2 * 512 / 153.16, rel=1e-12)
    assert sum(c.share for c in result.compositions) == pytest.approx(1)


def test_the_load_of_rybko_and_stolyar_is_rho():
    result = capacity(rybko_stolyar(0.9))
    assert [e.load for e in result.engines] == pytest.approx([0.9, 0.9])
    assert [e.slack for e in result.engines] == pytest.approx([0.1, 0.1])
    # A job brings an engine 64 or 544 tokens, with equal chances.
    assert result.engines[0].prefill_tokens + result.engines[0].decode_tokens == pytest.approx(304)
    assert result.requests_per_s == pytest.approx(1000 * 768 / 304)


def test_fork_and_join_by_hand():
    work = job(
        call(1, 10, 15, name="plan"),
        call(2, 30, 10, name="left", after=("plan",)),
        call(2, 5, 5, name="right", after=("plan",)),
        Stage(delay_ms=500, name="tool", after=("plan",)),
        call(1, 20, 15, name="join", after=("left", "right", "tool")),
        rate=500.0,
    )
    result = capacity(Scenario(engines(100, 40), work))
    first, second = result.engines
    assert (first.prefill_tokens, first.decode_tokens) == (30, 30)
    assert (second.prefill_tokens, second.decode_tokens) == (35, 15)
    assert first.jobs_per_s == pytest.approx(1000 * 100 / 60)
    assert second.jobs_per_s == pytest.approx(1000 * 40 / 50)
    assert [first.load, second.load] == pytest.approx([0.3, 0.625])
    assert (result.bottleneck, result.requests_per_s) == ("2", second.jobs_per_s)
    assert result.load_factor == second.load
    assert result.tokens_per_ms == pytest.approx(0.8 * 110)


def test_loops_choices_and_inherited_context_by_hand():
    loop = job(
        call(1, 10, 10, name="act"),
        call(2, 20, 5, name="check", repeat=Repeat("act", probability=0.75)),
    )
    choice = job(
        call(1, 40, 0, name="route"),
        call(1, 10, 10, name="easy", after="route", probability=0.75),
        call(2, 100, 100, name="hard", after="route", probability=0.25),
    )
    context = job(call(1, 100, 10), Stage(delay_ms=9), call(2, 20, 30, inherits=True))

    def tokens(work):
        return [
            (e.prefill_tokens, e.decode_tokens)
            for e in capacity(Scenario(engines(64, 64), work)).engines
        ]

    assert np.array(tokens(loop)) == pytest.approx(np.array([(40, 40), (80, 20)]))
    assert np.array(tokens(choice)) == pytest.approx(np.array([(47.5, 7.5), (25, 25)]))
    assert np.array(tokens(context)) == pytest.approx(np.array([(100, 10), (130, 30)]))


def test_seats_are_counted_at_every_visit():
    def rate(*stages):
        limited = engines(64, max_num_seqs=4, seq_limit="resident")
        return capacity(Scenario(limited, job(*stages))).requests_per_s

    # Four seats, one iteration a millisecond: 4/(iterations that the calls stay) a millisecond.
    first = call(1, 5, 2, name="first")
    assert rate(first, call(1, 0, 3)) == pytest.approx(4000 / (3 + 3))
    assert rate(first, call(1, 0, 3, inherits=True)) == pytest.approx(4000 / (3 + 4))
    assert rate(first, Stage(paired=Paired([0, 1], [3, 3]), engine="1")) == pytest.approx(
        4000 / 6.5
    )
    again = Stage(0, 3, engine="1", repeat=Repeat("first", rounds=5))
    assert rate(first, again) == pytest.approx(4000 / 30)


def test_an_engine_that_nothing_calls_never_binds():
    result = capacity(Scenario(engines(1, 64), job(call(2, 32, 32), rate=500.0)))
    idle, busy = result.engines
    assert (idle.load, idle.slack, idle.jobs_per_s, idle.prefill_tokens) == (0, 1, float("inf"), 0)
    assert (result.bottleneck, result.load_factor) == ("2", pytest.approx(0.5))
    assert busy.load == result.load_factor


def test_one_engine_is_a_network_of_one():
    result = capacity(
        Scenario.single_engine(CODELLAMA_34B_A100, 512, Workload(Poisson(7.0), 129, 112))
    )
    (only,) = result.engines
    assert (only.name, only.load, only.jobs_per_s) == (
        result.bottleneck,
        result.load_factor,
        result.requests_per_s,
    )
    at_once = capacity(Scenario.single_engine(UNIT, 8, Replay([1.0, 1.0], [3, 4], [1, 2])))
    assert at_once.engines[0].load == float("inf")
    assert at_once.engines[0].slack == -float("inf")


def test_a_load_can_be_asked_for():
    assert capacity(at_load(rybko_stolyar(0.9), 0.5)).load_factor == pytest.approx(0.5)


random_calls = st.tuples(
    st.integers(1, 3), st.integers(0, 40), st.integers(0, 40), st.integers(1, 3)
).filter(lambda c: c[1] + c[2] > 0)


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.floats(0.1, 5), st.lists(random_calls, min_size=1, max_size=4)),
        min_size=1,
        max_size=3,
    ),
    shapes=st.tuples(*[st.tuples(st.integers(1, 7), st.integers(1, 3))] * 3),
    cap=st.one_of(st.none(), st.integers(2, 9)),
    seq_limit=st.sampled_from(["batch", "resident"]),
)
def test_the_capacity_is_that_of_one_joint_lp(jobs, shapes, cap, seq_limit):
    """One LP over all engines, replicas and batches; calls are (engine, prefill, decode, rounds)."""
    time = Staircase(1.0, 2.0, 3)
    group = tuple(
        Engine(time, budget, cap, seq_limit, name=str(n + 1), replicas=replicas)
        for n, (budget, replicas) in enumerate(shapes)
    )
    types = []
    for n, (rate, calls) in enumerate(jobs):
        stages = [
            call(e, p, d, name=f"c{i}", repeat=Repeat(f"c{i}", rounds=rounds))
            for i, (e, p, d, rounds) in enumerate(calls)
        ]
        types.append(job(*stages, rate=rate, name=str(n)))
    total = sum(rate for rate, _ in jobs)

    columns = []  # (server, engine, prefill, decode and seats a millisecond)
    servers = [(e, r) for e, engine in enumerate(group) for r in range(engine.replicas)]
    for server, (e, _) in enumerate(servers):
        for x in range(group[e].token_budget + 1):
            for y in range(group[e].token_budget + 1 - x):
                beside = 1 if x > 0 and seq_limit == "batch" else 0
                if x + y > 0 and (cap is None or y <= cap - beside):
                    columns.append((server, e, np.array([x, y, cap or 0]) / float(time.ms(x + y))))
    rows, limits = [], []
    for server in range(len(servers)):
        rows.append([float(c[0] == server) for c in columns] + [0.0])
        limits.append(1.0)
    for e in range(len(group)):
        asked = np.zeros(3)
        for rate, calls in jobs:
            for engine, p, d, rounds in calls:
                if engine == e + 1:
                    asked += rate / total * rounds * np.array([p, d, d + (p > 0)])
        for r in range(3 if cap is not None and seq_limit == "resident" else 2):
            rows.append([-float(c[1] == e) * c[2][r] for c in columns] + [asked[r]])
            limits.append(0.0)
    objective = np.append(np.zeros(len(columns)), -1.0)
    joint = linprog(objective, A_ub=np.array(rows), b_ub=np.array(limits))

    result = capacity(Scenario(group, tuple(types)))
    assert result.requests_per_s == pytest.approx(-1000 * joint.fun, rel=1e-6)
    assert result.requests_per_s == min(e.jobs_per_s for e in result.engines)
    assert result.load_factor == max(e.load for e in result.engines)


@dataclass(frozen=True)
class Free(BatchTime):
    """Batches that take no time."""

    kind: ClassVar[str] = "free"

    def formula(self, tokens: Any, xp: Any, attention: Any = None) -> Any:
        return 0.0 * tokens


def test_bad_batch_times_of_any_engine_in_use_are_refused():
    jobs = job(call(1, 3, 3), call(2, 3, 3, priority=1))
    with pytest.raises(LLMGymError, match=r"0\.0 ms for a batch of 1 tokens"):
        Scenario((*engines(8), Engine(Free(), 3, name="2")), jobs)
