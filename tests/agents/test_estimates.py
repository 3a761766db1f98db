"""Advantages and the control variate of arrivals, against NumPy."""

from __future__ import annotations

import jax
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


def test_values_stay_the_same_in_new_units() -> None:
    """Two worlds in an order of their own, whose units change by different factors."""
    random = np.random.default_rng(2)
    number = jnp.array([1, 0])
    critic = estimates.init_critic(jax.random.key(0), sees=20, hidden=8, worlds=2)
    shapes = jax.tree.map(lambda w: w.shape, critic["own"], is_leaf=lambda w: hasattr(w, "shape"))
    critic["own"] = {name: jnp.asarray(random.normal(size=x)) for name, x in shapes.items()}
    seen = jnp.asarray(random.normal(size=(2, 5, 3, 20)), jnp.float32)
    old, new = jnp.array([2.0, 30.0]), jnp.array([6.0, 5.0])  # of world 0, of world 1
    before = estimates.values(critic, seen, number) * old[number][:, None, None]
    changed = estimates.in_new_units(critic, old / new)
    after = estimates.values(changed, seen, number) * new[number][:, None, None]
    assert before.shape == (2, 5, 3)
    np.testing.assert_allclose(after, before, rtol=1e-5)
    worlds = [estimates.values(critic, seen[n : n + 1], number[n : n + 1]) for n in range(2)]
    np.testing.assert_allclose(
        jnp.concatenate(worlds) * old[number][:, None, None], before, rtol=1e-6
    )
