"""What a reproduction is made of: items, the parts that they measure, and the checks that judge them.

An item measures first and judges later, from its measurements alone. A measurement is JSON, so that
verdicts, tables and pictures can be made again from the files of an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np

from llmgym import agents
from llmgym.evaluation.capacity import CapacityEstimate
from llmgym.evaluation.stability import Stability
from llmgym.evaluation.statistics import mean_interval

CONFIDENCE = 0.999
"""Confidence of every interval that a published figure has to lie in.

Some forty checks of a run rest on such an interval: about one run in 25 fails one of them by chance.
"""

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"

T = TypeVar("T")


def learned() -> tuple[str, ...]:
    """Names of the trained policies that ship for one engine; those for a network run only there."""
    return tuple(n for n in agents.names() if agents.load(n).choice.engines == 1)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Effort:
    """How much is simulated.

    Attributes:
        quick: the short version of every item.
        seed: of the arrivals.
        data: folder of recorded runs, for the items that need one.
    """

    quick: bool = False
    seed: int = 0
    data: Path | None = None

    def pick(self, full: T, quick: T) -> T:
        """``quick`` in a quick run, else ``full``."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Check:
    """One figure beside the one that was measured.

    Attributes:
        what: what is compared.
        expected: the published or derived figure.
        measured: ours; low and high its interval, None where there is nothing random.
        verdict: ``"pass"``, ``"fail"`` or ``"skipped"``.
        rule: what a pass means.
    """

    what: str
    expected: float | str
    measured: float | str
    verdict: str
    rule: str
    low: float | None = None
    high: float | None = None


Data = dict[str, Any]
"""Measurements of an item by part, as they come from JSON."""


@dataclass(frozen=True)
class Picture:
    """A figure of an item: the name of its file, a caption, and how it is drawn from the data."""

    name: str
    caption: str
    draw: Callable[[Data], plt.Figure]


@dataclass(frozen=True)
class Item:
    """Something published that is shown again.

    Attributes:
        name: on the command line.
        title: in tables.
        source: where it is published or derived.
        parts: what is measured, by name; each gives JSON-able data.
        judge: the checks, from the data of all parts.
        pictures: drawn from the same data.
    """

    name: str
    title: str
    source: str
    parts: Callable[[Effort], dict[str, Callable[[], Any]]]
    judge: Callable[[Data], list[Check]]
    pictures: tuple[Picture, ...] = ()


def _verdict(passed: bool) -> str:
    return PASS if passed else FAIL


def equal(what: str, expected: float | str, measured: float | str) -> Check:
    """For figures with nothing random in them: they must be the same.

    Args:
        what, expected, measured: see ``Check``.
    """
    return Check(what, expected, measured, _verdict(expected == measured), "equal")


def near(what: str, expected: float, measured: float, half_unit: float) -> Check:
    """For figures with nothing random in them: they must agree in the digits that are published.

    Args:
        what, expected, measured: see ``Check``.
        half_unit: the largest difference that passes, half a unit of the last digit.
    """
    passed = abs(expected - measured) <= half_unit * (1 + 1e-9)
    return Check(what, expected, measured, _verdict(passed), f"within {half_unit:g}")


def between(what: str, low: float, high: float, measured: float) -> Check:
    """The measured figure must lie in a published range.

    Args:
        what: see ``Check``.
        low, high: ends of the range, both part of it.
        measured: our figure.
    """
    expected = f"{low:.4g} to {high:.4g}"
    return Check(what, expected, measured, _verdict(low <= measured <= high), "in the range")


def at_least(what: str, least: float, measured: float) -> Check:
    """The measured figure must not fall below a bound.

    Args:
        what: see ``Check``.
        least: the bound.
        measured: our figure.
    """
    return Check(what, f"at least {least:g}", measured, _verdict(measured >= least), "bound")


def sampled(what: str, expected: float, values: Any) -> Check:
    """The figure must lie in the interval of the mean of independent replications.

    Args:
        what, expected: see ``Check``.
        values: what was measured in each replication, (replications,).
    """
    mean, low, high = mean_interval(np.asarray(values, float), CONFIDENCE)
    return _in_interval(what, expected, mean, low, high)


def estimated(what: str, expected: float, estimate: Data, half_unit: float = 0.0) -> Check:
    """The figure, up to its rounding, must lie in the interval of an estimated capacity.

    Args:
        what, expected: see ``Check``; requests/s, of a network jobs/s.
        estimate: a ``CapacityEstimate`` as ``record`` gives it.
        half_unit: how far the figure may lie outside, half a unit of its last digit.
    """
    mean, low, high = (estimate[k] for k in ("requests_per_s", "low", "high"))
    return _in_interval(what, expected, mean, low, high, half_unit)


def _in_interval(
    what: str, expected: float, mean: float, low: float, high: float, half_unit: float = 0.0
) -> Check:
    passed = low - half_unit <= expected <= high + half_unit
    rule = f"in the {100 * CONFIDENCE:g} % interval"
    return Check(what, expected, mean, _verdict(passed), rule, low, high)


def stands(what: str, expected: str, found: Data) -> Check:
    """The verdict on stability must be the expected one; the interval is that of the growth, tokens/ms.

    Args:
        what: see ``Check``.
        expected: ``"stable"``, ``"unstable"`` or ``"undecided"``.
        found: a ``Stability`` as ``record`` gives it.
    """
    low, high = found["low"], found["high"]
    return Check(
        what,
        expected,
        found["verdict"],
        _verdict(expected == found["verdict"]),
        "verdict",
        low,
        high,
    )


def skipped(what: str, why: str) -> Check:
    """A check of what could not be measured, and why."""
    return Check(what, "", why, SKIPPED, "")


def verdict_of(checks: list[Check]) -> str:
    """The verdict on an item: a fail where any check fails, else a pass where any passes, else skipped."""
    verdicts = {check.verdict for check in checks}
    return next((v for v in (FAIL, PASS) if v in verdicts), SKIPPED)


def record(estimate: CapacityEstimate | Stability) -> Data:
    """An estimated capacity or a verdict as data."""
    return asdict(estimate)
