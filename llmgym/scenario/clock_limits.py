"""What a clock of whole ticks can hold: batch times and delays that it would round or cut are refused.

The engine counts time in whole ticks of ``tick_ms``, in int32. A time much shorter than a tick would run
as one tick, a time of 2**31 ticks would be cut, and neither would show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import NO_ATTENTION, Attention, BatchTime
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import MAX_TOKENS, Length
from llmgym.scenario.workload import JobType

MOST_TICKS = 2**30
"""Longest batch or delay in ticks: three hours at 0.01 ms."""

MOST_ROUNDING = 0.01
"""Largest relative error of a time in whole ticks."""


class Times(NamedTuple):
    """Batch times of an engine in ms: the shortest, the longest, and the one that ticks round worst."""

    shortest_ms: float
    longest_ms: float
    worst_ms: float
    worst_tokens: int
    worst_error: float


def check_clock(
    engines: Sequence[Engine], jobs: Sequence[JobType], tick_ms: float, slots: int | None
) -> None:
    """Refuse times that the clock could not hold; LLMGymError says what to change.

    Args:
        engines: the engines that serve.
        jobs: what arrives, as job types.
        tick_ms: clock resolution.
        slots: most requests of a lone engine; None: a network.
    """
    for engine in engines:
        cache = engine.kv_cache
        swap = None if cache is None else cache.swap_tokens_per_ms
        extra_ms = cache.tokens / swap if cache is not None and swap is not None else 0.0
        attention = NO_ATTENTION
        if engine.batch_time.needs_attention:
            attention = _most_attention(engine, jobs, slots)
        check_batch_times(
            engine.name, engine.batch_time, engine.token_budget, tick_ms, attention, extra_ms
        )
    for job in jobs:
        for stage in job.stages:
            if stage.delay_ms is not None:
                _check_delay(str(stage.name), *_extremes(stage.delay_ms), tick_ms)


def _most_attention(engine: Engine, jobs: Sequence[JobType], slots: int | None) -> Attention:
    """The most that a batch of an engine can read, from the longest request of all."""
    longest = 0.0
    for job in jobs:
        for stage, prompt in zip(job.stages, job.workflow.longest_prompts, strict=True):
            if stage.is_delay:
                continue
            own = (stage.prefill, stage.decode)
            drawn = sum(_extremes(length)[1] for length in own if length is not None)
            bound = prompt + stage.longest_output
            if not np.isfinite(bound):
                bound = 2.0 * MAX_TOKENS if stage.inherits else drawn
            longest = max(longest, bound)
    most = engine.token_budget if slots is None else min(engine.token_budget, slots)
    context = most * longest
    if engine.kv_cache is not None:
        longest = min(longest, engine.kv_cache.tokens)
        context = min(context, engine.kv_cache.tokens)
    return Attention(context, engine.token_budget * longest)


@lru_cache(maxsize=256)
def _extremes(length: Length) -> tuple[float, float]:
    """The smallest and the largest value that a distribution can draw: it is monotone in u."""
    ends = length.sample(jnp.array([2.0**-24, 1 - 2.0**-24], jnp.float32))
    return float(np.min(ends)), float(np.max(ends))


def check_batch_times(
    name: str,
    model: BatchTime,
    token_budget: int,
    tick_ms: float,
    attention: Attention,
    extra_ms: float = 0.0,
) -> None:
    """Refuse an engine with a batch that the clock would round by more than 1 % or could not hold.

    Args:
        name: what the engine is called.
        model, token_budget: batches of 1 to ``token_budget`` tokens are looked at.
        tick_ms: clock resolution.
        attention: the most that a batch may read; every batch may read nothing as well.
        extra_ms: the most that swapping adds to a batch.

    Raises:
        LLMGymError: it names a ``tick_ms`` that would do, where there is one.
    """
    most = float(attention.decode_context), float(attention.prefill_pairs)
    try:
        times = _cached(model, token_budget, tick_ms, *most)
    except TypeError:  # a user's own model that cannot be hashed
        times = _times(model, token_budget, tick_ms, *most)
    longest_ms = times.longest_ms + extra_ms
    who = f"Engine {name!r}: a batch"
    _check_longest(f"{who} may take {longest_ms:g} ms", longest_ms, tick_ms)
    if times.worst_error > MOST_ROUNDING:
        runs = max(round(times.worst_ms / tick_ms), 1) * tick_ms
        what = (
            f"{who} of {times.worst_tokens} tokens takes {times.worst_ms:g} ms, which whole ticks"
        )
        finest = _digit_below(2 * MOST_ROUNDING * times.shortest_ms)
        raise LLMGymError(
            f"{what} of {tick_ms:g} ms make {runs:g} ms. {_finer(finest, longest_ms / MOST_TICKS)}"
        )


def _check_delay(name: str, shortest_ms: float, longest_ms: float, tick_ms: float) -> None:
    """Refuse a stage whose delays the clock would round by more than 1 % or could not hold."""
    _check_longest(f"Stage {name!r}: a delay may take {longest_ms:g} ms", longest_ms, tick_ms)
    for ms in (shortest_ms, longest_ms):
        runs = max(round(ms / tick_ms), 1) * tick_ms
        if ms > 0 and abs(runs - ms) > MOST_ROUNDING * ms:
            finest = _digit_below(2 * MOST_ROUNDING * (shortest_ms or ms))
            raise LLMGymError(
                f"Stage {name!r}: a delay of {ms:g} ms is made {runs:g} ms by whole ticks of "
                f"{tick_ms:g} ms. {_finer(finest, longest_ms / MOST_TICKS)}"
            )


def _check_longest(what: str, longest_ms: float, tick_ms: float) -> None:
    if longest_ms <= MOST_TICKS * tick_ms:
        return
    coarser = _digit_above(longest_ms / MOST_TICKS)
    fix = f"tick_ms = {coarser:g} or more, or shorter times" if coarser <= 1000 else "shorter times"
    raise LLMGymError(
        f"{what}; the longest time at tick_ms = {tick_ms:g} is {MOST_TICKS * tick_ms:g} ms. Use {fix}."
    )


def _finer(finest: float, coarsest: float) -> str:
    """What to do about a tick that is too long; no tick may be shorter than ``coarsest``."""
    if finest >= coarsest:
        return f"Use tick_ms = {finest:g} or less."
    return "Its longest time rules out ticks short enough: bring the two closer together."


def _digit_below(value: float) -> float:
    """The largest number with one significant digit up to ``value``."""
    unit = math.floor(math.log10(value))
    return float(f"{math.floor(value / 10.0**unit * (1 + 1e-12))}e{unit}")


def _digit_above(value: float) -> float:
    """The smallest number with one significant digit from ``value`` on."""
    unit = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10.0**unit * (1 - 1e-12))}e{unit}")


def _times(
    model: BatchTime, token_budget: int, tick_ms: float, decode_context: float, pairs: float
) -> Times:
    sizes = np.arange(1, token_budget + 1)
    ms = np.broadcast_to(model.ms(sizes), sizes.shape)
    longest = ms
    if model.needs_attention:
        longest = model.ms(sizes, Attention(decode_context, pairs))
    bad = np.flatnonzero(~np.isfinite(ms) | ~np.isfinite(longest) | (ms <= 0))
    if bad.size:
        raise LLMGymError(
            f"{model!r} gives {ms[bad[0]]} ms for a batch of {sizes[bad[0]]} tokens; "
            "batch times must be positive and finite up to the token budget."
        )
    error = np.abs(np.maximum(np.rint(ms / tick_ms), 1) * tick_ms / ms - 1)
    worst = int(np.argmax(error))
    return Times(
        float(ms.min()), float(np.max(longest)), float(ms[worst]), worst + 1, float(error[worst])
    )


_cached = lru_cache(maxsize=256)(_times)
