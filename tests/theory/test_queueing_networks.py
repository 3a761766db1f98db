"""Networks of engines: visit rates, cyclic routing, virtual stations."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import UNIT, call, engines, hop, job, lu_kumar, rybko_stolyar

from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import CODELLAMA_34B_A100
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Repeat, Stage
from llmgym.theory import (
    CyclicRoutingWarning,
    check_routing,
    is_cyclic,
    traffic_equations,
    virtual_station,
    visit_rates,
)

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
        with pytest.warns(CyclicRoutingWarning, match="engines 1, 2") as told:
            check_routing(network)
        assert told[0].filename == __file__
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
