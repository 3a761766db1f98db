"""The honest rival: the engine under Sarathi-Serve as a plain event loop, one environment at a time.

It takes the same steps as the JAX engine on explicit requests. The loop uses arrays and numbers only, so
numba compiles it where it is installed (the ``dev`` extra); without numba it runs as ordinary Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from llmgym.scenario import Scenario

Requests = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Arrival ticks (int64, sorted), prompt tokens and output tokens (int64) of each request."""


def draw_requests(scenario: Scenario, count: int, seed: int = 0) -> Requests:
    """Poisson arrivals with geometric lengths, as in the scenario ``geometric``, drawn by NumPy."""
    random = np.random.default_rng(seed)
    mean_gap = 1000 / scenario.tick_ms / scenario.arrival_rate_per_s
    arrival = np.cumsum(np.rint(random.exponential(mean_gap, count)).astype(np.int64))
    prefill = random.geometric(1 / scenario.mean_prefill, count)
    return arrival, prefill, random.geometric(1 / scenario.mean_decode, count)


def batch_ticks(scenario: Scenario) -> np.ndarray:
    """t_b in ticks for b = 0 .. b_max tokens; entry 0 is unused."""
    sizes = np.arange(scenario.engine.token_budget + 1)
    milliseconds = scenario.engine.batch_time.ms(np.maximum(sizes, 1))
    return np.rint(milliseconds / scenario.tick_ms).astype(np.int64)


def event_loop(
    arrival: np.ndarray,
    prefill: np.ndarray,
    decode: np.ndarray,
    ticks: np.ndarray,
    slots: int,
    steps: int,
) -> tuple[np.ndarray, np.ndarray, int, int, int, int]:
    """Run at most ``steps`` steps of Sarathi-Serve.

    Returns duration and size of each batch, the clock, the requests completed and dropped, and the
    integral of the requests present (ticks).
    """
    budget = ticks.size - 1
    p_left = np.zeros(slots, np.int64)
    d_left = np.zeros(slots, np.int64)
    durations = np.zeros(steps, np.int64)
    sizes = np.zeros(steps, np.int64)
    present = decoding = waiting = clock = area = 0
    coming = completed = dropped = taken = 0
    while taken < steps:
        decode_room = min(decoding, budget)
        prefill_room = min(budget - decode_room, waiting)
        size = decode_room + prefill_room
        if size > 0:
            duration = ticks[size]
        elif coming < arrival.size:
            duration = arrival[coming] - clock
        else:
            break
        waiting -= prefill_room
        area += present * duration
        kept = 0
        for i in range(present):
            p, d = p_left[i], d_left[i]
            if p > 0:
                tokens = min(p, prefill_room)
                prefill_room -= tokens
                p -= tokens
                if p == 0:
                    decoding += 1
            elif decode_room > 0:
                decode_room -= 1
                d -= 1
                if d == 0:
                    decoding -= 1
                    completed += 1
                    continue
            p_left[kept], d_left[kept] = p, d
            kept += 1
        present = kept
        clock += duration
        durations[taken], sizes[taken] = duration, size
        taken += 1
        while coming < arrival.size and arrival[coming] <= clock:
            if present < slots:
                p_left[present], d_left[present] = prefill[coming], decode[coming]
                waiting += prefill[coming]
                area += clock - arrival[coming]
                present += 1
            else:
                dropped += 1
            coming += 1
    return durations[:taken], sizes[:taken], clock, completed, dropped, area


def compiled() -> Callable[..., Any] | None:
    """The loop compiled by numba; None where numba is not installed."""
    try:
        import numba
    except ImportError:
        return None
    loop: Callable[..., Any] = numba.njit(nogil=True)(event_loop)
    return loop
