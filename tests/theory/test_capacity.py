"""The planning LP against closed forms, published figures and a dense LP over every batch."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from llmgym.core.errors import LLMGymError
from llmgym.scenario import library
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import (
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    Affine,
    BatchTime,
    Hinge,
    Staircase,
)
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Stage
from llmgym.scenario.workload import JobType, Workload
from llmgym.theory import capacity
from llmgym.theory.capacity import MOST_LOAD, at_load


def scenario(
    batch_time: BatchTime = CODELLAMA_34B_A100,
    token_budget: int = 512,
    prefill: Any = 129,
    decode: Any = 112,
    rate: float = 5.0,
    **engine: Any,
) -> Scenario:
    workload = Workload(Poisson(rate), prefill, decode)
    # Eighths of a millisecond, which some of the batch times are, are whole ticks.
    return Scenario.single_engine(batch_time, token_budget, workload, tick_ms=2.0**-10, **engine)


@dataclass(frozen=True)
class Table(BatchTime):
    """A measured batch time: any numbers."""

    values: tuple[float, ...]
    kind: ClassVar[str] = "table"

    def formula(self, tokens: Any, xp: Any, attention: Any = None) -> Any:
        return xp.asarray(self.values)[tokens.astype(int) - 1]


batch_times = st.one_of(
    st.builds(Staircase, st.floats(0, 50), st.floats(0.1, 50), st.integers(1, 40)),
    st.builds(Hinge, st.floats(0.1, 50), st.floats(0, 1), st.integers(0, 64)),
    st.builds(Affine, st.floats(0.1, 50), st.floats(0, 1)),
)


@pytest.mark.parametrize(
    ("lengths", "token_budget", "requests_per_s"),
    [((100, 100), 512, 16.715), ((129, 112), 512, 13.871), ((129, 112), 1024, 14.40)],
)
def test_published_capacities(lengths, token_budget, requests_per_s):
    result = capacity(scenario(token_budget=token_budget, prefill=lengths[0], decode=lengths[1]))
    assert result.requests_per_s == pytest.approx(requests_per_s, abs=0.0051)
    assert result.bottleneck == "engine"


def test_full_batches_of_whole_tiles_serve_the_rate_of_theorem_2():
    assert 1000 * capacity(scenario()).tokens_per_ms == pytest.approx(3342.9, abs=0.05)
    assert capacity(scenario()).tokens_per_ms == pytest.approx(512 / 153.16, rel=1e-12)


def test_budget_of_broken_tiles_is_cut_at_the_last_whole_one():
    result = capacity(scenario(token_budget=200))
    assert result.tokens_per_ms == pytest.approx(128 / 46.75, rel=1e-12)
    assert 200 / 82.22 / result.tokens_per_ms == pytest.approx(1 - 0.11, abs=0.005)
    assert {c.prefill_tokens + c.decode_tokens for c in result.compositions} == {128}


@pytest.mark.parametrize("batch_time", [CODELLAMA_34B_A100, LLAMA_3_70B, Affine(5.0, 0.1)])
@pytest.mark.parametrize("token_budget", [1, 200, 8192, 2**18])
def test_without_a_cap_the_largest_rate_of_one_batch_size_is_the_capacity(batch_time, token_budget):
    sizes = np.arange(1, token_budget + 1)
    best = np.max(sizes / batch_time.ms(sizes))
    result = capacity(scenario(batch_time, token_budget))
    assert result.tokens_per_ms == pytest.approx(best, rel=1e-12)


RESIDENT_TABLE = [
    (60, 11.36),
    (80, 12.09),
    (100, 12.57),
    (110, 12.76),
    (120, 12.92),
    (160, 13.38),
    (200, 13.67),
]


@pytest.mark.parametrize(("cap", "requests_per_s"), RESIDENT_TABLE)
@pytest.mark.parametrize("token_budget", [512, 1024])
def test_published_capacities_under_a_resident_cap(cap, requests_per_s, token_budget):
    limited = scenario(token_budget=token_budget, max_num_seqs=cap, seq_limit="resident")
    assert round(capacity(limited).requests_per_s, 2) == requests_per_s


def test_batch_cap_of_the_polygon_binds_between_corners_b_and_c():
    result = capacity(scenario(token_budget=1024, max_num_seqs=100))
    corner_b, corner_c = np.array([925, 99]) / 295.04, np.array([29, 99]) / 46.75
    weights = np.linalg.solve(np.column_stack([corner_b, corner_c]), [129, 112])
    assert result.requests_per_s == pytest.approx(1000 / weights.sum(), rel=1e-12)
    assert result.requests_per_s < 0.9 * capacity(scenario(token_budget=1024)).requests_per_s


@settings(max_examples=60, deadline=None)
@given(
    batch_time=st.one_of(
        batch_times,
        st.lists(st.floats(0.5, 9), min_size=24, max_size=24).map(lambda v: Table(tuple(v))),
    ),
    token_budget=st.integers(1, 24),
    cap=st.one_of(st.none(), st.integers(1, 30)),
    seq_limit=st.sampled_from(["batch", "resident"]),
    lengths=st.tuples(st.integers(0, 60), st.integers(0, 60)).filter(any),
)
def test_few_batches_do_as_well_as_all(batch_time, token_budget, cap, seq_limit, lengths):
    m_p, m_d = lengths
    limited = scenario(batch_time, token_budget, m_p, m_d, max_num_seqs=cap, seq_limit=seq_limit)
    batches = []
    for x in range(token_budget + 1):
        for y in range(token_budget + 1 - x):
            beside = 1 if x > 0 and seq_limit == "batch" else 0
            if x + y > 0 and (cap is None or y <= max(cap - beside, 0)):
                batches.append((x, y))
    x, y = np.array(batches, float).T
    ms = batch_time.ms(x + y)
    rows = [np.append(np.ones(len(x)), 0), np.append(-x / ms, m_p), np.append(-y / ms, m_d)]
    if cap is not None and seq_limit == "resident":
        rows.append(np.append(-cap / ms, m_d + (m_p > 0)))
    limits = np.append(1.0, np.zeros(len(rows) - 1))
    dense = linprog(-np.eye(len(x) + 1)[-1], A_ub=np.array(rows), b_ub=limits)
    assert capacity(limited).requests_per_s == pytest.approx(-1000 * dense.fun, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    batch_time=batch_times,
    token_budget=st.integers(1, 300),
    cap=st.integers(1, 300),
    seq_limit=st.sampled_from(["batch", "resident"]),
    lengths=st.tuples(st.integers(0, 500), st.integers(0, 500)).filter(any),
)
def test_the_plan_serves_the_capacity_within_the_limits(
    batch_time, token_budget, cap, seq_limit, lengths
):
    limited = scenario(batch_time, token_budget, *lengths, max_num_seqs=cap, seq_limit=seq_limit)
    result = capacity(limited)
    x, y, share = np.array(result.compositions).T
    per_ms = share / batch_time.ms(x + y)
    theta = result.requests_per_s / 1000
    assert share.sum() <= 1 + 1e-9
    assert np.all(x + y <= token_budget)
    assert np.all(y <= cap)
    assert per_ms @ x >= theta * lengths[0] * (1 - 1e-8)
    assert per_ms @ y >= theta * lengths[1] * (1 - 1e-8)
    assert result.tokens_per_ms == pytest.approx(theta * sum(lengths))
    if seq_limit == "resident":
        held = lengths[1] + (lengths[0] > 0)
        assert theta * held <= cap * per_ms.sum() * (1 + 1e-8)


@settings(max_examples=40, deadline=None)
@given(
    batch_time=batch_times,
    token_budget=st.integers(1, 200),
    cap=st.integers(1, 200),
    seq_limit=st.sampled_from(["batch", "resident"]),
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_more_budget_or_seats_never_hurt(batch_time, token_budget, cap, seq_limit, lengths):
    def rate(budget, seqs):
        limits = {"max_num_seqs": seqs, "seq_limit": seq_limit}
        return capacity(scenario(batch_time, budget, *lengths, **limits)).requests_per_s

    here = rate(token_budget, cap) * (1 - 1e-9)
    assert here <= rate(token_budget + 7, cap)
    assert here <= rate(token_budget, cap + 1)
    assert here <= rate(token_budget, None)


def test_several_job_types_count_by_their_rates():
    jobs = (
        JobType(Poisson(3.0), (Stage(300, 50),), name="code"),
        JobType(Poisson(1.0), (Stage(100, Geometric(250.0)),), name="chat"),
    )
    limits = {"max_num_seqs": 100, "seq_limit": "resident"}
    mixed = Scenario.single_engine(CODELLAMA_34B_A100, 512, jobs, **limits)
    result, same = capacity(mixed), capacity(scenario(prefill=250, decode=100, **limits))
    assert result.requests_per_s == pytest.approx(same.requests_per_s, rel=1e-9)
    assert result.load_factor == pytest.approx(4 / result.requests_per_s)


def test_load_factor_is_one_at_the_capacity():
    s = scenario()
    assert capacity(at_load(s, 0.7)).load_factor == pytest.approx(0.7, rel=1e-9)
    assert capacity(s.at_rate(capacity(s).requests_per_s)).load_factor == pytest.approx(1)


def test_the_largest_load_is_taken_and_a_larger_one_refused():
    assert capacity(at_load(scenario(), MOST_LOAD)).load_factor == pytest.approx(MOST_LOAD)
    with pytest.raises(LLMGymError, match=f"Use at most {MOST_LOAD}"):
        at_load(scenario(), np.nextafter(MOST_LOAD, 200.0))


def test_replay_counts_by_its_means_and_may_come_at_once():
    lengths = {"prefill_tokens": [100, 158], "decode_tokens": [100, 124]}
    steady = Scenario.single_engine(CODELLAMA_34B_A100, 512, Replay([0.0, 0.5], **lengths))
    at_once = Scenario.single_engine(CODELLAMA_34B_A100, 512, Replay([3.0, 3.0], **lengths))
    expected = capacity(scenario()).requests_per_s
    assert capacity(steady).requests_per_s == pytest.approx(expected, rel=1e-9)
    assert capacity(steady).load_factor == pytest.approx(2 / expected)
    assert capacity(at_once).load_factor == float("inf")


def test_only_requests_with_a_prompt_hold_a_seat_for_it():
    limits = {"max_num_seqs": 4, "seq_limit": "resident"}
    unit = Affine(1.0, 0.0)

    def rate(workload):
        return capacity(Scenario.single_engine(unit, 64, workload, **limits)).requests_per_s

    # Four seats, one iteration a millisecond: 4/(iterations that a request stays) a millisecond.
    assert rate(Workload(Poisson(1.0), 0, 2)) == pytest.approx(4000 / 2)
    assert rate(Workload(Poisson(1.0), 5, 2)) == pytest.approx(4000 / 3)
    half = Paired([0, 5], [2, 2])
    assert rate(Workload(Poisson(1.0), paired=half)) == pytest.approx(4000 / 2.5)
    assert rate(Replay([0.0, 1.0], [0, 5], [2, 2])) == pytest.approx(4000 / 2.5)
    jobs = (
        JobType(Poisson(3.0), (Stage(0, 2),), name="continued"),
        JobType(Poisson(1.0), (Stage(5, 2),), name="fresh"),
    )
    assert rate(jobs) == pytest.approx(4000 / 2.25)


def test_batch_times_that_are_not_positive_are_refused():
    broken = Engine(Table((1.0, 0.0, 2.0)), 3)
    with pytest.raises(LLMGymError, match=r"0\.0 ms for a batch of 2 tokens"):
        Scenario((broken,), (Workload(Poisson(1.0), 3, 3),))


def test_a_scenario_may_be_named() -> None:
    assert capacity("theorem-2") == capacity(library.scenario("theorem-2"))
    with pytest.raises(LLMGymError, match="Did you mean 'theorem-2'"):
        capacity("theorem-3")
