"""The limits of the fuzz tests can fail: on what hangs, computes for long or fills the memory."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import odd_values
import pytest
from limits import STATUS, LateError, again_if_late, within
from odd_values import try_out

from llmgym import LLMGymError

ONE_GB = 125_000_000
"""Numbers of 8 bytes."""


def swallowed() -> None:
    """A loop that catches whatever an alarm might raise, but for what no program catches."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        with suppress(Exception):
            time.sleep(1.0)


def computed(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_what_is_within_all_limits_passes_and_tells_what_it_took() -> None:
    with within(seconds=300, gigabytes=0.5, cpu_seconds=30) as spent:
        time.sleep(0.02)
    assert spent.seconds >= 0.02 and spent.gigabytes < 0.5
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no signals there")
@pytest.mark.parametrize("hang", [swallowed, lambda: computed(5)])
def test_a_hang_is_stopped(hang: Callable[[], Any]) -> None:
    ended: list[bool] = []
    with pytest.raises(LateError), within(seconds=0.05):
        ended.append(hang() is None)
    assert not ended
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_processor_has_a_limit_of_its_own() -> None:
    with pytest.raises(AssertionError, match="cpu_seconds"), within(seconds=300, cpu_seconds=0.05):
        computed(0.1)
    with within(seconds=300, cpu_seconds=0.05):
        time.sleep(0.1)


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell")
def test_memory_counts_even_where_it_was_given_back() -> None:
    with within(300, gigabytes=2) as spent:
        np.ones(ONE_GB // 2)
    assert 0.45 < spent.gigabytes < 0.7
    with pytest.raises(AssertionError, match="gigabytes"), within(300, gigabytes=0.2):
        np.ones(ONE_GB // 4)  # less than the peak of the block before


def test_a_fault_inside_is_told_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError), within(300):
        print(1 / 0)


def waits(seconds: float, refuse: bool) -> None:
    time.sleep(seconds)
    if refuse:
        raise LLMGymError("no")


def test_what_is_tried_out_is_held_to_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal has less time than a call that is accepted, which may compile."""
    monkeypatch.setattr(odd_values, "SECONDS", 0.2)
    try_out(waits, {"seconds": 0.0, "refuse": True})
    try_out(waits, {"seconds": 0.3, "refuse": False})
    with pytest.raises(LateError):
        try_out(waits, {"seconds": 0.3, "refuse": True})
    monkeypatch.setattr(odd_values, "RUN_SECONDS", 0.1)
    with pytest.raises(LateError):
        try_out(waits, {"seconds": 0.3, "refuse": False})


def test_only_what_waited_has_a_second_try() -> None:
    tries = []

    def slow_at_first(work: Callable[[float], None]) -> int:
        tries.append(1)
        with within(seconds=0.3):
            if len(tries) == 1:
                work(1.0)
        return len(tries)

    assert again_if_late(lambda: slow_at_first(time.sleep)) == 2
    tries.clear()
    with pytest.raises(LateError):
        again_if_late(lambda: slow_at_first(computed))
