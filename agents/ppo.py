"""Proximal policy optimisation (PPO) of tile and network policies, the whole loop compiled.

PPO: Schulman et al., 2017, arXiv:1707.06347. The problem is continuing and its decisions take different
times tau, so it is a semi-Markov decision process. With N requests present the reward of a decision is
-N * tau, and with ``late_weight`` also minus the weighted time that requests were late in it. In the
average-cost form eta * tau is added, eta the cost per second under the policy: values then measure what
is still to come beyond the average. In the discounted form what comes t seconds later counts
exp(-t / horizon_s). The two can be combined.

One policy learns from many worlds at once: several scenarios, or several loads of one. It does not know
which world it is in; the critic does, and it sees the work that is hidden from policies. A world is a block
of environments small enough for a core's cache; worlds are collected one after the other.

In a network all engines that are free decide together: features, masks and choices have an axis of
engines before the environments, the probability of a decision is the product over the engines, and the
critic sees all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from llmgym.agents.choice import Choice
from llmgym.agents.estimates import (
    LEFT,
    PRODUCTS,
    advantages,
    arrivals,
    critic_inputs,
    in_new_units,
    init_critic,
    td_errors,
    values,
    without_surprise,
)
from llmgym.agents.learner import Experience, Learner, World
from llmgym.agents.neural import log_probs
from llmgym.agents.tile_choice import TileChoice
from llmgym.core.checks import check_flag, check_kind, keep_number
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.engine.epoch import run_epoch
from llmgym.engine.view import Batch, View
from llmgym.envs.rewards import ServiceLevels, Transition, tardiness, weighted_holding

MEMORY = 0.9
"""Weight that the averages of a world so far keep in an iteration."""


@dataclass(frozen=True)
class PPO:
    """Settings of the learner.

    Args:
        choice: what the policy observes and may do, with prior and guard.
        num_envs: environments of a world; steps: decisions of each in an iteration.
        epochs, minibatches: passes over the data of an iteration, and updates of a pass.
        learning_rate: of Adam at the start; it falls linearly to a tenth.
        warm_up: share of the iterations, at the start, in which only the critic learns.
        clip, value_weight: half-width of the range of the ratio, and weight of the critic's loss.
        max_gradient: norm to which gradients are clipped, of actor and critic separately.
        entropy: bonus at the start; it falls linearly to 0.
        trace: lambda of generalised advantage estimation.
        average_cost: subtract eta * tau from the cost.
        horizon_s: of the discount; None: no discount.
        prefill_weight: weight in N of a request with prompt left; one that decodes counts 1.
        late_weight: what a late request costs on top of one that is present, times the weight of its
            class (see ``tardiness``); needs ``levels``, the targets and weights of the classes.
        control: a control variate removes the noise of the arrivals; needs Poisson arrivals.
        hidden: units of each of the two hidden layers of actor and critic.
    """

    choice: Choice = field(default_factory=TileChoice)
    num_envs: int = 64
    steps: int = 128
    epochs: int = 2
    minibatches: int = 4
    learning_rate: float = 2e-3
    warm_up: float = 0.05
    clip: float = 0.2
    value_weight: float = 0.5
    max_gradient: float = 0.5
    entropy: float = 0.01
    trace: float = 0.98
    average_cost: bool = True
    horizon_s: float | None = 300.0
    prefill_weight: float = 1.4
    late_weight: float = 0.0
    levels: ServiceLevels | None = None
    control: bool = True
    hidden: int = 32

    def __post_init__(self) -> None:
        for name in ("num_envs", "steps", "epochs", "minibatches", "hidden"):
            keep_number(self, name, low=1, high=2**20, integer=True)
        if self.steps % self.minibatches:
            raise LLMGymError(
                f"steps = {self.steps} must be a multiple of minibatches = {self.minibatches}."
            )
        for name in ("learning_rate", "clip", "max_gradient", "prefill_weight"):
            keep_number(self, name, above=0)
        for name in ("entropy", "value_weight", "warm_up", "late_weight"):
            keep_number(self, name, low=0)
        if self.warm_up >= 1:
            raise LLMGymError(
                f"warm_up must be below 1, got {self.warm_up:g}: it is the share of the iterations in "
                "which the policy does not learn."
            )
        keep_number(self, "trace", low=0, high=1)
        for name in ("average_cost", "control"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        check_kind("choice", self.choice, Choice)
        if self.levels is not None:
            check_kind("levels", self.levels, ServiceLevels)
        if self.late_weight > 0 and self.levels is None:
            raise LLMGymError("late_weight needs targets: give levels=ServiceLevels.of(scenario).")
        if self.horizon_s is not None:
            keep_number(self, "horizon_s", above=0)
        elif not self.average_cost:
            raise LLMGymError("Without average_cost values are infinite: give a horizon_s.")

    def optimizer(self, iterations: int) -> optax.GradientTransformation:
        """Adam on clipped gradients, for actor and critic separately."""
        updates = iterations * self.epochs * self.minibatches
        rate = optax.linear_schedule(self.learning_rate, self.learning_rate / 10, updates)
        one = optax.chain(optax.clip_by_global_norm(self.max_gradient), optax.adam(rate, eps=1e-5))
        names = {"actor": "actor", "critic": "critic"}
        return optax.partition({"actor": one, "critic": one}, names)

    def params(self, key: jax.Array, worlds: int) -> dict[str, Any]:
        """Initial weights: the policy is nearly its prior, and the quadratic forms of values are 0."""
        keys = jax.random.split(key)
        sees = LEFT + PRODUCTS + len(self.choice.features) * self.choice.engines
        return {
            "actor": self.choice.init_actor(keys[0], self.hidden),
            "critic": init_critic(keys[1], sees, self.hidden, worlds),
        }


def cost_of(settings: PPO, step: Transition) -> jax.Array:
    """Cost of a step (...), request-seconds: those present, and those late."""
    cost = -weighted_holding(step, settings.prefill_weight, 1.0)
    if settings.late_weight > 0 and settings.levels is not None:
        cost -= settings.late_weight * tardiness(step, settings.levels)
    return cost


def _collect(
    settings: PPO, actor: Any, iteration: jax.Array, physics: Any, world: World
) -> tuple[World, Experience, jax.Array, jax.Array]:
    """An iteration of one world; what the critic sees after it; the mean number of requests present."""
    choice, key = settings.choice, jax.random.fold_in(
        jax.random.wrap_key_data(world.key), iteration
    )  # fmt: skip
    # Engines whose table was full have lost requests: they start again, empty.
    new = simulator.init(physics, jax.random.split(jax.random.fold_in(key, 0), settings.num_envs))
    full = world.engine.totals.dropped > 0
    start = (world.engine, world.memory)
    fresh = (new, choice.start(simulator.view(physics, new)) if choice.remembers else None)
    engine, memory = jax.tree.map(lambda a, b: jnp.where(full, a, b), fresh, start)
    shared = len(choice.features)  # the critic does not see those of single requests
    last_axis = partial(jnp.moveaxis, source=0, destination=-1)

    def explore(memory: Any, n: jax.Array, view: View) -> tuple[Batch, Any]:
        sight = choice.look(view, memory)
        features, mask, prior = map(last_axis, (sight.features, sight.mask, sight.prior))
        log_p = log_probs(choice.parts, prior + choice.logits(actor, features), mask)
        noise = jax.random.gumbel(jax.random.fold_in(key, n + 1), log_p.shape)
        chosen = choice.choose(view, jnp.where(mask, log_p + noise, -jnp.inf))
        batch, memory = choice.decide(view, jnp.moveaxis(chosen, -1, 0), memory)
        return batch, (memory, sight.features, features, mask, prior, log_p, chosen)

    def decide(carry: tuple[Any, Any], n: jax.Array) -> tuple[tuple[Any, Any], Experience]:
        engine, memory = carry
        epoch = run_epoch(physics, engine, partial(explore, memory, n))
        memory, seen, features, mask, prior, log_p, chosen = epoch.told
        step = Transition(engine, epoch.info, epoch.after, physics.tick_ms)
        arrived = arrivals(physics, step)
        return (epoch.after, memory), Experience(
            features=features,
            mask=mask,
            prior=prior,
            choice=chosen,
            log_prob=choice.log_prob_of(log_p, chosen),
            critic=last_axis(critic_inputs(physics, engine, seen[:shared])),
            cost=cost_of(settings, step),
            seconds=step.duration_s,
            surprise=arrived - step.duration_s[:, None] * world.rates,
        )

    steps = jnp.arange(settings.steps)
    (after, memory), experience = jax.lax.scan(decide, (engine, memory), steps)
    sight = choice.look(simulator.view(physics, after), memory)
    last = last_axis(critic_inputs(physics, after, sight.features[:shared]))
    ticks = after.totals.request_ticks.low - engine.totals.request_ticks.low
    present = jnp.sum(ticks.astype(jnp.float32)) * physics.tick_ms / 1000
    world = replace(world, engine=after, memory=memory)
    return world, experience, last, present / jnp.sum(experience.seconds)


def _judge(
    settings: PPO, critic: dict[str, Any], data: Experience, last: jax.Array, number: jax.Array,
    eta: jax.Array, scale: jax.Array,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Values of the states and advantages of the decisions in them (worlds, steps, envs)."""
    eta, scale = eta[:, None, None], scale[:, None, None]
    reward = -data.cost + (eta * data.seconds if settings.average_cost else 0.0)
    far = jnp.inf if settings.horizon_s is None else settings.horizon_s
    discount = jnp.exp(-data.seconds / far)
    value = scale * values(critic, data.critic, number)
    end = scale[..., 0] * values(critic, last, number)
    errors = jax.vmap(td_errors)(reward, value, end, discount)
    if settings.control:
        one = jnp.ones_like(data.critic[..., :1])
        parts = [one, data.critic[..., :LEFT], data.critic[..., LEFT + PRODUCTS :]]
        known = jnp.concatenate(parts, axis=-1)
        errors = jax.vmap(without_surprise)(errors, data.surprise, known)
    return value, jax.vmap(partial(advantages, trace=settings.trace))(errors, discount)


def _loss(
    settings: PPO, params: dict[str, Any], data: Experience, target: jax.Array,
    advantage: jax.Array, number: jax.Array, acting: jax.Array, entropy_weight: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """PPO's loss on a minibatch (worlds, steps, envs, ...), and figures for the learning curve.

    ``acting`` is 0 while only the critic learns, else 1; ``target`` is in units of the worlds' scales.
    """
    choice = settings.choice
    logits = data.prior + choice.logits(params["actor"], data.features)
    log_p = log_probs(choice.parts, logits, data.mask)
    log_ratio = choice.log_prob_of(log_p, data.choice) - data.log_prob
    ratio = jnp.exp(log_ratio)
    cut = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    surrogate = jnp.mean(jnp.minimum(ratio * advantage, cut * advantage))
    entropy = -jnp.mean(jnp.sum(jnp.where(data.mask, jnp.exp(log_p) * log_p, 0.0), axis=-1))
    value_loss = jnp.mean((values(params["critic"], data.critic, number) - target) ** 2)
    total = settings.value_weight * value_loss - acting * (surrogate + entropy_weight * entropy)
    return total, {
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": jnp.mean(ratio - 1 - log_ratio),
        "clipped": jnp.mean(jnp.abs(ratio - 1) > settings.clip),
    }


def _update(
    settings: PPO, learner: Learner, iterations: int, data: Experience, target: jax.Array,
    advantage: jax.Array, number: jax.Array,
) -> tuple[Learner, dict[str, jax.Array]]:  # fmt: skip
    """Epochs of minibatches; a minibatch has some of the steps, of all worlds and environments."""
    done = learner.iteration / iterations
    acting = (done >= settings.warm_up).astype(jnp.float32)
    optimize = settings.optimizer(iterations)

    def one(carry: Any, steps: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        params, state = carry
        picked = jax.tree.map(lambda x: x[:, steps], (data, target, advantage))
        gradient, told = jax.grad(partial(_loss, settings), has_aux=True)(
            params, *picked, number, acting, settings.entropy * (1 - done)
        )
        changes, state = optimize.update(gradient, state, params)
        return (optax.apply_updates(params, changes), state), told

    key = jax.random.fold_in(jax.random.wrap_key_data(learner.key), learner.iteration)
    shuffle = jax.vmap(lambda k: jax.random.permutation(k, settings.steps))
    order = shuffle(jax.random.split(key, settings.epochs))
    order = order.reshape(settings.epochs * settings.minibatches, -1)
    (params, state), told = jax.lax.scan(one, (learner.params, learner.optimizer), order)
    return replace(learner, params=params, optimizer=state), jax.tree.map(jnp.mean, told)


def iterate(
    settings: PPO, iterations: int, physics: tuple[Any, ...], learner: Learner
) -> tuple[Learner, dict[str, jax.Array]]:
    """Collect experience in all worlds, then update the weights; also a row of the learning curve.

    Args:
        settings: of the learner.
        iterations: of the whole run, over which learning rate and entropy bonus fall.
        physics: Params of every group of worlds, stacked as in ``learner.worlds``.
        learner: as the iteration before left it.
    """
    act = partial(_collect, settings, learner.params["actor"], learner.iteration)
    groups = [
        jax.lax.map(lambda x: act(*x), pair) for pair in zip(physics, learner.worlds, strict=True)
    ]
    data, last, present = jax.tree.map(lambda *x: jnp.concatenate(x), *(g[1:] for g in groups))
    old = [replace(g[0], engine=None, memory=None) for g in groups]
    world = jax.tree.map(lambda *x: jnp.concatenate(x), *old)
    cost = MEMORY * world.cost + jnp.sum(data.cost, axis=(1, 2))
    seconds = MEMORY * world.seconds + jnp.sum(data.seconds, axis=(1, 2))
    critic, eta = learner.params["critic"], cost / seconds
    value, advantage = _judge(settings, critic, data, last, world.number, eta, world.scale)
    target = value + advantage
    spread = jnp.var(target, axis=(1, 2))
    explained = 1 - jnp.var(advantage, axis=(1, 2)) / jnp.maximum(spread, 1e-6)
    mean, deviation = (f(advantage, axis=(1, 2), keepdims=True) for f in (jnp.mean, jnp.std))
    learner, told = _update(
        settings, learner, iterations, data, target / world.scale[:, None, None],
        (advantage - mean) / (deviation + 1e-8), world.number,
    )  # fmt: skip
    memory = jnp.where(learner.iteration == 0, 0.0, MEMORY)
    scale = jnp.sqrt(memory * world.scale**2 + (1 - memory) * spread)
    ratio = jnp.zeros_like(scale).at[world.number].set(world.scale / scale)
    params = learner.params | {"critic": in_new_units(learner.params["critic"], ratio)}
    worlds, start = [], 0
    for group, *_ in groups:
        mine = slice(start, start + group.number.shape[0])
        worlds.append(replace(group, cost=cost[mine], seconds=seconds[mine], scale=scale[mine]))
        start = mine.stop
    row = told | {"present": present, "cost": eta, "explained": explained}
    return replace(
        learner, params=params, worlds=tuple(worlds), iteration=learner.iteration + 1
    ), row
