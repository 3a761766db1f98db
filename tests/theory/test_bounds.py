"""Bounds and closed forms against the published figures and against the planning LP."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, LLAMA_3_70B, Affine, Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload
from llmgym.theory import (
    best_sarathi_under_cap,
    capacity,
    faster_transformer_capacity,
    fluid_growth,
    pollaczek_khinchine,
    rate_bound,
    relaxation_time_s,
    resident_cap_rate,
    theorem2_capacity,
)

ENGINE = Engine(CODELLAMA_34B_A100, 512)


def scenario(prefill=129, decode=112, budget=512, batch_time=CODELLAMA_34B_A100, **engine):
    workload = Workload(Poisson(5.0), prefill, decode)
    return Scenario.single_engine(batch_time, budget, workload, **engine)


def test_rate_bound_is_tight_for_full_batches_and_for_nothing_else():
    assert rate_bound(512 * 1000, 153.16 * 1000, ENGINE) == pytest.approx(0, abs=1e-6)
    assert rate_bound(128 * 1000, 46.75 * 1000, ENGINE) > 0
    assert rate_bound(512 * 1001, 153.16 * 1000, ENGINE) == pytest.approx(-512)
    assert rate_bound(0, 0, ENGINE) == 0


def test_rate_bound_uses_the_best_batch_size_and_not_the_budget():
    broken = Engine(CODELLAMA_34B_A100, 200)
    served, elapsed = 128 * 100, 46.75 * 100
    assert served > elapsed * 200 / 82.22  # above what full batches serve
    assert rate_bound(served, elapsed, broken) == pytest.approx(0, abs=1e-6)


def test_rate_bound_takes_arrays():
    slack = rate_bound(np.array([0, 512, 1024]), np.array([153.16, 153.16, 153.16]), ENGINE)
    assert slack == pytest.approx(np.array([512, 0, -512]), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    batch_time=st.sampled_from([CODELLAMA_34B_A100, LLAMA_3_70B, Affine(5.0, 0.1)]),
    batches=st.lists(st.integers(1, 700), max_size=20),
    idle_ms=st.floats(0, 100),
)
def test_no_sequence_of_batches_beats_the_rate_bound(batch_time, batches, idle_ms):
    elapsed = idle_ms + sum(float(batch_time.ms(b)) for b in batches)
    assert rate_bound(sum(batches), elapsed, Engine(batch_time, 700)) >= -1e-9


@pytest.mark.parametrize(
    ("lengths", "budget", "rate"),
    [((100, 100), 512, 16.715), ((129, 112), 512, 13.871), ((129, 112), 1024, 14.401)],
)
def test_theorem_2(lengths, budget, rate):
    s = scenario(*lengths, budget)
    assert theorem2_capacity(s) == pytest.approx(rate, abs=6e-4)
    assert theorem2_capacity(s) == pytest.approx(capacity(s).requests_per_s, rel=1e-12)


def test_theorem_2_fills_a_budget_of_broken_tiles():
    s = scenario(budget=200)
    assert theorem2_capacity(s) < 0.9 * capacity(s).requests_per_s


@pytest.mark.parametrize(
    ("load", "growth"), [(0.9, 0), (1.0, 0), (1.1, 0.334), (1.2, 0.669), (1.4, 1.337)]
)
def test_published_growth_above_capacity(load, growth):
    s = scenario(100, 100)
    assert round(fluid_growth(s, load * theorem2_capacity(s)), 3) == growth


@pytest.mark.parametrize(("cap", "limit"), [(512, "batch"), (100, "batch"), (9999, "resident")])
def test_growth_is_refused_where_a_cap_can_bind(cap, limit):
    with pytest.raises(LLMGymError, match="max_num_seqs"):
        fluid_growth(scenario(max_num_seqs=cap, seq_limit=limit), 20.0)


def test_growth_ignores_a_cap_that_cannot_bind():
    loose = scenario(max_num_seqs=513)
    assert fluid_growth(loose, 20.0) == fluid_growth(scenario(), 20.0) > 0


def test_published_faster_transformer_capacity():
    rate = faster_transformer_capacity(129, 112, ENGINE)
    assert rate == pytest.approx(0.557, abs=5e-4)
    assert rate == pytest.approx(3000 / (153.16 + 112 * 46.75), rel=1e-12)
    assert rate / theorem2_capacity(scenario()) == pytest.approx(0.04, abs=0.005)


@pytest.mark.parametrize(
    ("prefill", "decode", "engine", "rate"),
    [
        (129, 112, Engine(CODELLAMA_34B_A100, 512, max_num_seqs=2), 2 / (117.69 + 112 * 46.75)),
        (129, 112, Engine(CODELLAMA_34B_A100, 512, max_num_seqs=9), 3 / (153.16 + 112 * 46.75)),
        (600, 112, ENGINE, 0),  # no prompt fits
        (512, 0, ENGINE, 1 / 153.16),
        (0, 10, ENGINE, 512 / (10 * 153.16)),
    ],
)
def test_faster_transformer_cycle(prefill, decode, engine, rate):
    expected = pytest.approx(1000 * rate, rel=1e-12)
    assert faster_transformer_capacity(prefill, decode, engine) == expected


@settings(max_examples=60, deadline=None)
@given(
    prefill=st.integers(1, 900),
    decode=st.integers(0, 300),
    cap=st.one_of(st.none(), st.integers(1, 200)),
    batch_time=st.sampled_from([CODELLAMA_34B_A100, LLAMA_3_70B, Affine(5.0, 0.1)]),
)
def test_faster_transformer_stays_below_the_capacity(prefill, decode, cap, batch_time):
    s = scenario(prefill, decode, 512, batch_time, max_num_seqs=cap)
    reached = faster_transformer_capacity(prefill, decode, s.engine)
    assert reached <= capacity(s).requests_per_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("cap", "rate"),
    [
        (60, 11.36),
        (80, 12.09),
        (100, 12.57),
        (110, 12.76),
        (120, 12.92),
        (160, 13.38),
        (200, 13.67),
        (1e6, 14.40),
    ],
)
def test_published_rates_under_a_resident_cap(cap, rate):
    assert round(resident_cap_rate(cap, scenario(budget=1024)), 2) == rate


@settings(max_examples=80, deadline=None)
@given(
    cap=st.integers(1, 400),
    lengths=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    tile=st.integers(16, 128),
    tiles=st.integers(1, 8),
)
def test_closed_form_is_the_lp_under_a_resident_cap(cap, lengths, tile, tiles):
    time = Staircase(11.28, 35.47, tile)
    limits = {"max_num_seqs": cap, "seq_limit": "resident"}
    s = scenario(*lengths, tile * tiles, time, **limits)
    closed, planned = resident_cap_rate(cap, s), capacity(s).requests_per_s
    assert planned <= closed * (1 + 1e-9)
    if cap <= tile:  # all seats fit into one tile, so every iteration can be of whole tiles
        assert planned == pytest.approx(closed, rel=1e-8)


@pytest.mark.parametrize(
    ("cap", "budget", "rate"),
    [(80, 128, 11.36), (100, 128, 11.36), (160, 256, 12.92), (200, 384, 13.54)],
)
def test_published_best_sarathi_under_a_cap(cap, budget, rate):
    best = best_sarathi_under_cap(cap, scenario(budget=1024))
    assert best.token_budget == budget
    assert round(best.requests_per_s, 2) == rate


@settings(max_examples=60, deadline=None)
@given(cap=st.integers(1, 600), lengths=st.tuples(st.integers(1, 400), st.integers(1, 400)))
def test_sarathi_stays_below_the_closed_form(cap, lengths):
    s = scenario(*lengths, budget=1024)
    best = best_sarathi_under_cap(cap, s)
    assert best.requests_per_s <= resident_cap_rate(cap, s) * (1 + 1e-12)
    assert best.token_budget in range(128, 1025, 128)


@pytest.mark.parametrize(("load", "seconds"), [(0.9, 27), (0.95, 113), (0.98, 715), (0.99, 2880)])
def test_published_relaxation_times(load, seconds):
    # Published for a slightly smaller capacity, and rounded.
    assert relaxation_time_s(load, 13.871) == pytest.approx(seconds, rel=0.02)


def test_relaxation_time_formula():
    assert relaxation_time_s(0.25, 4.0) == pytest.approx(1 / (2 - 1) ** 2)


@pytest.mark.parametrize(
    ("rate", "service_ms", "mean"),
    [(0, 10, 0), (50, 10, 0.75), (80, 10, 2.4), (90, 10, 4.95), (1000, 0.5, 0.75)],
)
def test_pollaczek_khinchine(rate, service_ms, mean):
    assert pollaczek_khinchine(rate, service_ms) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("rate", [100, 150])
def test_pollaczek_khinchine_is_infinite_from_load_one(rate):
    assert pollaczek_khinchine(rate, 10) == float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rate_bound(-1, 10, ENGINE), "served_tokens"),
        (lambda: rate_bound(1, float("nan"), ENGINE), "elapsed_ms"),
        (lambda: rate_bound(np.array([1.0, -1.0]), 1, ENGINE), "served_tokens"),
        (lambda: rate_bound("1", 1, ENGINE), "served_tokens"),
        (lambda: fluid_growth(scenario(), -1), "rate_per_s"),
        (lambda: faster_transformer_capacity(-1, 5, ENGINE), "prefill"),
        (lambda: faster_transformer_capacity(5, 0.5, ENGINE), "decode"),
        (lambda: faster_transformer_capacity(0, 0, ENGINE), "both are 0"),
        (lambda: resident_cap_rate(0, scenario()), "cap"),
        (lambda: resident_cap_rate(10, scenario(budget=500)), "whole tiles"),
        (lambda: resident_cap_rate(10, scenario(batch_time=LLAMA_3_70B)), "Staircase"),
        (lambda: best_sarathi_under_cap(float("nan"), scenario()), "cap"),
        (lambda: best_sarathi_under_cap(10, scenario(budget=500)), "whole tiles"),
        (lambda: relaxation_time_s(1.0, 10), "below 1"),
        (lambda: relaxation_time_s(0, 10), "load"),
        (lambda: relaxation_time_s(0.5, 0), "capacity_per_s"),
        (lambda: pollaczek_khinchine(-1, 10), "arrival_rate_per_s"),
        (lambda: pollaczek_khinchine(1, 0), "service_ms"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(LLMGymError, match=message):
        call()
