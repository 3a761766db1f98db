"""Measurements in processes of their own: nothing that has ended is lost where another one fails."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from llmgym.evaluation.workers import _ended


def future(result: Any) -> Future[Any]:
    """One that has ended; with an error, if that is the result."""
    found: Future[Any] = Future()
    if isinstance(result, Exception):
        found.set_exception(result)
    else:
        found.set_result(result)
    return found


@pytest.mark.parametrize("error", [ValueError("it fails"), BrokenProcessPool("killed")])
def test_results_that_there_are_come_before_an_error(error: Exception) -> None:
    results = [error, *"abc", error, *"def"]
    waiting = {future(result): n for n, result in enumerate(results)}
    waiting[Future()] = 99  # still at work
    found = []
    with pytest.raises(type(error)):
        deque(map(found.append, _ended(waiting)))
    assert sorted(found) == [(1, "a"), (2, "b"), (3, "c"), (5, "d"), (6, "e"), (7, "f")]


def test_all_results_in_the_order_in_which_they_end() -> None:
    waiting = {future(x): n for n, x in enumerate("abc")}
    assert sorted(_ended(waiting)) == [(0, "a"), (1, "b"), (2, "c")]
    assert list(_ended({})) == []
