"""Which stages come before which: parents, an order, choices, and what can run side by side.

Stages are numbered as listed. ``fault(v, text)`` makes the error for stage v of the job type at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from llmgym.core.errors import LLMGymError, unknown
from llmgym.scenario.stage import Stage

Edges = Sequence[tuple[int, ...]]
Fault = Callable[[int, str], LLMGymError]


def parents_of(stages: Sequence[Stage], fault: Fault) -> tuple[tuple[int, ...], ...]:
    """Of each stage, those that must be done before it: those it names, else the one listed before it."""
    names, found = [s.name for s in stages], []
    for v, stage in enumerate(stages):
        after = stage.after if stage.after is not None else names[v - 1 : v] if v else []
        for name in after:
            if name not in names:
                raise fault(v, str(unknown("stage", name, names)))
        found.append(tuple(names.index(name) for name in dict.fromkeys(after)))
    return tuple(found)


def order_of(parents: Edges, fault: Fault) -> tuple[int, ...]:
    """All stages, parents first; the earliest listed where several could come next."""
    order: list[int] = []
    while len(order) < len(parents):
        left = [v for v in range(len(parents)) if v not in order]
        ready = [v for v in left if set(parents[v]) <= set(order)]
        if not ready:
            raise fault(
                left[0],
                "it waits for itself: the stages it comes after lead back to it. "
                "Use repeat for a loop.",
            )
        order.append(ready[0])
    return tuple(order)


def choices_of(
    stages: Sequence[Stage], parents: Edges, fault: Fault
) -> tuple[tuple[int, ...], ...]:
    """Groups of stages of which exactly one is taken: those with a probability and the same parents.

    Args:
        stages: the stages of a job type.
        parents: of each stage, those that must be done before it.
        fault: makes the error that is raised where probabilities of a group do not add up to 1.
    """
    groups: dict[frozenset[int], list[int]] = {}
    for v, stage in enumerate(stages):
        if stage.probability is not None:
            groups.setdefault(frozenset(parents[v]), []).append(v)
    for group in groups.values():
        total = sum(stages[v].probability or 0.0 for v in group)
        if abs(total - 1) > 1e-9:
            listed = ", ".join(stages[v].name for v in group)
            raise fault(
                group[0], f"the probabilities of the choice ({listed}) add up to {total:g}, not 1."
            )
    return tuple(tuple(group) for group in groups.values())


def reachable(edges: Edges, start: int) -> set[int]:
    """All stages that the edges lead to from one stage."""
    found: set[int] = set()
    todo = list(edges[start])
    while todo:
        v = todo.pop()
        if v not in found:
            found.add(v)
            todo += edges[v]
    return found


def largest_antichain(children: Edges, members: Sequence[int]) -> int:
    """Most of the stages ``members`` that can run side by side (Dilworth's theorem)."""
    if not members:
        return 0
    below = [[v in reachable(children, u) for v in members] for u in members]
    matched = maximum_bipartite_matching(csr_array(np.array(below, np.int8)))
    return len(members) - int((matched >= 0).sum())
