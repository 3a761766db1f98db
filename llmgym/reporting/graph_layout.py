"""Where the stages of a job type stand in a picture of its graph: columns by precedence, few crossings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Places in units of one node: column x from the left, row y from the top.

    Attributes:
        places: of each stage, by name.
        edges: the points that each arrow goes through, its ends included; (from, to, points).
        loops: (last stage, first stage, level below the rows); loops inside others stand higher.
        columns, rows: size of the whole.
    """

    places: dict[str, Point]
    edges: tuple[tuple[str, str, tuple[Point, ...]], ...]
    loops: tuple[tuple[str, str, int], ...]
    columns: int
    rows: int


def lay_out(stages: list[dict[str, Any]]) -> Layout:
    """The layout of stages as ``graph_data`` describes them (name, after, repeat).

    Layers by longest path; an arrow over several columns gets an empty place in each, so that it
    runs between the nodes; rows by the mean row of the predecessors (Sugiyama's method, one sweep).
    """
    column = _columns(stages)
    layers: list[list[Any]] = [[] for _ in range(max(column.values()) + 1)]
    above: dict[Any, list[Any]] = {}
    routes = []
    for stage in stages:
        name = stage["name"]
        layers[column[name]].append(name)
        above[name] = []
        for parent in stage["after"]:
            route = [parent]
            for x in range(column[parent] + 1, column[name]):
                bend = (parent, name, x)
                layers[x].append(bend)
                above[bend] = [route[-1]]
                route.append(bend)
            above[name].append(route[-1])
            routes.append((parent, name, [*route, name]))
    rows = max(map(len, layers))
    at: dict[Any, Point] = {}
    for x, layer in enumerate(layers):
        if x:
            layer.sort(key=lambda v: np.mean([at[u][1] for u in above[v]]) if above[v] else -1.0)
        for n, v in enumerate(layer):
            at[v] = (float(x), n + (rows - len(layer)) / 2)
    return Layout(
        places={stage["name"]: at[stage["name"]] for stage in stages},
        edges=tuple((u, v, tuple(at[p] for p in route)) for u, v, route in routes),
        loops=_loops(stages, column),
        columns=len(layers),
        rows=rows,
    )


def _columns(stages: list[dict[str, Any]]) -> dict[str, int]:
    """The number of stages, delays among them, on the longest path to each."""
    after = {stage["name"]: stage["after"] for stage in stages}
    found: dict[str, int] = {}
    while len(found) < len(after):
        for name, parents in after.items():
            if name not in found and all(p in found for p in parents):
                found[name] = max((found[p] + 1 for p in parents), default=0)
    return found


def _loops(
    stages: list[dict[str, Any]], column: dict[str, int]
) -> tuple[tuple[str, str, int], ...]:
    """Loops, short ones first; each is drawn below the earlier ones that it overlaps."""
    pairs = [(s["name"], s["repeat"]["to"]) for s in stages if s["repeat"]]
    spans: list[tuple[int, int, int]] = []
    found = []
    for last, first in sorted(pairs, key=lambda pair: column[pair[0]] - column[pair[1]]):
        low, high = column[first], column[last]
        taken = [level for a, b, level in spans if a <= high and low <= b]
        spans.append((low, high, max(taken, default=-1) + 1))
        found.append((last, first, spans[-1][2]))
    return tuple(found)
