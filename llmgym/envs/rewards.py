"""Rewards by name. A reward is a function ``reward(transition) -> float32`` of one decision epoch.

Times are in seconds and costs in natural units (request-seconds, thousand tokens, requests), so
that rewards of usual scenarios are of the order of 1 to 100 a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.pytree import register
from llmgym.scenario import Scenario
from llmgym.state import Table


@register
@dataclass(frozen=True)
class Transition:
    """What a reward may look at: the engine before and after the step, and what happened in it."""

    before: Any
    info: Any  # StepInfo, or NetworkInfo
    after: Any
    tick_ms: jax.Array

    @property
    def duration_s(self) -> jax.Array:
        """Length of the step in seconds."""
        return self.info.duration.astype(jnp.float32) * self.tick_ms / 1000


Reward = Callable[[Transition], jax.Array]


def holding_cost(step: Transition) -> jax.Array:
    """Minus the integral of the number of requests present, in request-seconds: -N * tau.

    Requests that arrive within the step count from their arrival. By Little's law the average of
    this reward per second is minus the arrival rate times the mean time in system.
    """
    return -step.info.request_ticks * step.tick_ms / 1000


def weighted_holding(step: Transition, prefill_weight: float, decode_weight: float) -> jax.Array:
    """Holding cost with a weight for requests in prefill and another for those that decode.

    The phases are those at the decision; requests that arrive within the step are in prefill.
    """
    table = step.before.table
    # Over the slots, and the engines where there are several. Delays hold no call.
    axes = tuple(range(table.prefill.ndim - step.before.present.ndim))
    delays = table.prefill.shape[1] - step.before.busy.shape[0] if len(axes) > 1 else 0
    running = (table.prefill == 0) & (table.decode > 0)
    if delays:
        running = running[:, :-delays]
    in_prefill = jnp.sum((table.prefill > 0).astype(jnp.float32), axis=axes)
    decoding = jnp.sum(running.astype(jnp.float32), axis=axes)
    ticks = step.info.duration.astype(jnp.float32)
    late = step.info.request_ticks - step.before.present * ticks
    cost = prefill_weight * (in_prefill * ticks + late) + decode_weight * decoding * ticks
    return -cost * step.tick_ms / 1000


def backlog_tokens(step: Transition) -> jax.Array:
    """Minus tokens left at the decision times the length of the step, thousand token-seconds."""
    return -step.before.backlog.astype(jnp.float32) * step.duration_s / 1000


def throughput(step: Transition) -> jax.Array:
    """Thousand tokens served in the step."""
    tokens = step.info.prefill_tokens + step.info.decode_tokens
    if tokens.ndim > step.before.present.ndim:  # engines
        tokens = jnp.sum(tokens, axis=0)
    return tokens.astype(jnp.float32) / 1000


def goodput(step: Transition, targets: tuple[tuple[float | None, float | None], ...]) -> jax.Array:
    """Requests completed within their targets, minus those that missed one, when it passes.

    A request has two deadlines: arrival + TTFT target for its first token, and first token + TPOT
    target * (output - 1) for its last. Every request counts once: +1 when it completes with both
    met, -1 when its first missed deadline passes, or when it is dropped at a full table. A class
    without targets always meets them. ``targets``: (TTFT, TPOT) of each class in ticks, None where
    there is none.
    """
    end = step.after.clock.low
    # Requests present before the step, at its end; and those that came within it.
    old = _judge(step.info.table, step.info.finished, step, targets, end)
    came = step.after.table.live & (_since(end, step.after.table.arrival) < step.info.duration)
    new = _judge(step.after.table, jnp.zeros_like(came), step, targets, end, only=came)
    return old + new - step.info.dropped


def _since(now: jax.Array, then: jax.Array) -> jax.Array:
    return (now - then).astype(jnp.int32)


def _judge(
    table: Table,
    finished: jax.Array,
    step: Transition,
    targets: tuple[tuple[float | None, float | None], ...],
    end: jax.Array,
    only: jax.Array | None = None,
) -> jax.Array:
    present = finished | table.live if only is None else only
    ttft, tpot = (_per_class(table, [t[i] for t in targets]) for i in range(2))
    duration = step.info.duration
    # Ages at the end of the step; a first token inside it came at its end.
    age, produced = _since(end, table.arrival), (table.decode < table.output) | finished
    first_age = jnp.where(produced, _since(table.first_token, table.arrival), age)
    first_late = first_age > ttft
    missed_first = present & first_late & (age - duration <= ttft)
    allowed = tpot * jnp.maximum(table.output - 1, 0).astype(jnp.float32)
    since_first = _since(end, table.first_token)
    last_late = produced & ~first_late & (since_first > allowed)
    missed_last = present & last_late & (since_first - duration <= allowed)
    good = finished & present & ~first_late & ~last_late
    value = good.astype(jnp.float32) - (missed_first | missed_last).astype(jnp.float32)
    return jnp.sum(value, axis=0)


def _per_class(table: Table, targets: list[float | None]) -> jax.Array:
    ticks = jnp.zeros(table.job_class.shape, jnp.float32)
    for k, target in enumerate(targets):
        ticks = jnp.where(table.job_class == k, jnp.inf if target is None else target, ticks)
    return ticks


REWARDS = ("holding_cost", "weighted_holding", "backlog_tokens", "throughput", "goodput")


def make_reward(reward: str | Reward, scenario: Scenario, **settings: Any) -> Reward:
    """The reward function that a name stands for, or the function itself.

    Settings of ``weighted_holding``: prefill_weight and decode_weight (1.5 and 1). ``goodput`` takes
    the targets of the scenario's classes and needs at least one. Raises LLMGymError on an unknown
    name or setting.
    """
    if callable(reward):
        if settings:
            raise LLMGymError(
                f"A reward that is a function takes no reward_settings, got {', '.join(settings)}; "
                "bind them with functools.partial."
            )
        return reward
    if reward not in REWARDS:
        raise unknown("reward", reward, REWARDS)
    if reward == "weighted_holding":
        weights = {"prefill_weight": 1.5, "decode_weight": 1.0}
        for name, value in settings.items():
            if name not in weights:
                raise unknown("setting of reward 'weighted_holding':", name, weights)
            check_number(name, value, low=0)
        return partial(weighted_holding, **{**weights, **settings})
    if settings:
        raise LLMGymError(f"Reward {reward!r} has no settings, got {', '.join(settings)}.")
    if reward == "goodput":
        if scenario.is_network:
            raise LLMGymError(
                "Reward 'goodput' judges single calls; for jobs of a network give a function."
            )
        if all(target is None for pair in scenario.targets_ms for target in pair):
            raise LLMGymError(
                "Reward 'goodput' needs targets: "
                "set ttft_ms or tpot_ms of a job type of the scenario."
            )

        # On the host, in double precision: a target of a whole number of ticks stays whole.
        def in_ticks(target_ms: float | None) -> float | None:
            return None if target_ms is None else target_ms / scenario.tick_ms

        targets = tuple((in_ticks(ttft), in_ticks(tpot)) for ttft, tpot in scenario.targets_ms)
        return partial(goodput, targets=targets)
    return {
        "holding_cost": holding_cost,
        "backlog_tokens": backlog_tokens,
        "throughput": throughput,
    }[reward]
