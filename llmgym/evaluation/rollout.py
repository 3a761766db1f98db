"""Running a policy on a batch of environments, in compiled chunks, up to a horizon.

Every environment stops at the first decision at or after the horizon; it then stands still (an empty
batch that takes no time) until the others are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.precision import in_32_bits
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine import simulator
from llmgym.engine.service import Service
from llmgym.engine.view import Batch
from llmgym.evaluation.policies import compose

FOREVER = 2**62
"""A horizon in ticks that no run reaches."""

Policy = Callable[[jax.Array, Any], Batch]


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
    lost: jax.Array  # tokens that preemption makes to be computed again
    found: jax.Array  # prompt tokens that prefix caching found in memory
    finished: jax.Array | None  # whether a request finished
    details: dict[str, jax.Array] | None  # columns of the table
    service: Service | None  # of each client, where the scenario weighs it


@partial(jax.jit, static_argnames=("policy", "length", "detail", "bounded"), donate_argnums=(1,))
def run_chunk(
    physics: Any,
    state: Any,
    key: jax.Array,
    horizon: Wide,
    policy: Policy,
    length: int,
    detail: bool,
    bounded: bool,
) -> tuple[Any, Steps]:
    """``length`` steps under the policy, not beyond the horizon (if ``bounded`` by one)."""

    def body(state: Any, _: None) -> tuple[Any, Steps]:
        left = state.clock.until(horizon)
        batch = compose(policy, policy_key(key, state.steps), simulator.view(physics, state))
        batch = jax.tree.map(lambda x: jnp.where(left > 0, x, jnp.zeros_like(x)), batch)
        after, info = simulator.step(physics, state, batch, left if bounded else None)
        kept = Steps(
            start=state.clock,
            duration=info.duration,
            batch_ticks=info.batch_ticks,
            prefill_tokens=info.prefill_tokens,
            decode_tokens=info.decode_tokens,
            requests=info.requests,
            present=state.present,
            backlog=state.backlog,
            dropped=state.totals.dropped,
            lost=info.lost,
            found=jnp.sum(info.found, axis=0),
            finished=info.finished if detail else None,
            details=info.table.details() if detail else None,
            service=getattr(info, "service", None),
        )
        return after, kept

    return jax.lax.scan(body, state, None, length=length)


start = in_32_bits(jax.jit(simulator.init))


def rollout(
    physics: Any,
    policy: Policy,
    state: Any,
    key: jax.Array,
    horizon: int = FOREVER,
    detail: bool = False,
) -> Iterator[tuple[Any, Steps]]:
    """Chunks of a run until all environments are at the horizon or have nothing left to do.

    Args:
        state, key: initial state of the environments and their keys (``keys``). ``state`` is used up.
        horizon: ticks. Without one (FOREVER) a run ends when no environment makes progress.
        detail: keep the finished requests as well.
    """
    length = int(np.clip(2**21 // state.table.prefill.size, 16, 512)) if detail else 512
    bounded, end = horizon < FOREVER, Wide.of(horizon)
    while True:
        state, steps = in_32_bits(run_chunk)(
            physics, state, key, end, policy, length, detail, bounded
        )
        steps = jax.device_get(steps)
        yield state, steps
        if not steps.duration[-1].any():
            return
