"""Rewards by name. A reward is a function ``reward(transition) -> float32`` of one decision epoch.

Times are in seconds and costs in natural units (request-seconds, thousand tokens, requests), so
that rewards of usual scenarios are of the order of 1 to 100 a step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import check_callable, check_kind, check_name, check_text
from llmgym.core.errors import LLMGymError, check_number, unknown
from llmgym.core.pytree import register
from llmgym.core.user_code import ask, line_of
from llmgym.core.wide import Wide
from llmgym.engine.state import Table, ticks_since
from llmgym.envs.interface.sound import sound_array
from llmgym.scenario.request_class import target_ticks
from llmgym.scenario.scenario import Scenario


@register
@dataclass(frozen=True)
class Transition:
    """What a reward may look at: the engine before and after the step, and what happened in it."""

    before: Any
    info: Any  # StepInfo
    after: Any
    tick_ms: jax.Array

    @property
    def duration_s(self) -> jax.Array:
        """Length of the step in seconds."""
        return self.info.duration.astype(jnp.float32) * self.tick_ms / 1000


Reward = Callable[[Transition], jax.Array]


@dataclass(frozen=True)
class Bound:
    """A reward with its settings, as functools.partial is, but equal where function and settings are."""

    function: Callable[..., jax.Array]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, step: Transition) -> jax.Array:
        return self.function(step, **dict(self.settings))


def holding_cost(step: Transition) -> jax.Array:
    """Minus the integral of the number of requests present, in request-seconds: -N * tau.

    Requests that arrive within the step count from their arrival. By Little's law the average of
    this reward per second is minus the arrival rate times the mean time in system.
    """
    return -step.info.request_ticks * step.tick_ms / 1000


def weighted_holding(step: Transition, prefill_weight: float, decode_weight: float) -> jax.Array:
    """Holding cost with a weight for requests in prefill and another for those that decode.

    The phases are those at the decision; requests that arrive within the step are in prefill.

    Args:
        step: what happened.
        prefill_weight: cost of a request in prefill, per second.
        decode_weight: cost of a request that decodes, per second.
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
    return -step.before.backlog.to_float() * step.duration_s / 1000


def throughput(step: Transition) -> jax.Array:
    """Thousand tokens served in the step."""
    tokens = step.info.prefill_tokens + step.info.decode_tokens
    if tokens.ndim > step.before.present.ndim:  # engines
        tokens = jnp.sum(tokens, axis=0)
    return tokens.astype(jnp.float32) / 1000


@dataclass(frozen=True)
class ServiceLevels:
    """Targets in ticks (inf: none) and weights of the classes, one entry each."""

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    weight: tuple[float, ...]

    @classmethod
    def of(cls, scenario: Scenario) -> ServiceLevels:
        """Those of a scenario."""
        ttft, tpot = target_ticks(scenario).T.tolist()
        return cls(tuple(ttft), tuple(tpot), tuple(one.weight for one in scenario.classes))


def goodput(step: Transition, levels: ServiceLevels) -> jax.Array:
    """Weight of the requests completed within their targets, minus that of those that missed one.

    A request has two deadlines: arrival + TTFT target for its first token, and first token + TPOT
    target * (output - 1) for its last. Every request counts once, with the weight of its class: plus
    when it completes with both met, minus when its first missed deadline passes, or when it is dropped
    at a full table. A class without targets always meets them.
    """
    end = step.after.clock
    # Requests present before the step, at its end; and those that came within it.
    old = _judge(step.info.table, step.info.finished, step, levels, end)
    new = came(step)
    new = _judge(step.after.table, jnp.zeros_like(new), step, levels, end, only=new)
    return old + new - _dropped_weight(step, levels.weight)


def tardiness(step: Transition, levels: ServiceLevels) -> jax.Array:
    """Minus the weighted integral of the number of requests that are late, in request-seconds.

    With g output tokens so far a request is late from arrival + TTFT target + g * TPOT target on, until
    its next token is there: a schedule for every token, so that one ahead of it may pause. Without a
    TTFT target the schedule starts at the first token, without a TPOT target it ends there; a request
    without output tokens is due as one with a first token. Dropped requests cost nothing here.

    Deadlines are whole ticks, the nearest: over the steps the cost adds up with no gap or overlap.
    """
    end = step.after.clock
    duration = step.info.duration
    table = step.before.table
    late = _lateness(table, table.live, levels, end)
    cost = _weighted(table, jnp.minimum(late, duration), levels.weight)
    after = step.after.table
    cost += _weighted(after, _lateness(after, came(step), levels, end), levels.weight)
    return -cost * step.tick_ms / 1000


FAR_TICKS = 2**30
"""Deadlines beyond it never pass."""


def _lateness(table: Table, those: jax.Array, levels: ServiceLevels, end: Wide) -> jax.Array:
    """Ticks from the next deadline of ``those`` requests to the end of the step, 0 before it."""
    ttft, tpot = _per_class(table, levels.ttft), _per_class(table, levels.tpot)
    generated = table.output - table.decode
    begun = jnp.isinf(ttft) & (generated > 0)  # then the first token starts the schedule
    start = jnp.where(begun, table.first_token, table.arrival)
    start_high = jnp.where(begun, table.first_high, table.arrival_high)
    due = jnp.where(begun, 0.0, ttft) + jnp.where(generated > 0, generated * tpot, 0.0)
    allowed = jnp.round(jnp.minimum(due, FAR_TICKS)).astype(jnp.int32)
    late = jnp.maximum(ticks_since(end, start, start_high) - allowed, 0)
    return jnp.where(those & (allowed < FAR_TICKS), late, 0)


def _weighted(table: Table, values: jax.Array, weights: tuple[float, ...]) -> jax.Array:
    """Sum over the slots, each value times the weight of its class."""
    values = values.astype(jnp.float32)
    return jnp.sum(values * _per_class(table, weights), axis=0)


def came(step: Transition) -> jax.Array:
    """Which requests of the table after the step arrived within it."""
    table = step.after.table
    return table.live & (
        ticks_since(step.after.clock, table.arrival, table.arrival_high) < step.info.duration
    )


def _dropped_weight(step: Transition, weights: tuple[float, ...]) -> jax.Array:
    before, after = (t.totals.dropped_of_class for t in (step.before, step.after))
    if after is None:
        return weights[0] * step.info.dropped.astype(jnp.float32)
    return jnp.tensordot(jnp.array(weights, jnp.float32), (after - before).astype(jnp.float32), 1)


def _judge(
    table: Table,
    finished: jax.Array,
    step: Transition,
    levels: ServiceLevels,
    end: Wide,
    only: jax.Array | None = None,
) -> jax.Array:
    present = finished | table.live if only is None else only
    ttft, tpot = _per_class(table, levels.ttft), _per_class(table, levels.tpot)
    duration = step.info.duration
    # Ages at the end of the step; a first token inside it came at its end.
    age = ticks_since(end, table.arrival, table.arrival_high)
    produced = (table.decode < table.output) | finished
    first = Wide(table.first_high.astype(jnp.uint32), table.first_token)
    to_first = ticks_since(first, table.arrival, table.arrival_high)
    first_age = jnp.where(produced, to_first, age)
    first_late = first_age > ttft
    missed_first = present & first_late & (age - duration <= ttft)
    between = jnp.maximum(table.output - 1, 0).astype(jnp.float32)
    allowed = jnp.where(between > 0, tpot * between, 0.0)  # inf * 0 is NaN
    since_first = ticks_since(end, table.first_token, table.first_high)
    last_late = produced & ~first_late & (since_first > allowed)
    missed_last = present & last_late & (since_first - duration <= allowed)
    good = finished & present & ~first_late & ~last_late
    value = good.astype(jnp.float32) - (missed_first | missed_last).astype(jnp.float32)
    return _weighted(table, value, levels.weight)


def _per_class(table: Table, values: tuple[float, ...]) -> jax.Array:
    """The entry of its class for every slot, float32."""
    found = jnp.zeros(table.job_class.shape, jnp.float32)
    for k, value in enumerate(values):
        found = jnp.where(table.job_class == k, np.float32(value), found)
    return found


JUDGES = {"goodput": goodput, "tardiness": tardiness}
REWARDS = ("holding_cost", "weighted_holding", "backlog_tokens", "throughput", *JUDGES)

OWN: dict[str, Reward] = {}
"""The rewards that users have registered."""


def register_reward(name: str, reward: Reward) -> None:
    """Make ``reward=name`` known to all environments; a reward is a function of a ``Transition``.

    Raises LLMGymError where the name is taken, or ``reward`` is no function.
    """
    if check_text("name", name) in (*REWARDS, *OWN):
        raise LLMGymError(f"The reward {name!r} is taken: choose another name.")
    if check_callable("A reward", reward) is None:
        raise LLMGymError("A reward must be a function of a Transition, got None.")
    OWN[name] = reward


def make_reward(reward: str | Reward, scenario: Scenario, **settings: Any) -> Reward:
    """The reward function that a name stands for, or the function itself.

    Settings of ``weighted_holding``: prefill_weight and decode_weight (1.5 and 1). ``goodput`` and
    ``tardiness`` take the targets and weights of the scenario's classes and need at least one target.
    Raises LLMGymError on an unknown name or setting.
    """
    check_kind("scenario", scenario, Scenario)
    if isinstance(reward, str):
        reward = OWN.get(reward, reward)
    if callable(reward):
        if settings:
            raise LLMGymError(
                f"A reward that is a function takes no reward_settings, got {', '.join(settings)}; "
                "bind them with functools.partial."
            )
        return reward
    check_name("reward", reward, (*REWARDS, *OWN))
    if reward == "weighted_holding":
        weights = {"prefill_weight": 1.5, "decode_weight": 1.0}
        for name, value in settings.items():
            if name not in weights:
                raise unknown("setting of reward 'weighted_holding':", name, weights)
            check_number(name, value, low=0)
        return Bound(weighted_holding, tuple({**weights, **settings}.items()))
    if settings:
        raise LLMGymError(f"Reward {reward!r} has no settings, got {', '.join(settings)}.")
    if reward in JUDGES:
        return Bound(JUDGES[reward], (("levels", _service_levels(reward, scenario)),))
    return {
        "holding_cost": holding_cost,
        "backlog_tokens": backlog_tokens,
        "throughput": throughput,
    }[reward]


def refuse_for_jobs(reward: str) -> None:
    """Raise LLMGymError where the reward of that name judges single calls, not the jobs of a network."""
    if reward in JUDGES:
        raise LLMGymError(
            f"Reward {reward!r} judges single calls; for jobs of a network give a function."
        )


def sound_reward(reward: Reward, step: Transition) -> jax.Array:
    """The reward of a step as float32. Raises LLMGymError where a function gives anything else."""
    answer = ask("The reward function", reward, step)
    shape = step.after.present.shape
    must = (
        f"The reward function{line_of(reward)} must return one number for each environment, an array "
        f"of shape {shape}"
    )
    found = sound_array("The answer of the reward function", answer, shape, "fiub", must)
    return found.astype(jnp.float32)


def _service_levels(reward: str, scenario: Scenario) -> ServiceLevels:
    if scenario.is_network:
        refuse_for_jobs(reward)
    if not scenario.has_targets:
        raise LLMGymError(
            f"Reward {reward!r} needs targets: "
            "set ttft_ms or tpot_ms of a job type of the scenario."
        )
    return ServiceLevels.of(scenario)
