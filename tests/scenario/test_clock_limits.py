"""Times that a clock of whole ticks cannot hold are refused, and the message says what would do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import Affine, BatchTime, Hinge, MeasuredTable, Roofline, Staircase
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.lengths import Geometric
from llmgym.scenario.replay import Replay

WORKLOAD = llmgym.Workload(llmgym.Poisson(1.0), Geometric(100), Geometric(100))


def engine(model: BatchTime, tick_ms: float = 0.01, budget: int = 256, **more: Any) -> Any:
    """A scenario of one engine."""
    return llmgym.Scenario.single_engine(model, budget, WORKLOAD, tick_ms=tick_ms, **more)


@dataclass(frozen=True)
class Own(BatchTime):
    """A model of a user's own: a constant, whatever it is."""

    constant_ms: float

    def formula(self, tokens: Any, xp: Any, attention: Any = None) -> Any:
        return self.constant_ms + 0 * tokens


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: engine(Staircase(11.28, 35.47, 128), 1e-9),
            "may take 82.22 ms; .*tick_ms = 8e-08 or more",
        ),
        (lambda: engine(Affine(46.76, 0.0), 1000.0), "46.76 ms, which .* 1000 ms.*tick_ms = 0.9 "),
        (lambda: engine(Affine(1e-6, 0.0)), "1e-06 ms, which .* make 0.01 ms.*tick_ms = 2e-08 "),
        (lambda: engine(Affine(3e7, 0.0)), r"is 1\.07374e\+07 ms. Use tick_ms = 0.03 or more"),
        (lambda: engine(Affine(1e13, 0.0), 1000.0), "Use shorter times"),
        (lambda: engine(Affine(0.014, 0.0)), "0.014 ms, which .* make 0.01 ms"),
        (lambda: engine(Affine(0.0, 1e-4), budget=2**20), "tick_ms = 2e-06 or less"),
        (lambda: engine(MeasuredTable((1, 9), (1e-6, 1e7)), 1.0), "bring the two closer"),
        (lambda: engine(Roofline(5.0, 0.0, 0, 1e5), 1e-3), "may take"),
        (
            lambda: engine(Hinge(1.0, 1.0, 64), 1.0, kv_cache=KVCache(64, 16, False, 1e-8)),
            "may take",
        ),
        (lambda: engine(Own(0.0)), "gives 0.0 ms for a batch of 1 tokens; .* positive and finite"),
        (lambda: engine(Own(-1.0)), "positive and finite"),
        (lambda: engine(Own(float("nan"))), "positive and finite"),
        (lambda: engine(Affine(1.0, 0.0), 1e-12), "tick_ms must be at least 1e-09"),
    ],
)
def test_batch_times_that_would_be_rounded_or_cut_are_refused(make: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_change_of_the_tick_is_judged_as_well() -> None:
    with pytest.raises(LLMGymError, match="a batch of 1 tokens takes 46"):
        llmgym.scenario("geometric").override(tick_ms=1000.0)


@pytest.mark.parametrize(
    ("delay_ms", "message"), [(3, "a delay of 3 ms is made 10 ms"), (10**6, "tick_ms = 0.001 or")]
)
def test_delays_that_would_be_rounded_or_cut_are_refused(delay_ms: int, message: str) -> None:
    call = llmgym.Stage(5, 5, name="call")
    wait = llmgym.Stage(name="wait", delay_ms=llmgym.Fixed(delay_ms), after=("call",))
    job = llmgym.JobType(llmgym.Poisson(1.0), (call, wait))
    tick_ms = 10.0 if delay_ms == 3 else 1e-7
    batch_time = Affine(100.0, 0.0) if delay_ms == 3 else Affine(1.0, 0.0)
    llmgym.Scenario.single_engine(batch_time, 64, job, tick_ms=0.01)
    with pytest.raises(LLMGymError, match=f"'wait'.*{message}"):
        llmgym.Scenario.single_engine(batch_time, 64, job, tick_ms=tick_ms)


def test_delays_from_zero_on_are_refused_by_their_longest() -> None:
    stages = (
        llmgym.Stage(name="call", prefill=llmgym.Fixed(8), decode=llmgym.Fixed(1)),
        llmgym.Stage(name="wait", delay_ms=llmgym.Uniform(0, 3), after=("call",)),
    )
    jobs = llmgym.JobType(llmgym.Poisson(0.1), stages)
    with pytest.raises(
        LLMGymError, match=r"a delay of 3 ms is made 4 ms .* tick_ms = 0\.06 or less"
    ):
        llmgym.Scenario.single_engine(Affine(200.0, 0.0), 512, jobs, tick_ms=2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_unbounded_lengths_and_many_slots_are_no_reason_to_refuse(name: str) -> None:
    engine(PRESETS[name], budget=8192, slots=8192)


def test_a_replay_counts_with_its_longest_request() -> None:
    slow = Roofline(5.0, 0.0, 0, kv_ms_per_kilotoken=1e6)
    short, long = (Replay([0.0, 1.0], [n, 1], [1, 1]) for n in (100, 10**6))
    llmgym.Scenario.single_engine(slow, 8, short, slots=2)
    with pytest.raises(LLMGymError, match="a batch may take 2e"):
        llmgym.Scenario.single_engine(slow, 8, long, slots=2)


@given(
    c_ms=st.floats(1e-7, 1e8),
    a_ms=st.floats(0, 1e3),
    tick=st.integers(-8, 3),
    budget=st.sampled_from([1, 7, 64]),
)
@settings(max_examples=80, deadline=None)
def test_what_is_accepted_runs_within_one_percent_and_what_is_not_names_a_tick(
    c_ms: float, a_ms: float, tick: int, budget: int
) -> None:
    tick_ms, model = 10.0**tick, Affine(c_ms, a_ms)
    sizes = np.arange(1, budget + 1)
    exact = [Fraction(c_ms) + Fraction(a_ms) * int(b) for b in sizes]
    ticks = [max(round(t / Fraction(tick_ms)), 1) for t in exact]
    off = max(abs(n * Fraction(tick_ms) / t - 1) for n, t in zip(ticks, exact, strict=True))
    fits = off <= Fraction(1, 100) and exact[-1] / Fraction(tick_ms) <= 2**30
    assume(abs(off - Fraction(1, 100)) > 1e-9)
    if not fits:
        with pytest.raises(LLMGymError) as raised:
            engine(model, tick_ms, budget)
        message = str(raised.value)
        named = re.search(r"tick_ms = (\S+) or (less|more)", message)
        assert named or "shorter times" in message or "closer together" in message
        if named and named[2] == "less":
            engine(model, float(named[1]), budget)
        return
    engine(model, tick_ms, budget)
    lowered = Affine(jnp.float32(c_ms), jnp.float32(a_ms))
    run = np.asarray(lowered.ticks(jnp.asarray(sizes), jnp.float32(tick_ms)), float) * tick_ms
    np.testing.assert_allclose(run, np.array(exact, float), rtol=0.0101)


def test_engines_at_the_edge_of_the_clock_divide_by_nothing() -> None:
    # One tick a batch: the shortest time there is.
    fast = engine(Affine(1e-9, 0.0), 1e-9, 64, slots=16).at_rate(1e6)
    assert llmgym.capacity(fast).requests_per_s == pytest.approx(64 / 200 * 1e12)
    summary = llmgym.simulate(fast, "sarathi", duration_s=1e-6).summary
    assert np.isfinite(summary["requests_per_s"])
    assert np.isfinite(summary["mean_in_system"])
