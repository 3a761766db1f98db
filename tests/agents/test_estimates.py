"""Advantages and the control variate of arrivals, against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from llmgym.agents import estimates


def test_advantages_equal_a_loop_in_numpy() -> None:
    """Per step: delta = r + g V' - V and A = delta + g * lambda * A'; the cut is bootstrapped."""
    random = np.random.default_rng(0)
    steps, envs, trace = 7, 3, 0.9
    rewards, values = random.normal(size=(2, steps, envs))
    last, discount = random.normal(size=envs), random.uniform(0.5, 1, (steps, envs))
    expected = np.zeros((steps, envs))
    for env in range(envs):
        following, after = last[env], 0.0
        for n in reversed(range(steps)):
            g = discount[n, env]
            after = rewards[n, env] + g * following - values[n, env] + g * trace * after
            following, expected[n, env] = values[n, env], after
    errors = estimates.td_errors(*map(jnp.asarray, (rewards, values, last, discount)))
    found = estimates.advantages(errors, jnp.asarray(discount), trace)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_what_arrivals_explain_goes_and_the_rest_stays() -> None:
    """errors = effect of the decision + noise that is a product of surprise and what was known."""
    random = np.random.default_rng(1)
    count = 20_000
    known = np.concatenate([np.ones((count, 1)), random.normal(size=(count, 2))], axis=1)
    surprise = random.poisson(2.0, (count, 1)) - 2.0
    decision = random.integers(2, size=count)
    noise = 30 * surprise[:, 0] * (1 + known[:, 1])
    errors = decision + noise
    left = np.asarray(estimates.without_surprise(*map(jnp.float32, (errors, surprise, known))))
    assert errors.std() > 50 and (left - decision).std() < 0.5
    assert left[decision == 1].mean() - left[decision == 0].mean() == pytest.approx(1.0, abs=0.02)
