"""What a run would take: memory, requests, simulated time. What no machine could do is refused at once.

A run that is refused says what it would take, so that a smaller one can be chosen.
"""

from __future__ import annotations

from typing import Any

from llmgym.core.errors import LLMGymError, check_number
from llmgym.engine.size import FEW_ENVS, bytes_of, check_memory
from llmgym.scenario.scenario import Scenario

MOST_TICKS = 2**48
"""Longest run in clock ticks: 89 years at 0.01 ms. Times of requests are kept in 48 bits."""

MOST_ARRIVALS = 2e9
"""Most requests that a run may bring: at a million a second, half an hour."""


def check_envs(name: str, count: Any, low: int = 1) -> int:
    """A number of environments, as int. Raises LLMGymError where it is none.

    Args:
        name: of the argument.
        count: its value.
        low: fewest allowed.
    """
    return int(check_number(name, count, low=low, integer=True))


def check_duration(name: str, seconds: Any, scenario: Scenario, zero: bool = False) -> float:
    """Simulated seconds that the clock can hold.

    Args:
        name: of the argument.
        seconds: its value.
        scenario: whose clock runs.
        zero: whether it may be 0.

    Raises:
        LLMGymError: it is no number above 0, or the clock cannot hold it.
    """
    most = MOST_TICKS * scenario.tick_ms / 1000
    try:
        low, above = (0, None) if zero else (None, 0)
        return float(check_number(name, seconds, low=low, above=above, high=most))
    except LLMGymError as error:
        raise LLMGymError(
            f"{error} A clock of {scenario.tick_ms:g} ms ticks holds {most:.3g} s."
        ) from None


def check_work(
    scenario: Scenario, num_envs: int, duration_s: float | None = None, record: bool = False
) -> None:
    """Refuse a run that would bring too many requests or take more memory than there is.

    Args:
        scenario: at its final rate.
        num_envs: environments that run side by side.
        duration_s: simulated seconds; None: no fixed number.
        record: whether every request is kept, which takes memory for a chunk of steps.

    Raises:
        LLMGymError: it says what the run would take.
    """
    if duration_s is not None and scenario.demand.end_s is None:
        arrivals = scenario.arrival_rate_per_s * duration_s * num_envs
        if arrivals > MOST_ARRIVALS:
            raise LLMGymError(
                f"{num_envs} environments of {duration_s:g} s at {scenario.arrival_rate_per_s:.4g} "
                f"arrivals per second bring {arrivals:.2g} requests; at most {MOST_ARRIVALS:g}. Use a "
                "shorter duration_s, a lower load or fewer environments."
            )
    if num_envs > FEW_ENVS:
        check_memory(num_envs, bytes_of(scenario, record))
