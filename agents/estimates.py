"""What PPO estimates: values, temporal-difference errors, and advantages with the arrivals taken out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from llmgym.agents.network_choice import jobs_arrived, left_in_network
from llmgym.agents.neural import init_mlp, mlp
from llmgym.envs.rewards import Transition, came

LEFT, PRODUCTS = 4, 10
"""Entries of ``critic_inputs``: what is left in the system, and its products."""


def td_errors(
    rewards: jax.Array, values: jax.Array, last: jax.Array, discount: jax.Array
) -> jax.Array:
    """Temporal-difference errors (steps, ...) of segments that only the number of steps cuts off.

    Args:
        rewards: of the decisions (steps, ...).
        values: of the states in which they were taken (steps, ...).
        last: value of the state after them (...), from which the problem goes on.
        discount: factor for the time that each decision took (steps, ...).
    """
    following = jnp.concatenate([values[1:], last[None]])
    return rewards + discount * following - values


def without_surprise(errors: jax.Array, surprise: jax.Array, known: jax.Array) -> jax.Array:
    """TD errors (...) of a world without the noise of its arrivals, which a control variate removes.

    The products of surprise and known have mean zero whatever the decision, so their combination that
    explains the errors best, by least squares, is noise.

    Args:
        errors: TD errors of all steps and environments (...).
        surprise: what arrived in a step less its mean (..., n).
        known: what was known before the step (..., m).
    """
    products = surprise[..., :, None] * known[..., None, :]
    x = products.reshape(errors.size, -1)
    x = x / (jnp.sqrt(jnp.mean(x**2, axis=0)) + 1e-6)
    moments = x.T @ x / errors.size + 1e-4 * jnp.eye(x.shape[1])
    weights = _solve(moments, x.T @ errors.reshape(-1) / errors.size)
    return errors - (x @ weights).reshape(errors.shape)


@jax.custom_batching.sequential_vmap
def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """The solution of linear equations; of several worlds one after the other.

    Solved together, jaxlib would share them out among its threads and hold one of these until all are
    done: seeds that train side by side would take all threads, and wait for each other for ever.
    """
    return jnp.linalg.solve(matrix, right)


def advantages(errors: jax.Array, discount: jax.Array, trace: float) -> jax.Array:
    """Generalised advantage estimates (steps, ...) (arXiv:1506.02438, Eq. 16).

    Args:
        errors: TD errors (steps, ...).
        discount: factor for the time that each decision took (steps, ...).
        trace: lambda, from 0 (the TD errors alone) to 1 (the whole segment).
    """

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, discount = step
        advantage = error + discount * trace * after
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(errors[0]), (errors, discount), reverse=True)[1]


def critic_inputs(physics: Any, engine: Any, features: jax.Array) -> jax.Array:
    """What the critic sees (entries, ...): what is left in the system, products of that, features.

    What is left includes the output tokens to come. The products are there because the cost to come
    above the average grows with the square of the work.

    Args:
        physics: Params of the world.
        engine: State of its environments (...).
        features: those of the policy (features, ...); in a network (features, engines, ...), of which
            the critic sees all.
    """
    if not physics.lone:
        left = left_in_network(physics, engine)
        features = features.reshape(-1, *features.shape[2:])
    else:
        table, means = engine.table, jnp.mean(physics.means, axis=1)
        left = [
            engine.present,
            engine.backlog.to_float() / jnp.sum(means),
            jnp.sum((table.prefill == 0) & (table.decode > 0), axis=0),
            jnp.sum(table.prefill, axis=0) / jnp.maximum(means[0], 1.0),
        ]
        left = [x / 100 for x in left]
    products = [left[i] * left[j] for i in range(LEFT) for j in range(i, LEFT)]
    return jnp.concatenate([jnp.stack([*left, *products]), features])


def arrivals(physics: Any, step: Transition) -> jax.Array:
    """What arrived in a step (..., n): requests, prompt tokens and all tokens; jobs of each type."""
    if not physics.lone:
        return jnp.stack(jobs_arrived(physics, step.before, step.after), axis=-1)
    # Of the table, not of the backlog, which also grows when a request is preempted.
    table, new = step.after.table, came(step)
    prompts, output = (jnp.sum(jnp.where(new, x, 0), axis=0) for x in (table.prompt, table.output))
    return jnp.stack([step.info.arrived, prompts, prompts + output], axis=-1)


def init_critic(key: jax.Array, sees: int, hidden: int, worlds: int) -> dict[str, Any]:
    """Initial weights of ``values``: a quadratic form and the last layer of a network are of each world.

    Args:
        key: random key of the weights.
        sees: entries of ``critic_inputs``.
        hidden: units of each of the two hidden layers.
        worlds: number of worlds, whose values differ.
    """
    *layers, last = init_mlp(key, (sees + worlds, hidden, hidden, 1), 1.0)
    return {
        "network": layers,
        "own": {
            "quadratic": jnp.zeros((worlds, LEFT + PRODUCTS)),
            "weight": jnp.tile(last["weight"].T, (worlds, 1)),
            "bias": jnp.zeros(worlds),
        },
    }


def values(critic: dict[str, Any], x: jax.Array, number: jax.Array) -> jax.Array:
    """Values (worlds, ...), each in units of the scale of its world.

    The sum of a quadratic form, which every world has for itself, and of a network that all share but
    for its last layer, and that is told the world.

    Args:
        critic: weights, of ``init_critic``.
        x: what the critic sees (worlds, ..., entries), of ``critic_inputs``.
        number: of each world (worlds,), int32.
    """
    own = jax.tree.map(
        lambda w: w[number].reshape(number.size, *(1,) * (x.ndim - 2), -1), critic["own"]
    )
    world = jax.nn.one_hot(number, critic["own"]["bias"].shape[0])
    world = jnp.broadcast_to(
        world.reshape(number.size, *(1,) * (x.ndim - 2), -1), (*x.shape[:-1], world.shape[-1])
    )
    units = jnp.tanh(mlp(critic["network"], jnp.concatenate([x, world], axis=-1)))
    learned = jnp.sum(own["weight"] * units, axis=-1) + own["bias"][..., 0]
    return jnp.sum(own["quadratic"] * x[..., : LEFT + PRODUCTS], axis=-1) + learned


def in_new_units(critic: dict[str, Any], ratio: jax.Array) -> dict[str, Any]:
    """The critic whose values are the same in units that have changed (PopArt, arXiv:1809.04474).

    Without this, values grow with their unit, the unit with the values, and both without end.

    Args:
        critic: weights, of ``init_critic``.
        ratio: old unit over new unit of each world, in the order of their numbers (worlds,).
    """
    own = jax.tree.map(lambda w: w * ratio.reshape(-1, *(1,) * (w.ndim - 1)), critic["own"])
    return critic | {"own": own}
