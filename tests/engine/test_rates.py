"""Arrival rates at all scales: from one request a day to ten a clock tick."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from llmgym.core.errors import LLMGymError
from llmgym.engine import stream
from llmgym.engine.state import Stream
from llmgym.scenario.arrivals import MMPP, Arrivals, Deterministic, GammaRenewal, Poisson, RateCurve
from llmgym.scenario.gap_samplers import (
    FAR,
    FINE,
    NEVER,
    PERIOD,
    ExponentialGaps,
    GammaGaps,
    carried,
    lift,
    split,
)
from llmgym.scenario.replay import Replay

TICKS_PER_S = 1e5
AHEAD = 16
EXAMPLES = settings(max_examples=50, deadline=None)


def _no_lengths(index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(index), jnp.zeros_like(index)


@partial(jax.jit, static_argnames="rounds")
def _times(sampler: Any, key: jax.Array, rounds: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws of a stream as the engine makes them, and the wait that follows each round of them.

    Returns times within a round (rounds, AHEAD, runs), how many there are, and the ticks that pass.
    """
    limit, burst = jnp.full(key.shape[1:], AHEAD), jnp.int32(0)

    def body(now: Stream, _: None) -> tuple[Stream, tuple[jax.Array, ...]]:
        drawn, now = stream.draw((sampler,), (_no_lengths,), now, burst, AHEAD, limit)
        wait = jnp.min(now.wait, axis=0)
        passed = jnp.where(wait >= NEVER, 0, wait)  # as an idle step
        return stream.pass_time(now, passed), (drawn.wait, drawn.count, passed)

    begun = stream.start((sampler,), key, burst)
    return jax.lax.scan(body, begun, None, length=rounds)[1]


def arrival_ticks(
    sampler: Any, rounds: int, runs: int = 1, key: jax.Array | None = None
) -> list[np.ndarray]:
    """Arrival times of independent runs, in ticks (int64)."""
    if key is None:
        rng = np.random.default_rng(11)
        key = jnp.asarray(rng.integers(0, 2**32, (2, runs)), jnp.uint32)
    wait, count, passed = (np.asarray(x, np.int64) for x in _times(sampler, key, rounds))
    begun = np.cumsum(passed, axis=0) - passed
    real = np.arange(AHEAD)[:, None] < count[:, None]
    return [(wait + begun[:, None])[..., n][real[..., n]] for n in range(runs)]


RATES = (1e-5, 1e-4, 0.01, 3.0, 1500.0, 2e4, 1e5, 5e5, 1e6)


def rounds(rate: float) -> int:
    """Enough of them for a few hundred arrivals: a wait of days takes several."""
    return 4000 if rate < 1e-4 else 400


KINDS = {
    "poisson": lambda rate: Poisson(rate),
    "gamma": lambda rate: GammaRenewal(rate, 2.0),
    "regular": lambda rate: GammaRenewal(rate, 0.2),
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("kind", KINDS)
def test_requests_come_at_the_rate_that_was_asked_for(kind: str, rate: float) -> None:
    process = KINDS[kind](rate)
    cv = getattr(process, "cv", 1.0)
    runs = arrival_ticks(process.sampler(TICKS_PER_S), rounds(rate), 8 if rate < 1e-4 else 32)
    counts = np.array([run.size for run in runs])
    elapsed_s = np.array([run[-1] for run in runs]) / TICKS_PER_S
    # A sum of n independent gaps: mean n / rate, standard deviation cv * sqrt(n) / rate; a tick is cut.
    total, error = counts.sum() / rate, cv * np.sqrt(counts.sum()) / rate
    assert counts.min() > 100
    assert abs(elapsed_s.sum() - total) < 5 * error + len(runs) / TICKS_PER_S
    gaps = np.concatenate([np.diff(run) for run in runs]) / TICKS_PER_S
    if rate < 100 and cv <= 1:  # whole ticks are fine enough to see the law
        gaps = np.concatenate([np.diff(run) for run in runs]) / TICKS_PER_S
        law = stats.gamma(cv**-2, scale=cv**2 / rate)
        assert stats.kstest(gaps, law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("rate", RATES)
def test_regular_arrivals_are_where_they_belong_at_every_rate(rate: float) -> None:
    (times,) = arrival_ticks(Deterministic(rate).sampler(TICKS_PER_S), 200)
    exact = (np.arange(times.size) + 1) * (TICKS_PER_S / rate)
    assert times.size > 20
    assert np.abs(times - exact).max() <= 1 + 1e-9 * exact[-1]


@pytest.mark.parametrize("rate", [1e-3, 0.5, 2e5])
def test_bursts_have_their_long_run_rate_at_every_scale(rate: float) -> None:
    process = MMPP(rate, (1.0, 6.0), (20 / rate, 5 / rate))
    _long_run_rate(process, rate, MMPP_INDEX)


MMPP_INDEX = 1 + 2 * 0.8 * 0.2 * 2.5**2 * 4.0
"""Limit of the variance of counts over their mean: rates 0.5 and 3 times the mean, sojourns 20 and 5."""


@pytest.mark.parametrize("rate", [1e-4, 2.0, 1e5])
def test_a_rate_curve_has_its_rate_at_every_scale(rate: float) -> None:
    process = RateCurve(rate, (1.0, 0.0, 3.0, 4.0), period_s=40 / rate)
    _long_run_rate(process, rate, 1.0)


def _long_run_rate(process: Arrivals, rate: float, index: float) -> None:
    """Counts of 32 runs in one long window have the mean and the dispersion of the law."""
    runs = arrival_ticks(process.sampler(TICKS_PER_S), rounds(rate), 32)
    until = min(run[-1] for run in runs) * rate / TICKS_PER_S
    window = until // 40 * 40  # in mean gaps: whole periods
    counts = np.array([(run < window / rate * TICKS_PER_S).sum() for run in runs])
    assert window > 200
    assert abs(counts.mean() - window) < 5 * np.sqrt(index * window / counts.size) + 1


def test_a_night_longer_than_a_wait_is_slept_through() -> None:
    # 18 hours a day without arrivals: 6.48e9 ticks, six times what one word of a wait holds.
    day = RateCurve(40 / 86_400, (1.0, 0.0, 0.0, 0.0))
    (times,) = arrival_ticks(day.sampler(TICKS_PER_S), 600)
    phase = times % 8_640_000_000
    assert times[-1] > 5 * 8_640_000_000
    assert phase.max() < 8_640_000_000 // 4
    days = times[-1] // 8_640_000_000
    count = (times < days * 8_640_000_000).sum()
    assert abs(count - 40 * days) < 5 * np.sqrt(40 * days)


def test_a_replay_keeps_its_times_however_far_apart() -> None:
    listed = np.array([0.0, 0.00004, 10_737.41824, 21_474.83648, 5e4, 5e4, 1e6, 2.5e8])
    sampler = Replay(listed, [1] * 8, [1] * 8).gap_sampler(TICKS_PER_S)
    (times,) = arrival_ticks(sampler, 30_000)
    np.testing.assert_array_equal(times, np.rint(listed * TICKS_PER_S).astype(np.int64))


def test_one_program_serves_all_rates() -> None:
    before = _times._cache_size()
    for rate in (1e-5, 1.0, 1e6):
        arrival_ticks(Poisson(rate).sampler(TICKS_PER_S), 7)
    assert _times._cache_size() <= before + 1


DAY = (*[1.0] * 8, *[0.0] * 2, *[1.0] * 14)
HELD = {
    "poisson": (Poisson(13.871), [6798, 13952, 14839, 20482], 773636, 37633548),
    "poisson, fast": (Poisson(1500.0), [63, 129, 137, 189], 7150, 347900),
    "gamma": (GammaRenewal(20.0, 2.0), [47199, 47204, 63700, 63701], 623310, 32645863),
    "deterministic": (Deterministic(13.871), [7209, 14418, 21627, 28837], 728137, 36406836),
    "mmpp": (MMPP(30.0, (1.0, 6.0), (2.0, 0.5)), [730, 1319, 1417, 1740], 394240, 13837703),
    "curve": (
        RateCurve(50.0, (1.0, 0.0, 3.0, 4.0), 2.0),
        [2861, 6346, 16154, 21592],
        197996,
        14021168,
    ),
    "day": (
        RateCurve(400 / 86_400, (*[1.0] * 8, *[0.0] * 2, *[1.0] * 14)),
        [14163530, 31415690, 79965545, 106884280],
        1916076140,
        97320471460,
    ),
}
"""The first four arrival times of a run in ticks, number 100, and the sum of 100, as they always were."""


@pytest.mark.parametrize("name", HELD)
def test_typical_rates_draw_what_they_always_drew(name: str) -> None:
    process, first, late, total = HELD[name]
    key = jnp.array([[1], [3]], jnp.uint32)
    (times,) = arrival_ticks(process.sampler(TICKS_PER_S), 10, key=key)
    assert times[:4].tolist() == first
    assert (times[100], times[:100].sum()) == (late, total)


@given(wait=st.integers(-(2**30), 2**31 - 2), later=st.integers(0, 2**31 - 1))
@example(wait=0, later=1)
@example(wait=int(FAR), later=2**31 - 1)
@example(wait=int(FAR) - 1, later=3)
@EXAMPLES
def test_a_wait_keeps_its_length_when_periods_move_into_it(wait: int, later: int) -> None:
    new, rest = (int(x) for x in lift(jnp.int32(wait), jnp.int32(later)))
    assert new + rest * PERIOD == wait + later * PERIOD
    assert 0 <= rest <= later
    assert rest == 0 or FAR <= new < FAR + PERIOD or new == wait >= FAR


@given(ticks=st.floats(0, 2.0**59, width=32, allow_subnormal=False))  # XLA takes those for 0
@EXAMPLES
def test_splitting_a_gap_loses_nothing(ticks: float) -> None:
    rest, periods = (float(x) for x in split(jnp.float32(ticks)))
    assert rest + periods * PERIOD == ticks
    assert rest < FAR
    assert periods == int(periods)


@given(
    gaps=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40),
    phase=st.integers(0, 2**32 - 1),
)
@EXAMPLES
def test_carried_fractions_add_up(gaps: list[float], phase: int) -> None:
    # The compiler takes no numbers below the normal ones. Always 40 of them: one program.
    ticks = np.zeros(40, np.float32)
    ticks[: len(gaps)] = [g if g > 1e-30 else 0.0 for g in gaps]
    memory = jnp.array([7, phase], jnp.uint32)
    states = jnp.full(41, 7, jnp.uint32)
    gap, memories = jax.jit(carried)(
        jnp.asarray(ticks), jnp.zeros(40), jnp.bool_(True), memory, states
    )
    exact = phase + sum(int(float(t) * 2**32) for t in ticks)
    assert (int(gap.to_numpy().sum()) << 32) + int(memories[-1, 1]) == exact
    assert (np.asarray(memories[:, 0]) == 7).all()


@pytest.mark.parametrize("mean", [FINE, 100.0, 1e4])
def test_rounding_from_the_limit_on_costs_less_than_one_part_in_ninety_thousand(
    mean: float,
) -> None:
    rounded = 1 / (2 * np.sinh(1 / (2 * mean)))  # sum over n of P(gap > n - 1/2)
    assert 0 < 1 - rounded / mean < 1 / 90_000


@pytest.mark.parametrize("sampler", [ExponentialGaps, GammaGaps])
def test_gaps_at_the_limit_are_rounded_and_just_below_are_not(sampler: Any) -> None:
    more = (jnp.float32(1.0),) if sampler is GammaGaps else ()
    words = jax.random.bits(jax.random.key(0), (64,), jnp.uint32)
    for mean, fine in ((FINE, False), (np.nextafter(np.float32(FINE), np.float32(0)), True)):
        made = sampler(jnp.float32(mean), *more)
        _, memories = made.gaps(jnp.zeros(2, jnp.uint32), jnp.int32(0), words)
        assert bool((memories[1:, 1] != 0).all()) == fine
        assert bool((memories[:, 1] != 0).any()) == fine


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (Poisson(1e-8), r"too few for a clock tick of 0\.01 ms; the fewest are 9\.09e-08.*larger"),
        (Deterministic(1e-8), "larger tick_ms"),
        (GammaRenewal(1e-9, 3.0), "larger tick_ms"),
        (MMPP(1e-9, (1, 2), (1e7, 1e7)), "larger tick_ms"),
        (RateCurve(1e-9, (1, 2), 1e6), "larger tick_ms"),
        (
            Poisson(1.1e8),
            r"too many for a clock tick of 0\.01 ms; the most are 1\.02e\+08.*smaller",
        ),
        (Deterministic(1.1e8), "smaller tick_ms"),
        (GammaRenewal(1e9, 3.0), "smaller tick_ms"),
        (MMPP(1e7, (1, 1000), (1, 0.0001)), "smaller tick_ms"),
        (RateCurve(8e7, (1, 3), 1.0), "smaller tick_ms"),
        (MMPP(1e-4, (1, 2), (1, 0.01)), "a sojourn of 0.01 s away.*use Poisson"),
        (RateCurve(1e-5, (1, 2), 1.0), "a bin or sojourn of 0.5 s away.*use Poisson"),
    ],
    ids=str,
)
def test_rates_beyond_the_clock_are_refused(process: Arrivals, message: str) -> None:
    with pytest.raises(LLMGymError, match=message) as raised:
        process.sampler(TICKS_PER_S)
    assert "\n" not in str(raised.value)
