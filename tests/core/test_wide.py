"""Two-word counters against Python's integers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmgym.core.wide import Wide

EXAMPLES = settings(max_examples=100, deadline=None)
counters = st.one_of(
    st.integers(0, 2**62),
    st.sampled_from([0, 2**32 - 1, 2**32, 2**33 - 1, 2**62 - 1]),
)
words = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 1]))
factors = st.one_of(st.integers(0, 2**31 - 1), st.sampled_from([0, 2**16 - 1, 2**16, 2**31 - 1]))


def value(wide: Wide) -> int:
    return int(wide.to_numpy())


@given(start=counters)
@EXAMPLES
def test_of_and_back(start: int) -> None:
    assert value(Wide.of(start)) == start


@given(start=counters, amount=words)
@example(start=2**32 - 1, amount=1)
@EXAMPLES
def test_sum(start: int, amount: int) -> None:
    assert value(Wide.of(start) + jnp.uint32(amount)) == start + amount


@given(start=counters, amount=st.integers(-(2**31), 2**31 - 1))
@example(start=2**32, amount=1)
@example(start=2**32 - 1, amount=-1)
@EXAMPLES
def test_difference(start: int, amount: int) -> None:
    amount = min(amount, start)
    assert value(Wide.of(start) - jnp.int32(amount)) == start - amount


@given(start=counters)
@EXAMPLES
def test_as_a_float_it_is_right_to_seven_digits(start: int) -> None:
    assert abs(float(Wide.of(start).to_float()) - start) <= start * 2.0**-23
    assert float(Wide.of(start % 2**24).to_float()) == start % 2**24


@given(start=st.integers(0, 2**61), a=factors, b=factors)
@example(start=2**32 - 1, a=2**31 - 1, b=2**31 - 1)
@EXAMPLES
def test_sum_of_a_product(start: int, a: int, b: int) -> None:
    assert value(Wide.of(start).add_product(jnp.int32(a), jnp.int32(b))) == start + a * b


def test_sum_of_many() -> None:
    random = np.random.default_rng(0)
    for most, count in ((2**16 - 1, 7), (2**16, 7), (2**31 - 1, 7), (2**31 - 1, 2**15)):
        amounts = random.integers(0, most, count, endpoint=True)
        amounts[:3] = most
        found = Wide.of(2**32 - 1).add_sum(jnp.asarray(amounts, jnp.int32))
        assert value(found) == 2**32 - 1 + amounts.sum()


@given(start=counters, later=counters)
@example(start=2**32 - 1, later=2**32)
@example(start=2**32, later=2**32 - 1)
@example(start=2**33, later=2**33 + 2**30)
@EXAMPLES
def test_until(start: int, later: int) -> None:
    expected = min(max(later - start, 0), 2**30 - 1)
    assert int(Wide.of(start).until(Wide.of(later))) == expected


@given(start=counters, gap=st.integers(-(2**33), 2**33))
@EXAMPLES
def test_until_of_near_times(start: int, gap: int) -> None:
    later = max(start + gap, 0)
    expected = min(max(later - start, 0), 2**30 - 1)
    assert int(Wide.of(start).until(Wide.of(later))) == expected


def test_a_counter_does_not_drift_over_many_carries() -> None:
    counters = Wide.zeros((2,))
    step = jnp.array([2**32 - 1, 2**31 + 12345], jnp.uint32)
    for _ in range(500):
        counters = counters + step
    np.testing.assert_array_equal(counters.to_numpy(), 500 * np.asarray(step, np.int64))
