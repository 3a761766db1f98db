"""Running a policy on a batch of environments, in compiled chunks, up to a horizon.

``step`` is one decision of a policy, with its memory if it has one; ``scan`` makes a number of them and
``run_until`` goes on to a time. Everything that runs policies on engines is made of these.

Every environment stops at the first decision at or after the horizon; it then stands still (an empty
batch that takes no time, and a memory that stays as it is) until the others are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines import decisions
from llmgym.core.precision import in_32_bits
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine import simulator
from llmgym.engine.epoch import Epoch, run_epoch
from llmgym.engine.service import Service
from llmgym.engine.view import Batch, View
from llmgym.evaluation.policies import Policy

FOREVER = 2**62
"""A horizon in ticks that no run reaches."""


@in_32_bits
def keys(seed: int, num_envs: int) -> jax.Array:
    """Keys of the environments: a function of the seed and of the environment's number alone."""
    one = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda i: jax.random.fold_in(one, i))(jnp.arange(num_envs))


@in_32_bits
def policy_key(key: jax.Array, steps: jax.Array) -> jax.Array:
    """The policy's key for a decision: apart from the arrivals', and fresh in every step."""

    def one(key: jax.Array, step: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, 2**31 - 1), step)

    return one(key, steps) if key.ndim == 0 else jax.vmap(one)(key, steps)


@register
@dataclass(frozen=True)
class Carry:
    """What goes from step to step: the state of the engines, and what the policy remembers."""

    state: Any
    memory: Any = None


start = in_32_bits(jax.jit(simulator.init))


@partial(jax.jit, static_argnames="policy")
def _first_memory(params: Any, policy: Policy, state: Any) -> Any:
    # Copied: a memory may be made of arrays of the view, which a chunk could not take over twice.
    memory = decisions.start(policy, simulator.view(params, state))
    return jax.tree.map(lambda x: x.copy(), memory)


@in_32_bits
def begin(params: Any, policy: Policy, key: jax.Array) -> Carry:
    """The state of each environment at time 0, and the memory with which a policy begins.

    Args:
        params: of ``simulator.lower``.
        policy: as ``policies.resolve`` returns it.
        key: of the environments (...), from ``keys``.
    """
    state = start(params, key)
    remembers = decisions.remembers(policy)
    return Carry(state, _first_memory(params, policy, state) if remembers else None)


def step(
    params: Any,
    policy: Policy,
    carry: Carry,
    key: jax.Array,
    horizon: Wide | None = None,
    limit: jax.Array | None = None,
) -> tuple[Carry, Epoch]:
    """One decision of a policy in every environment, and all there is to know about it.

    Args:
        params: of ``simulator.lower``.
        policy: as ``policies.resolve`` returns it.
        carry: of ``begin`` or of the step before.
        key: of the environments (...); the policy's own follow from them and the number of the step.
        horizon: clock at and after which an environment stands still.
        limit: ticks that an idle engine waits at most; None: until the horizon.
    """
    left = None if horizon is None else carry.state.clock.until(horizon)

    def act(view: View) -> tuple[Batch, Any]:
        drawn = policy_key(key, carry.state.steps)
        batch, memory = decisions.decide(policy, drawn, view, carry.memory)
        if left is None:
            return batch, memory
        batch = jax.tree.map(lambda x: jnp.where(left > 0, x, jnp.zeros_like(x)), batch)
        return batch, decisions.keep_where(left > 0, memory, carry.memory)

    epoch = run_epoch(params, carry.state, act, left if limit is None else limit)
    return Carry(epoch.after, epoch.told), epoch


def scan(
    params: Any,
    policy: Policy,
    carry: Carry,
    key: jax.Array,
    length: int,
    keep: Callable[[Epoch], Any] = lambda epoch: None,
    horizon: Wide | None = None,
    limit: jax.Array | None = None,
) -> tuple[Carry, Any]:
    """A fixed number of steps in one compiled loop. To be called inside ``jit``.

    Args:
        params, policy, carry, key, horizon, limit: as in ``step``.
        length: number of steps.
        keep: Epoch -> pytree of what is kept of a step.

    Returns:
        The last Carry, and what ``keep`` gave, with an axis of steps first.
    """

    def body(carry: Carry, _: None) -> tuple[Carry, Any]:
        carry, epoch = step(params, policy, carry, key, horizon, limit)
        return carry, keep(epoch)

    return jax.lax.scan(body, carry, None, length=length)


def run_until(
    params: Any,
    policy: Policy,
    carry: Carry,
    key: jax.Array,
    horizon: Wide,
    count: Callable[[Any, Epoch], Any],
    counts: Any,
) -> tuple[Carry, Any]:
    """Steps until every environment is at the horizon. To be called inside ``jit``.

    Args:
        params, policy, carry, key: as in ``step``.
        horizon: clock at and after which an environment stands still.
        count: (counts, Epoch) -> counts, called in each step.
        counts: pytree that ``count`` starts from.

    Returns:
        The last Carry and the last counts.
    """

    def running(carried: tuple[Carry, Any]) -> jax.Array:
        return jnp.any(carried[0].state.clock.until(horizon) > 0)

    def body(carried: tuple[Carry, Any]) -> tuple[Carry, Any]:
        carry, epoch = step(params, policy, carried[0], key, horizon)
        return carry, count(carried[1], epoch)

    return jax.lax.while_loop(running, body, (carry, counts))


@register
@dataclass(frozen=True)
class Steps:
    """What is kept of every step; arrays (steps, num_envs).

    Of a network those of batches are (steps, engines, num_envs). Those of calls that finished have the
    shape of the table, (steps, rows, ..., num_envs).
    """

    start: Wide  # clock at the decision, ticks
    duration: jax.Array  # ticks; 0 once the environment stands still
    batch_ticks: jax.Array  # time of the batch; 0 if none started
    prefill_tokens: jax.Array
    decode_tokens: jax.Array
    requests: jax.Array  # in the batch
    present: jax.Array  # requests (of a network: jobs) in the system at the decision
    backlog: Wide  # their tokens left
    dropped: jax.Array  # dropped since the start
    lost: jax.Array  # tokens that have to be computed again after preemption
    found: jax.Array  # prompt tokens that prefix caching found in memory
    finished: jax.Array | None  # whether a request finished
    details: dict[str, jax.Array] | None  # columns of the table
    service: Service | None  # of each client, where the scenario weighs it


def _of_all(tokens: jax.Array, like: jax.Array) -> jax.Array:
    """The sum over slots and engines: all axes but those of the environments, which ``like`` has."""
    return jnp.sum(tokens, axis=tuple(range(tokens.ndim - like.ndim)))


def kept(epoch: Epoch, detail: bool = False) -> Steps:
    """What ``rollout`` keeps of a step; ``detail``: the requests that it finished as well."""
    state, info = epoch.before, epoch.info
    return Steps(
        start=state.clock,
        duration=info.duration,
        batch_ticks=info.batch_ticks,
        prefill_tokens=info.prefill_tokens,
        decode_tokens=info.decode_tokens,
        requests=info.requests,
        present=state.present,
        backlog=state.backlog,
        dropped=state.totals.dropped,
        lost=_of_all(info.lost, state.present),
        found=_of_all(info.found, state.present),
        finished=info.finished if detail else None,
        details=info.table.details() if detail else None,
        service=getattr(info, "service", None),
    )


@partial(jax.jit, static_argnames=("policy", "length", "detail"), donate_argnums=(1,))
def run_chunk(
    params: Any,
    carry: Carry,
    key: jax.Array,
    horizon: Wide | None,
    policy: Policy,
    length: int,
    detail: bool,
) -> tuple[Carry, Steps]:
    """One compiled chunk of a run.

    Args:
        params, policy, key: as in ``step``.
        carry: as in ``step``; it is used up (donated).
        horizon: as in ``step``; None: no end.
        length: number of steps.
        detail: keep the finished requests as well.

    Returns:
        The last Carry, and what is kept of the steps, (length, ...).
    """
    keep = partial(kept, detail=detail)
    return scan(params, policy, carry, key, length, keep, horizon)


def rollout(
    params: Any,
    policy: Policy,
    carry: Carry,
    key: jax.Array,
    horizon: int = FOREVER,
    detail: bool = False,
) -> Iterator[tuple[Carry, Steps]]:
    """Chunks of a run until all environments are at the horizon or have nothing left to do.

    Args:
        params, policy: as in ``step``.
        carry, key: of ``begin`` or of the run so far, and keys of the environments (``keys``).
            ``carry`` is used up (donated).
        horizon: ticks. Without one (FOREVER) a run ends when no environment makes progress.
        detail: keep the finished requests as well.
    """
    length = int(np.clip(2**21 // carry.state.table.prefill.size, 16, 512)) if detail else 512
    end = Wide.of(horizon) if horizon < FOREVER else None
    while True:
        carry, steps = in_32_bits(run_chunk)(params, carry, key, end, policy, length, detail)
        steps = jax.device_get(steps)
        yield carry, steps
        if not steps.duration[-1].any():
            return
