"""Nested WAIT, for output lengths that are unknown (arXiv:2504.11320)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import by_class, of_classes, progress
from llmgym.baselines.thresholds import anyone_late, at_least_one, count, limit_on_requests, shares
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.engine.fill import fill, own_budget
from llmgym.engine.view import Batch, View
from llmgym.scenario.lengths import MAX_TOKENS


class Segment(NamedTuple):
    """Requests in it have made at least ``start`` and fewer than ``end`` output tokens."""

    start: Any
    end: Any
    limit: jax.Array  # L_s
    threshold: jax.Array  # n_s


@dataclass(frozen=True)
class NestedWAIT(Policy):
    """Requests pass through segments of output tokens; each waits at its entrance for enough others.

    A stage is a prompt or an output token, and the segments are cut at the sorted output lengths of
    the request types: the first has the prompt and the tokens up to the first cut. A limit L is split
    over them as L_s in proportion to (stages of s)*(rate of requests that reach it); n_s = ceil(L_s /
    stages). In order, a segment runs if its entrance holds min(n_s, L_s - occupied_s) requests, with
    occupied_s those past the entrance; the first that does not ends the search. In the segments that
    run, all requests past the entrance and that many from the entrance run one step: nobody's length is
    known, and whoever ends in a segment leaves.

    Not work-conserving. Completed: a type is a request class with its mean output; the last segment
    has no end. A request that lost its memory enters the first segment again. An engine that waits is
    asked again at the next arrival, so the timeout acts then. If memory is so full that none of the
    chosen requests could run, those who hold it run.

    Args:
        cuts: output tokens after which segments end, ascending; None: the mean outputs of the classes.
        reach: share of the requests that reach each segment, starting with 1; None: by the classes
            whose mean output exceeds the cut before.
        limit: L; None: the engine's limit on requests, or its token budget where it has none.
        rates: of the classes, in any unit; one number: all alike.
        timeout_ms: time without service of a request that is past an entrance or among those let
            through next, after which all such requests run.
    """

    cuts: Sequence[int] | None = None
    reach: Sequence[float] | None = None
    limit: int | None = None
    rates: Any = 1.0
    timeout_ms: float = 1000.0
    name: ClassVar[str] = "nested_wait"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cuts is not None:
            object.__setattr__(self, "cuts", _ascending(self.cuts))
        if self.reach is not None:
            object.__setattr__(self, "reach", _falling(self.reach, self.cuts))
        if self.limit is not None:
            keep_number(self, "limit", low=1, integer=True)
        object.__setattr__(self, "rates", by_class("rates", self.rates))
        keep_number(self, "timeout_ms", above=0)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        go = jnp.ones(view.token_budget.shape, bool)
        runs, allowed = jnp.zeros_like(view.live), jnp.zeros_like(view.live)
        for number, segment in enumerate(self._segments(view)):
            entrance, past = _places(view, number, segment)
            room = jnp.maximum(segment.limit - count(past), 0)
            take = jnp.minimum(segment.threshold, room)
            # Of two equal cuts the segment between them is empty: nothing to wait for.
            go = go & ((count(entrance) >= take) | (segment.start >= segment.end))
            mine = past | (entrance & (prefix_sum(entrance) <= take))
            runs, allowed = runs | (mine & go), allowed | mine
        runs = jnp.where(anyone_late(view, allowed, self.timeout_ms), allowed, runs)
        budget = own_budget(view, self.token_budget)
        demand = jnp.where(runs, view.demand, 0)
        batch = fill(view, view.empty(), jnp.where(view.started, demand, 0), budget)
        batch = fill(view, batch, jnp.where(view.started, 0, demand), budget)
        return progress(view, batch, budget)

    def _segments(self, view: View) -> list[Segment]:
        """The segments in order."""
        outputs, here = view.classes.mean_decode, view.classes.here
        if self.cuts is None:
            known = jnp.where(here, outputs, jnp.max(jnp.where(here, outputs, 1), axis=0))
            ends = list(jnp.sort(at_least_one(jnp.ceil(known)), axis=0))
        else:
            ends = [jnp.int32(cut) for cut in self.cuts]
        starts = [jnp.int32(0), *ends[:-1]]
        stages = [end - start for start, end in zip(starts, ends, strict=True)]
        stages[0] = stages[0] + 1  # the prompt
        work = [m * r for m, r in zip(stages, self._reach(view, starts), strict=True)]
        limits = [
            at_least_one(part)
            for part in shares(limit_on_requests(view, self.limit, self.token_budget), work)
        ]
        thresholds = [-(-n // jnp.maximum(m, 1)) for n, m in zip(limits, stages, strict=True)]
        ends[-1] = jnp.int32(jnp.iinfo(jnp.int32).max)
        return list(map(Segment, starts, ends, limits, thresholds))

    def _reach(self, view: View, starts: list[jax.Array]) -> list[jax.Array]:
        """Rate of the requests that reach each segment, in any unit."""
        if self.reach is not None:
            return [jnp.float32(share) for share in self.reach]
        rates = of_classes("rates", view, self.rates)
        here = jnp.stack(
            [jnp.where(h, r, 0.0) for h, r in zip(view.classes.here, rates, strict=True)]
        )
        later = [jnp.where(view.classes.mean_decode > cut, here, 0.0) for cut in starts[1:]]
        return [jnp.sum(part, axis=0) for part in (here, *later)]


def _places(view: View, number: int, segment: Segment) -> tuple[jax.Array, jax.Array]:
    """Who stands at the entrance of a segment, and who is past it."""
    if number == 0:
        early = (view.prefill > 0) | (view.generated < segment.end)
        return view.live & ~view.started, view.live & view.started & early
    inside = view.started & view.decoding & (view.generated < segment.end)
    return inside & (view.generated == segment.start), inside & (view.generated > segment.start)


def _numbers(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise LLMGymError(f"{name} must be a list of numbers, got {shown(values)}.")
    return tuple(values)


def _ascending(cuts: Any) -> tuple[int, ...]:
    cuts = _numbers("cuts", cuts)
    for i, cut in enumerate(cuts):
        check_number(f"cuts[{i}]", cut, low=1, high=MAX_TOKENS, integer=True)
        if i and cut <= cuts[i - 1]:
            raise LLMGymError(
                f"cuts[{i}] = {cut} does not exceed the one before, {cuts[i - 1]}; "
                "give each boundary once, in ascending order."
            )
    return tuple(map(int, cuts))


def _falling(reach: Any, cuts: Sequence[int] | None) -> tuple[float, ...]:
    reach = _numbers("reach", reach)
    if cuts is None or len(reach) != len(cuts):
        raise LLMGymError(
            f"reach must have one share for each of the cuts, got reach={shown(reach)} with "
            f"cuts={shown(cuts)}."
        )
    for i, share in enumerate(reach):
        check_number(f"reach[{i}]", share, above=0, high=1)
        if i and share > reach[i - 1]:
            raise LLMGymError(
                f"reach[{i}] = {share} exceeds the one before, {reach[i - 1]}; "
                "whoever reaches a segment has passed those before it."
            )
    return tuple(map(float, reach))
