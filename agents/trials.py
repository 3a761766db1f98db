"""Many settings of one policy simulated at once, all on the same requests.

The settings are traced arrays with one value for each environment, so one compiled program serves
every setting and every load, and blocks of environments run beside each other on all cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.decisions import start
from llmgym.core.checks import check_seed
from llmgym.core.precision import in_32_bits
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine import simulator
from llmgym.engine.epoch import Epoch
from llmgym.engine.state import ticks_since
from llmgym.evaluation import rollout
from llmgym.evaluation.fleet import cores
from llmgym.evaluation.limits import check_duration, check_envs, check_work
from llmgym.evaluation.policies import Policy
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import mean_work

BLOCK = 128
"""Most environments of a block: as many as fit a core's cache."""

GRAIN = 32
"""Sizes of blocks are multiples of this, so that one program serves many numbers of trials."""

Vary = Callable[[Any, jax.Array], Policy]
"""A policy with its settings replaced by the rows of an array (settings, environments)."""


@dataclass(frozen=True)
class Figures:
    """What trials measured; arrays (trials, num_envs).

    Attributes:
        e2e_s: mean latency by Little's law: requests present over the arrival rate.
        requests_per_s: tokens served per second over the mean tokens of a request.
        late: of the requests that finished, the share whose first token came after the TTFT target.
        good: of the requests that finished, the share that met both targets. A target that is not set
            is always met.
        dropped: requests that found the table full.
    """

    e2e_s: np.ndarray
    requests_per_s: np.ndarray
    late: np.ndarray
    good: np.ndarray
    dropped: np.ndarray


@register
@dataclass(frozen=True)
class _Counts:
    """Requests that finished, those late for their first token, and those within both targets."""

    finished: jax.Array
    late: jax.Array
    good: jax.Array


@in_32_bits
def measure(
    scenario: Scenario,
    vary: Vary,
    base: Any,
    settings: np.ndarray,
    num_envs: int,
    warmup_s: float,
    duration_s: float,
    seed: int = 0,
) -> Figures:
    """Simulate one policy with many settings; environment n sees the same requests in all trials.

    Args:
        scenario: one engine.
        vary: makes the policy from ``base`` and settings (numbers, environments); hashable.
        base: passed to ``vary``; hashable, and compiled in.
        settings: a row for every trial (trials, numbers); ``vary`` gets it as float32.
        num_envs: environments of each trial.
        warmup_s: simulated seconds that the figures leave out; only ``dropped`` counts from the start.
        duration_s: simulated seconds after them.
        seed: of the requests.
    """
    num_envs, seed = check_envs("num_envs", num_envs), check_seed(seed, 2**63 - 1)
    duration_s = check_duration("duration_s", duration_s, scenario)
    warmup_s = check_duration("warmup_s", warmup_s, scenario, zero=True)
    check_work(scenario, len(settings) * num_envs, warmup_s + duration_s)
    total, threads = len(settings) * num_envs, cores() if jax.default_backend() == "cpu" else 1
    size = min(BLOCK, -(-total // (threads * GRAIN)) * GRAIN)
    number = np.minimum(np.arange(-(-total // size) * size), total - 1)  # fills up the last block
    trial, env = number // num_envs, number % num_envs
    physics, keys = simulator.lower(scenario), rollout.keys(seed, num_envs)
    ticks_per_s = 1000 / scenario.tick_ms
    stops = [Wide.of(round(s * ticks_per_s)) for s in (warmup_s, warmup_s + duration_s)]
    promised = [one.targets_ms for one in scenario.classes]
    ticks = np.array(promised, float).T / scenario.tick_ms  # None becomes NaN
    targets = jnp.asarray(np.where(np.isnan(ticks), np.inf, ticks), jnp.float32)

    @in_32_bits  # also in the threads
    def run(block: np.ndarray, stops: list[Wide]) -> list[Any]:
        numbers = jnp.asarray(settings[trial[block]].T, jnp.float32)
        return _run(physics, numbers, keys[env[block]], stops, targets, vary, base)

    blocks = np.split(np.arange(number.size), number.size // size)
    run(blocks[0], [Wide.of(0)])  # compiles, before several threads would do so at once
    with ThreadPoolExecutor(threads) as pool:
        levels = list(pool.map(partial(run, stops=stops), blocks))
    found = [_figures(scenario, *pair) for pair in levels]
    columns = (np.concatenate(c)[:total] for c in zip(*found, strict=True))
    return Figures(*(c.reshape(-1, num_envs) for c in columns))


def measure_policy(scenario: Scenario, policy: Any, num_envs: int, **settings: Any) -> Figures:
    """``measure`` of a single policy, with arrays (1, num_envs).

    Args:
        scenario: one engine.
        policy: a hashable policy object or function.
        num_envs: environments.
        settings: ``warmup_s``, ``duration_s`` and ``seed`` of ``measure``.
    """
    return measure(scenario, _unchanged, policy, np.zeros((1, 0)), num_envs, **settings)


def _unchanged(base: Any, numbers: jax.Array) -> Any:
    return base


def _run(
    physics: Any,
    settings: jax.Array,
    key: jax.Array,
    stops: list[Wide],
    targets: jax.Array,
    vary: Vary,
    base: Any,
) -> list[tuple[Any, Any, _Counts]]:
    """Clocks, totals and counts of a block at each of the ``stops``."""
    none = jnp.zeros(key.shape, jnp.int32)
    carry, counts = _begin(physics, settings, key, vary, base), _Counts(none, none, none)
    levels = []
    for stop in stops:
        carry, counts = _advance(physics, settings, key, carry, counts, stop, targets, vary, base)
        levels.append((carry.state.clock, carry.state.totals, counts))
    return jax.device_get(levels)


@partial(jax.jit, static_argnames=("vary", "base"))
def _begin(
    physics: Any, settings: jax.Array, key: jax.Array, vary: Vary, base: Any
) -> rollout.Carry:
    state = simulator.init(physics, key)
    return rollout.Carry(state, start(vary(base, settings), simulator.view(physics, state)))


@partial(jax.jit, static_argnames=("vary", "base"))
def _advance(
    physics: Any,
    settings: jax.Array,
    key: jax.Array,
    carry: rollout.Carry,
    counts: _Counts,
    stop: Wide,
    targets: jax.Array,
    vary: Vary,
    base: Any,
) -> tuple[rollout.Carry, _Counts]:
    """A block taken to the time ``stop``."""
    policy, count = vary(base, settings), partial(_count, targets)
    return rollout.run_until(physics, policy, carry, key, stop, count, counts)


def _count(targets: jax.Array, counts: _Counts, epoch: Epoch) -> _Counts:
    """The counts after a step. ``targets`` (2, classes): TTFT and TPOT in ticks."""
    table, done, now = epoch.info.table, epoch.info.finished, epoch.after.clock
    ttft, tpot = (jnp.take(of, table.job_class) for of in targets)
    begun = Wide(table.first_high.astype(jnp.uint32), table.first_token)
    first = ticks_since(begun, table.arrival, table.arrival_high)
    rest = ticks_since(now, table.first_token, table.first_high)
    late = first > ttft
    slow = rest > tpot * jnp.maximum(table.output - 1, 0)

    def total(mask: jax.Array) -> jax.Array:
        return jnp.sum(mask.astype(jnp.int32), axis=0)

    return _Counts(
        counts.finished + total(done),
        counts.late + total(done & late),
        counts.good + total(done & ~late & ~slow),
    )


def _figures(scenario: Scenario, before: Any, after: Any) -> list[np.ndarray]:
    """The columns of Figures, flat, from the levels after the warm-up and at the end."""
    (began, start, first), (ended, end, last) = before, after
    seconds = (ended.to_numpy() - began.to_numpy()) * scenario.tick_ms / 1000
    waited = end.request_ticks.to_numpy() - start.request_ticks.to_numpy()
    present = waited * scenario.tick_ms / 1000 / seconds
    tokens = sum(
        getattr(end, name).to_numpy() - getattr(start, name).to_numpy()
        for name in ("prefill_tokens", "decode_tokens")
    )
    finished = np.maximum(last.finished - first.finished, 1)
    return [
        present / scenario.arrival_rate_per_s,
        tokens / seconds / mean_work(scenario),
        (last.late - first.late) / finished,
        (last.good - first.good) / finished,
        np.asarray(end.dropped),
    ]
