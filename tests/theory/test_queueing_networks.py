"""Networks of engines: capacity against hand counts and one joint LP, cyclic routing, virtual stations."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, Affine, BatchTime, Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Poisson as PoissonLength
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.workload import JobType, Workload
from llmgym.theory import (
    CyclicRoutingWarning,
    capacity,
    check_routing,
    is_cyclic,
    traffic_equations,
    virtual_station,
    visit_rates,
)
from llmgym.theory.capacity import at_load

UNIT = Affine(1.0, 0.0)
"""Every batch takes a millisecond."""


def engines(*budgets: int, time: BatchTime = UNIT, **limits: Any) -> tuple[Engine, ...]:
    """Engines "1", "2", ... with these token budgets."""
    return tuple(Engine(time, b, name=str(n + 1), **limits) for n, b in enumerate(budgets))


def call(engine: int, prefill: Any, decode: Any, **stage: Any) -> Stage:
    return Stage(prefill, decode, engine=str(engine), **stage)


def job(*stages: Stage, rate: float = 1.0, name: str = "job") -> JobType:
    return JobType(Poisson(rate), stages, name=name)


def hop(engine: int, prefill: int, **stage: Any) -> Stage:
    return call(engine, PoissonLength(prefill), PoissonLength(32), **stage)


def rybko_stolyar(rho: float, last_hops_first: bool = True) -> Scenario:
    rate = 1000 * rho * 768 / 608
    ranks = {"first": int(not last_hops_first), "last": int(last_hops_first)}
    jobs = tuple(
        job(
            hop(start, 32, name="first", priority=ranks["first"]),
            hop(end, 512, name="last", priority=ranks["last"]),
            rate=rate,
            name=name,
        )
        for name, start, end in (("A", 1, 2), ("B", 2, 1))
    )
    return Scenario(engines(768, 768), jobs)


def lu_kumar(priorities: tuple[int, int, int, int], rate: float = 400.0) -> Scenario:
    """Calls at engines 1, 2, 2, 1 that need 0.1, 0.7, 0.1, 0.6 ms each."""
    plan = zip((1, 2, 2, 1), (10, 70, 10, 60), priorities, strict=True)
    stages = [call(e, tokens, 0, priority=p) for e, tokens, p in plan]
    return Scenario(engines(100, 100), job(*stages, rate=rate))


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


# Visit rates


def test_visit_rates_by_hand():
    work = job(
        call(1, 1, 1, name="plan"),
        call(2, 1, 1, name="code", after="plan", probability=0.25),
        call(1, 1, 1, name="chat", after="plan", probability=0.75),
        call(2, 1, 1, name="answer", after=("code", "chat"), repeat=Repeat("answer", rounds=3)),
        rate=8.0,
    )
    other = job(call(2, 1, 1), rate=5.0, name="other")
    rates = visit_rates(Scenario(engines(8, 8), (work, other)))
    np.testing.assert_allclose(rates, [8, 2, 6, 24, 5])


@st.composite
def workflows(draw: Any) -> tuple[Stage, ...]:
    """A few segments in a row: a call, a delay, a fork, a choice or a loop of either kind."""
    stages: list[Stage] = []
    ends: tuple[str, ...] = ()
    for n in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["call", "delay", "fork", "choice", "loop"]))
        first = f"s{n}"
        if kind in ("fork", "choice"):
            weights = draw(st.lists(st.integers(1, 5), min_size=2, max_size=3))
            names = [f"{first}-{i}" for i in range(len(weights))]
            for name, weight in zip(names, weights, strict=True):
                chance = weight / sum(weights) if kind == "choice" else None
                stages.append(call(1, 1, 1, name=name, after=ends, probability=chance))
            ends = tuple(names)
            continue
        if kind == "delay":
            stages.append(Stage(delay_ms=3, name=first, after=ends))
        elif kind == "loop":
            back = draw(st.sampled_from([{"rounds": 3}, {"probability": 0.6}, {"rounds": 1}]))
            inner = draw(st.sampled_from([None, Repeat(f"{first}-in", probability=0.5)]))
            last = f"{first}-out"
            stages += [
                call(1, 1, 1, name=first, after=ends),
                call(1, 1, 1, name=f"{first}-in", after=(first,), repeat=inner),
                call(1, 1, 1, name=last, after=(f"{first}-in",), repeat=Repeat(first, **back)),
            ]
            first = last
        else:
            stages.append(call(1, 1, 1, name=first, after=ends))
        ends = (first,)
    return (*stages, call(1, 1, 1, name="end", after=ends))


@settings(max_examples=80, deadline=None)
@given(one=workflows(), other=workflows(), rate=st.floats(0.1, 9))
def test_visit_rates_solve_the_traffic_equations(one, other, rate):
    types = (job(*one, rate=rate, name="one"), job(*other, rate=2.0, name="other"))
    network = Scenario(engines(8), types)
    routing, outside = traffic_equations(network)
    alpha = np.linalg.solve(np.eye(len(outside)) - routing.T, outside)
    np.testing.assert_allclose(alpha, visit_rates(network), rtol=1e-9)
    assert not routing[: len(one), len(one) :].any()


def test_a_replay_is_one_class():
    replay = Scenario.single_engine(UNIT, 8, Replay([0.0, 0.5, 1.0], [1, 2, 3], [1, 1, 1]))
    assert visit_rates(replay).tolist() == [2.0]
    assert not is_cyclic(replay)
    assert virtual_station(replay) is None


# Cyclic routing


@pytest.mark.parametrize(
    ("stages", "cyclic"),
    [
        ([(1, 2, 3)], False),
        ([(1, 1, 1)], False),
        ([(1, 1, 2, 2, 3)], False),
        ([(1, 2), (2, 3), (1, 3)], False),
        ([(1, 2, 1)], True),
        ([(1, 2), (2, 1)], True),
        ([(1, 2), (2, 3), (3, 1)], True),
        ([(1, 0, 2, 0, 1)], True),
        ([(1, 0, 0, 1)], False),
    ],
)
def test_a_cycle_leads_over_two_engines_or_more(stages, cyclic):
    jobs = tuple(
        job(*(call(e, 1, 1) if e else Stage(delay_ms=5) for e in path), name=str(n))
        for n, path in enumerate(stages)
    )
    network = Scenario(engines(8, 8, 8), jobs)
    assert is_cyclic(network) == cyclic
    if cyclic:
        with pytest.warns(CyclicRoutingWarning, match="engines 1, 2"):
            check_routing(network)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_routing(network)


def test_loops_are_cyclic_where_they_leave_the_engine():
    def loop(engine, **back):
        return Scenario(
            engines(8, 8),
            job(call(1, 1, 1, name="a"), call(engine, 1, 1, repeat=Repeat("a", **back))),
        )

    assert is_cyclic(loop(2, rounds=2))
    assert is_cyclic(loop(2, probability=0.1))
    assert not is_cyclic(loop(2, rounds=1))
    assert not is_cyclic(loop(1, rounds=2))


# Virtual stations


def test_the_virtual_station_of_rybko_and_stolyar():
    found = virtual_station(rybko_stolyar(0.9))
    assert found is not None
    assert found.classes == ("A.last", "B.last")
    assert found.engines == ("1", "2")
    assert found.load == pytest.approx(2 * (0.9 * 768 / 608) * 544 / 768)
    assert found.critical_load == pytest.approx(0.559, abs=0.001)
    assert found.critical_per_s == pytest.approx(1000 * 768 / 544)
    assert (
        virtual_station(rybko_stolyar(0.5588)).load < 1 < virtual_station(rybko_stolyar(0.559)).load
    )


def test_priority_to_first_hops_makes_none():
    assert virtual_station(rybko_stolyar(0.9, last_hops_first=False)) is None


def test_the_virtual_station_of_lu_and_kumar():
    found = virtual_station(lu_kumar((0, 1, 0, 1), rate=400.0))
    assert found is not None
    assert found.classes == ("job.call-2", "job.call-4")
    assert found.load == pytest.approx(0.4 * (0.7 + 0.6))
    assert found.critical_per_s == pytest.approx(1000 / 1.3)
    assert found.critical_load == pytest.approx(0.8 / 1.3)


@pytest.mark.parametrize(
    "priorities",
    [
        (0, 0, 0, 0),  # none
        (3, 2, 1, 0),  # first buffer first
        (0, 1, 2, 3),  # last buffer first
        (0, 1, 0, 0),  # only one engine has priorities
        (1, 1, 0, 1),  # a tie at engine 1
    ],
)
def test_priorities_of_lu_and_kumar_that_shut_nobody_out(priorities):
    assert virtual_station(lu_kumar(priorities)) is None


def test_priorities_can_be_given_by_name():
    good = lu_kumar((0, 0, 0, 0))
    found = virtual_station(good, {"job.call-2": 0.5, "job.call-4": 7})
    assert found == virtual_station(lu_kumar((0, 1, 0, 1)))
    reverse = {"A.first": 2, "B.first": 2}
    assert virtual_station(rybko_stolyar(0.9), reverse) is None
    assert virtual_station(rybko_stolyar(0.9), {"A.first": 2}) is None


def test_a_class_that_also_comes_from_outside_is_not_shut_out():
    network = rybko_stolyar(0.9)
    extra = job(hop(1, 512, name="last", priority=1), rate=1.0, name="C")
    found = virtual_station(Scenario(network.engines, (*network.job_types, extra)))
    assert found is not None
    assert found.classes == ("A.last", "B.last")
    fed = job(
        call(1, 1, 1, name="in", priority=1), call(1, 1, 1, priority=1, inherits=True), name="D"
    )
    found = virtual_station(Scenario(network.engines, (*network.job_types, fed)))
    assert found.classes == ("A.last", "B.last")


def test_feedback_and_delays_belong_to_the_station():
    """Loops on a priority class, a second one behind it, and delays between calls."""

    def path(name, start, end):
        return job(
            call(start, 10, 0, name="first"),
            Stage(delay_ms=50, name="tool"),
            call(end, 15, 5, name="last", priority=1, repeat=Repeat("last", rounds=2)),
            call(end, 30, 0, name="after", priority=1),
            rate=400.0,
            name=name,
        )

    network = Scenario(engines(100, 100), (path("A", 1, 2), path("B", 2, 1)))
    found = virtual_station(network)
    assert found is not None
    assert found.classes == ("A.last", "A.after", "B.last", "B.after")
    assert found.load == pytest.approx(2 * 0.4 * (2 * 0.2 + 0.3))
    assert found.critical_load == pytest.approx(0.8 / 1.4)


def test_more_engines_can_hold_a_virtual_station_of_two():
    network = rybko_stolyar(0.9)
    more = Scenario(
        engines(768, 768, 50), (*network.job_types, job(call(3, 5, 5), rate=1.0, name="C"))
    )
    found, alone = virtual_station(more), virtual_station(network)
    assert found.classes == alone.classes
    assert found.load == pytest.approx(alone.load)


def test_work_is_counted_at_the_best_batch_size():
    """A budget of 200 on tiles of 128 is cut at 128 tokens, 46.75 ms."""
    base = rybko_stolyar(0.9).override(batch_time=CODELLAMA_34B_A100, token_budget=200)
    found = virtual_station(base.at_rate(2.0))
    assert found.load == pytest.approx(2.0 * 544 / 1000 * 46.75 / 128)


@pytest.mark.parametrize(
    "limits",
    [
        {"replicas": 2},
        {"max_num_seqs": 768},
        {"max_num_seqs": 5000, "seq_limit": "resident"},
    ],
)
def test_engines_that_one_class_may_not_fill_are_left_out(limits):
    assert virtual_station(rybko_stolyar(0.9).override(**limits)) is None


def test_a_limit_that_cannot_bind_changes_nothing():
    free = rybko_stolyar(0.9)
    assert virtual_station(free.override(max_num_seqs=769)).load == virtual_station(free).load


def test_bad_priorities_are_refused():
    network = lu_kumar((0, 1, 0, 1))
    with pytest.raises(LLMGymError, match=r"Unknown class 'job.call2'.*Did you mean 'job.call-2'"):
        virtual_station(network, {"job.call2": 1})
    with pytest.raises(LLMGymError, match="finite"):
        virtual_station(network, {"job.call-2": float("nan")})
    with pytest.raises(LLMGymError, match="must be a number"):
        virtual_station(network, {"job.call-2": "high"})
    waits = Scenario(engines(8), job(call(1, 1, 1), Stage(delay_ms=5, name="tool")))
    with pytest.raises(LLMGymError, match="is a delay"):
        virtual_station(waits, {"job.tool": 1})


def test_bounds_of_one_engine_refuse_networks() -> None:
    from llmgym.scenario import library
    from llmgym.theory import bounds

    scenario = library.scenario("rybko-stolyar")
    with pytest.raises(LLMGymError, match="one engine"):
        bounds.theorem2_capacity(scenario)
    with pytest.raises(LLMGymError, match="one engine"):
        bounds.fluid_growth(scenario, 3000.0)
