"""The calls that ended, read from bits, against the order of a loop over stations and rows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from llmgym.engine.ended import Ended

ENVS = 6


@pytest.mark.parametrize(("rows", "stations"), [(16, 1), (48, 3), (80, 2), (1100, 2)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_calls_are_passed_on_in_order(rows: int, stations: int, share: float) -> None:
    mask = np.random.default_rng(rows).random((rows, stations, ENVS)) < share
    column = jnp.arange(rows * stations * ENVS).reshape(mask.shape)
    ended = Ended.of(jnp.asarray(mask), jnp.asarray(True))
    due = [[column[r, s, e] for s in range(stations) for r in np.flatnonzero(mask[:, s, e])]
           for e in range(ENVS)]  # fmt: skip
    for passed in (0, 3, 35):
        ended = Ended(ended.words, ended.upto, jnp.minimum(passed, ended.upto[-1]))
        take, there = ended.next(5, stations)
        found, left = np.asarray(take(column)), np.asarray(ended.mask(rows, stations))
        for env, calls in enumerate(due):
            rest = calls[passed:]
            assert int(ended.left[env]) == len(rest)
            assert there[:, env].tolist() == [n < len(rest) for n in range(5)]
            assert found[: len(rest), env].tolist() == [int(c) for c in rest[:5]]
            assert sorted(np.asarray(column)[left & (np.arange(ENVS) == env)]) == sorted(rest)


def test_without_any_the_mask_is_not_read() -> None:
    assert not Ended.of(jnp.ones((16, 1, 2), bool), jnp.asarray(False)).any.any()
