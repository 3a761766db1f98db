"""WAIT, waiting for accumulated inference thresholds (arXiv:2504.11320)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.policy import Policy
from llmgym.baselines.ranking import by_class, of_classes
from llmgym.baselines.thresholds import anyone_late, at_least_one, count, limit_on_requests, shares
from llmgym.core.arrays import prefix_sum
from llmgym.core.checks import keep_number
from llmgym.core.errors import unknown
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View

STARTS = ("any", "all")


@dataclass(frozen=True)
class WAIT(Policy):
    """A batch runs only when request types have gathered their thresholds; else everybody waits.

    A type j is a request class, with the mean output o_j and the rate lambda_j. A limit L on requests
    that run is split as L_j in proportion to lambda_j * (o_j + 1), and n_j = max(1, L_j / (o_j + 1)).
    With ``start="all"``, the strict rule, a batch starts when every type has n_j new requests; with
    ``"any"`` when some type has min(n_j, L_j - active_j). It takes those, and all that run.

    Not work-conserving. Completed: types that have not gathered their threshold send no new requests;
    prompts that exceed the budget go in chunks. An engine that waits is asked again at the next
    arrival, so the timeout acts then; once arrivals have ended, what is below the thresholds stays.

    Args:
        start: which types must be ready, "any" or "all".
        limit: L; None: the engine's limit on requests, or its token budget where it has none.
        rates: lambda_j, one for each class, in any unit; one number: all alike.
        timeout_ms: time without service of a request that runs or may start, after which a batch
            runs with all such requests.
    """

    start: str = "any"
    limit: int | None = None
    rates: Any = 1.0
    timeout_ms: float = 1000.0
    name: ClassVar[str] = "wait"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in STARTS:
            raise unknown("start", self.start, STARTS)
        if self.limit is not None:
            keep_number(self, "limit", low=1, integer=True)
        object.__setattr__(self, "rates", by_class("rates", self.rates))
        keep_number(self, "timeout_ms", above=0)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        waiting = view.live & ~view.started
        starts, allowed = jnp.zeros_like(waiting), jnp.zeros_like(waiting)
        gathered = []
        for k, (limit, threshold) in enumerate(self._thresholds(view)):
            mine = waiting & (view.job_class == k)
            active = count(view.started & (view.job_class == k))
            take = jnp.minimum(threshold, jnp.maximum(limit - active, 0))
            enough = count(mine) >= (threshold if self.start == "all" else take)
            gathered.append(enough | ~view.classes.here[k] if self.start == "all" else enough)
            first = mine & (prefix_sum(mine) <= take)
            starts, allowed = starts | (first & enough), allowed | first
        combine = jnp.any if self.start == "any" else jnp.all
        go = combine(jnp.stack(gathered), axis=0)
        late = anyone_late(view, view.started | allowed, self.timeout_ms)
        new = jnp.where(late, allowed, starts & go)
        running = view.started & (go | late)
        batch = fill(view, view.empty(), jnp.where(running, view.demand, 0), self.token_budget)
        return fill(view, batch, jnp.where(new, view.demand, 0), self.token_budget)

    def _thresholds(self, view: View) -> list[tuple[jax.Array, jax.Array]]:
        """(L_j, n_j) of every class."""
        limit = limit_on_requests(view, self.limit, self.token_budget)
        rates = of_classes("rates", view, self.rates)
        stages = [view.classes.mean_decode[k] + 1 for k in range(len(rates))]
        here = view.classes.here.astype(jnp.float32)
        parts = shares(limit, [rate * here[k] * stages[k] for k, rate in enumerate(rates)])
        return [(at_least_one(p), at_least_one(p / m)) for p, m in zip(parts, stages, strict=True)]
