"""Random workflows: forks and joins, choices, loops and delays, nested in one another."""

from __future__ import annotations

from typing import Any

import numpy as np
from workloads import LENGTHS

from llmgym.scenario.stage import Repeat

FORMS: dict[str, tuple[str, ...]] = {
    "cycle": ("call",),
    "waits": ("call", "delay"),
    "dag": ("dag", "fork"),
    "loop": ("loop", "loop", "series"),
    "choice": ("choice", "series"),
    "tools": ("loop", "fork", "series", "delay"),
    "rounds": ("loop", "choice", "series"),
    "any": ("dag", "fork", "loop", "choice", "series", "delay"),
}
"""What workflows are made of. Of the first two every job is a chain; jobs of a replay are one call."""


class Grower:
    """Grows the workflow of a job type from nested blocks. Lengths are kinds only, to be filled in."""

    def __init__(self, rng: np.random.Generator, form: str, engines: int) -> None:
        self.rng, self.form, self.engines = rng, form, engines
        self.blocks = FORMS[form]
        self.stages: list[dict[str, Any]] = []
        self.headless: set[tuple[str, ...]] = set()

    def stage(
        self, after: tuple[str, ...], probability: float | None = None, delay: bool = False
    ) -> str:
        """One more stage; its name."""
        kinds = tuple(str(k) for k in self.rng.choice(LENGTHS[:-1], 2))
        kinds = ("paired", "paired") if self.rng.uniform() < 0.1 else kinds
        chain = self.form in ("cycle", "waits")
        self.stages.append(
            {
                "name": f"s{len(self.stages)}",
                "after": after,
                "probability": probability,
                "engine": f"e{self.rng.integers(self.engines)}",
                "inherits": not chain and self.rng.uniform() < 0.4,
                "kinds": kinds,
                "delay": delay,
            }
        )
        return str(self.stages[-1]["name"])

    def chain(self, size: int) -> None:
        """One call after another, back and forth between engines."""
        before: tuple[str, ...] = ()
        for _ in range(size):
            delay = "delay" in self.blocks and self.rng.uniform() < 0.4
            before = (self.stage(before, delay=delay),)

    def block(
        self, after: tuple[str, ...], size: int, probability: float | None = None
    ) -> tuple[str, ...]:
        """About ``size`` stages that begin after the given ones; the stages that they end with."""
        blocks = [b for b in self.blocks if b != "delay"]
        kind = str(self.rng.choice(blocks)) if size >= 3 else "call"
        if kind == "series":
            half = self.block(after, size // 2, probability)
            return self.block(half, size - size // 2)
        if kind == "dag":
            return self._dag(after, size, probability)
        if kind == "loop":
            return self._loop(after, size, probability)
        if kind in ("fork", "choice"):
            # Two choices after the same stages would be one.
            headless = len(after) != 1 and probability is None and after not in self.headless
            headless = headless and (bool(after) or self.rng.uniform() < 0.3)
            self.headless.add(after)
            before = after if headless else (self.stage(after, probability),)
            return self._branches(before, size - (not headless), kind == "choice")
        delay = "delay" in self.blocks and self.rng.uniform() < 0.35
        return (self.stage(after, probability, delay),)

    def _branches(self, before: tuple[str, ...], size: int, choice: bool) -> tuple[str, ...]:
        count = 2 + int(size > 3 and self.rng.uniform() < 0.5)
        chances: list[Any] = [None] * count
        if choice:
            shares = self.rng.multinomial(8, np.full(count, 1 / count)) + 1
            chances = (shares / shares.sum()).tolist()
        size = max(size // count, 1)
        return tuple(exit_ for p in chances for exit_ in self.block(before, size, p))

    def _loop(
        self, after: tuple[str, ...], size: int, probability: float | None
    ) -> tuple[str, ...]:
        delays = "delay" in self.blocks
        first = self.stage(after, probability, delays and self.rng.uniform() < 0.2)
        if self.rng.uniform() < 0.7:
            inside = self.block((first,), size - 2)
            last = self.stage(inside, delay=delays and self.rng.uniform() < 0.3)
        else:
            last = first
        p, rounds = float(self.rng.choice([0.3, 0.5])), int(self.rng.choice([2, 3]))
        kinds: tuple[dict[str, Any], ...] = ({"probability": p}, {"rounds": rounds})
        repeat = Repeat(first, **kinds[self.rng.integers(2)])
        self.stages[int(last[1:])]["repeat"] = repeat
        return (last,)

    def _dag(self, after: tuple[str, ...], size: int, probability: float | None) -> tuple[str, ...]:
        names = [self.stage(after, probability)]
        for _ in range(size - 1):
            some = self.rng.choice(names, min(len(names), int(self.rng.integers(1, 4))), False)
            names.append(self.stage(tuple(str(n) for n in some)))
        used = {name for stage in self.stages for name in stage["after"]}
        return tuple(name for name in names if name not in used)


def grow(rng: np.random.Generator, form: str, engines: int, size: int) -> list[dict[str, Any]]:
    """The stages of a job type of about ``size`` stages: fields of Stage, kinds in place of lengths."""
    grower = Grower(rng, form, engines)
    if form in ("cycle", "waits"):
        grower.chain(int(rng.integers(2, 5)))
    else:
        grower.block((), size)
    if all(stage["delay"] for stage in grower.stages):
        grower.stages[-1]["delay"] = False
    return grower.stages
