"""Helpers on tables, and the random words, against NumPy and against JAX's own generator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p

from llmgym.core.arrays import (
    compacted,
    counted,
    first_rows,
    float_sum,
    nth_bit,
    of_class,
    one_by_one,
    prefix_sum,
    rounded,
    select,
    word_of,
)
from llmgym.engine.stream import threefry
from llmgym.scenario.lengths import Poisson


@pytest.mark.parametrize("rows", [7, 32, 100])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_first_rows(rows: int, share: float) -> None:
    mask = np.random.default_rng(rows).random((rows, 20)) < share
    slot, exists = map(np.asarray, first_rows(jnp.asarray(mask), 5))
    for env in range(mask.shape[1]):
        there = np.flatnonzero(mask[:, env])[:5]
        assert slot[: len(there), env].tolist() == there.tolist()
        assert exists[:, env].tolist() == [n < len(there) for n in range(5)]
    assert (slot < rows).all()


@pytest.mark.parametrize("rows", [1, 16, 45])
def test_prefix_sum_and_select(rows: int) -> None:
    values = np.random.default_rng(0).integers(-9, 9, (rows, 3, 2))
    assert (np.asarray(prefix_sum(jnp.asarray(values))) == values.cumsum(axis=0)).all()
    index = np.random.default_rng(1).integers(0, rows, (3, 2))
    picked = np.take_along_axis(values, index[None], axis=0)[0]
    assert (np.asarray(select(jnp.asarray(values), jnp.asarray(index))) == picked).all()


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_a_mask_as_a_word(rows: int) -> None:
    mask = np.random.default_rng(rows).random((rows, 20)) < 0.5
    assert (np.asarray(counted(jnp.asarray(mask))) == mask.cumsum(axis=0)).all()
    word = word_of(jnp.asarray(mask))
    for env in range(mask.shape[1]):
        there = np.flatnonzero(mask[:, env])
        ranks = jnp.arange(len(there))
        assert np.asarray(nth_bit(word[env], ranks)).tolist() == there.tolist()


@pytest.mark.parametrize(
    "values", [(3,), (1, 1, 1), (0, 2, 0, -1), (True, False), tuple(range(40))]
)
def test_values_of_classes(values: tuple[int, ...]) -> None:
    job_class = np.random.default_rng(0).integers(0, len(values), (4, 9))
    found = np.asarray(of_class(values, jnp.asarray(job_class)))
    assert (found == np.array(values)[job_class]).all()
    assert found.dtype == np.asarray(jnp.asarray(values)).dtype


def test_threefry_is_that_of_jax() -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (4, 1000), dtype=np.uint32)
    arguments = [jnp.asarray(w) for w in words]
    for mine, theirs in zip(threefry(*arguments), threefry2x32_p.bind(*arguments), strict=True):
        assert (mine == theirs).all()


@pytest.mark.parametrize("mean", [0.3, 32, 512])
def test_poisson_lengths_count_the_cumulative_table(mean: float) -> None:
    table = Poisson(mean).sampler()
    edges = np.asarray(table.cdf)
    drawn = np.random.default_rng(0).random(5000).astype(np.float32)
    u = np.concatenate([drawn, edges, np.nextafter(edges, 1)])
    u = np.clip(u, np.float32(2**-24), np.float32(1 - 2**-24))  # as the draws are
    assert (np.asarray(table.sample(jnp.asarray(u))) == (edges[:, None] < u).sum(axis=0)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9, 17, 64])
def test_compacted_rows_keep_their_order(count: int) -> None:
    """Of four tables side by side: the last row alone, none, all, and some at random."""
    rng = np.random.default_rng(count)
    masks = [np.arange(count) == count - 1, np.zeros(count, bool), np.ones(count, bool)]
    live = np.stack([*masks, rng.random(count) < 0.4], axis=1)
    found = np.asarray(jax.jit(compacted)(jnp.asarray(live)))
    for env in range(live.shape[1]):
        rows = np.flatnonzero(live[:, env])
        assert found[:, env].tolist() == [*rows, *[-1] * (count - rows.size)]


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (1, 1)])
def test_engines_one_by_one_are_engines_side_by_side(shape: tuple[int, ...]) -> None:
    """A function of one engine's rows, whose result has the axes of the engines last again."""
    table = jnp.arange(4 * int(np.prod(shape)), dtype=jnp.int32).reshape(4, *shape)
    lowest = jnp.arange(int(np.prod(shape)), dtype=jnp.int32).reshape(shape)
    found = one_by_one(lambda x, low: (x[::-1] + low, x.sum()), shape, table, lowest)
    np.testing.assert_array_equal(found[0], np.asarray(table)[::-1] + np.asarray(lowest))
    np.testing.assert_array_equal(found[1], np.asarray(table).sum(axis=0))


def test_a_float_sum_does_not_depend_on_the_order() -> None:
    values = np.random.default_rng(0).integers(0, 2**31 - 1, (304, 50)).astype(np.int32)
    values[:, 0] = 2**31 - 1
    found = np.asarray(float_sum(jnp.asarray(values)))
    np.testing.assert_array_equal(found, np.asarray(float_sum(jnp.asarray(values[::-1]))))
    np.testing.assert_allclose(found, values.astype(np.float64).sum(axis=0), rtol=2**-23)


def test_a_rounded_product_is_rounded_before_the_sum() -> None:
    draw = np.random.default_rng(0).uniform(0.5, 2, (3, 4096)).astype(np.float32)
    zero = np.zeros(4096, np.int32)
    found = jax.jit(lambda a, b, c, zero: rounded(a * b, zero) - c)(*draw, zero)
    np.testing.assert_array_equal(found, draw[0] * draw[1] - draw[2])
