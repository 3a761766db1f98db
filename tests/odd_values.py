"""Odd values for arguments, and what must happen to them: a right result or one short LLMGymError."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from limits import RUN_CPU_SECONDS, RUN_SECONDS, SECONDS, again_if_late, within

from llmgym import Affine, Engine, LLMGymError
from llmgym.core.errors import MOST_CHARACTERS
from llmgym.scenario import arrivals, lengths
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload

ENGINE = Engine(Affine(10.0, 0.1), 64)
JOB = Workload(arrivals.Poisson(2.0), 10, 3)
ONE = Scenario((ENGINE,), JOB, slots=16)


class Silent:
    """Something whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


VALUES: list[Any] = [
    None, True, False, "", "a", "1", "x" * 5000, b"1", [], [1], (1, 2), {}, {1}, {"a": 1},
    [[1], [2, 3]], [None], ["1", "2"], ("a",), [0.0, 1.0], [1, 0.5], 0, 1, -1, 2, 3, 7, 0.0, 0.5,
    1.0, 2.0, 2.5, -0.5, float("nan"), float("inf"), -float("inf"), 1e300, 1e-300, -1e300,
    5e-324, 10**400, -(10**400), 10**6000, 2**31, 2**32, 2**63, 2**64, 1e9, 1e19, 1j,
    Decimal("1.5"), Decimal("nan"), Fraction(1, 3), Fraction(2), np.int32(3), np.int64(-1),
    np.uint64(2**64 - 1), np.float32(1.5), np.float64("nan"), np.float16(2.0), np.bool_(True),
    np.array(3), np.array([1.0, 2.0]), np.array([[1, 2]]), np.array([]), np.array("x"),
    np.array([object()]), np.datetime64("2026-01-01"), object(), Silent(), Silent, int, len,
    lambda: None, ..., NotImplemented, range(3), range(10**9), bytearray(3), [10**400], [True],
    [float("nan")], "sarathi", ["sarathi"], arrivals.Poisson(1.0), lengths.Fixed(3), ENGINE, JOB,
]  # fmt: skip

ODD = st.one_of(st.sampled_from(VALUES), st.floats(), st.integers())


def try_out(call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """A right result, or one short line, neither late nor large."""

    def attempt() -> str | None:
        refused = None
        with within(RUN_SECONDS, cpu_seconds=RUN_CPU_SECONDS) as spent:
            try:
                call(**arguments)
            except LLMGymError as error:
                refused = str(error)
        if refused is not None:
            spent.check(SECONDS)
        return refused

    refused = again_if_late(attempt)
    if refused is not None:
        assert 0 < len(refused) <= MOST_CHARACTERS
        assert "\n" not in refused


@st.composite
def changed(draw: Any, table: dict[Callable[..., Any], dict[str, Any]]) -> Any:
    """A function of the table, and its arguments with odd values in the place of one or two."""
    call = draw(st.sampled_from(list(table)))
    names = draw(st.lists(st.sampled_from(list(table[call])), min_size=1, max_size=2))
    return call, table[call] | {name: draw(ODD) for name in names}
