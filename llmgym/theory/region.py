"""The stability region under a limit on the requests in a batch (arXiv:2504.07347v3, section 6)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull

from llmgym.core.checks import as_list
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.scenario.batch_time import Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import batch_ms, compositions


@dataclass(frozen=True, eq=False)
class Polygon:
    """A convex region of token rates: all (lambda_p, lambda_d) >= 0 below and left of its vertices.

    Attributes:
        vertices: float64 of shape (n, 2), tokens per millisecond of (prefill, decode), from the
            point (max, 0) counterclockwise to (0, max). The origin is left out.
    """

    vertices: np.ndarray

    def contains(self, lambda_p: float, lambda_d: float) -> bool:
        """Whether the rates (tokens/ms) lie in the closed region, up to rounding (1e-12)."""
        check_number("lambda_p", lambda_p, low=0)
        check_number("lambda_d", lambda_d, low=0)
        normals, offsets = self._edges()
        return bool(np.all(normals @ (lambda_p, lambda_d) <= offsets * (1 + 1e-12)))

    def scale_to_boundary(self, direction: tuple[float, float]) -> float:
        """The factor f that puts f*direction on the outer boundary.

        With ``direction`` = (m_p, m_d) it is the capacity in requests per millisecond.
        """
        direction = as_list("direction", direction, what="two numbers")
        if len(direction) != 2:
            raise LLMGymError(f"direction must be two numbers, got {shown(direction)}.")
        for i, value in enumerate(direction):
            check_number(f"direction[{i}]", value, low=0)
        if max(direction) <= 0:
            raise LLMGymError("direction must have a part above 0; (0, 0) points nowhere.")
        normals, offsets = self._edges()
        speed = normals @ direction
        return float(np.min(offsets[speed > 0] / speed[speed > 0]))

    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Outward normals (n - 1, 2) and offsets of the edges between consecutive vertices."""
        step = np.diff(self.vertices, axis=0)
        normals = np.column_stack([step[:, 1], -step[:, 0]])
        return normals, np.sum(normals * self.vertices[:-1], axis=1)


def stability_polygon(engine: Engine | Scenario) -> Polygon:
    """Token rates that an engine with at most k_max requests in a batch can sustain.

    The convex hull of (x, y)/t_{x+y} over the feasible batches (y <= k_max - 1 if x > 0 else k_max,
    x + y <= b_max) and of what lies below it. Without k_max it is a triangle.

    Raises:
        LLMGymError: the cap counts resident requests: the region then depends on output lengths.
    """
    engine = _batch_limited(engine)
    prefill, decode = compositions(engine)
    points = np.column_stack([prefill, decode]) / batch_ms(engine, prefill + decode)[:, None]
    # The points on the axes close the region downwards, whatever the batch time.
    corner = points.max(axis=0)
    points = np.vstack([points, np.diag(corner), np.zeros((1, 2))])
    ring = points[ConvexHull(points).vertices]  # counterclockwise in two dimensions
    origin = int(np.argmin(ring.sum(axis=1)))
    return Polygon(_kinks(np.roll(ring, -origin, axis=0)[1:]))


def _kinks(vertices: np.ndarray) -> np.ndarray:
    """Drop vertices where only rounding turns the boundary: whole tiles lie on a straight line."""
    step = np.diff(vertices, axis=0)
    step /= np.linalg.norm(step, axis=1, keepdims=True)
    turn = step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]
    return vertices[np.concatenate([[True], turn > 1e-9, [True]])]


def staircase_corners(engine: Engine | Scenario) -> np.ndarray:
    """The corners A, B, C, D of the region for staircase batch times, from their formula.

    A = (b_max, 0)/t_{b_max}, B = (b_max - k_max + 1, k_max - 1)/t_{b_max},
    C = (b_0 - k_max + 1, k_max - 1)/t_{b_0}, D = (0, k_max)/t_{k_max}; C is that of section 6.2.
    C lies inside the hull where larger batches cost little more (c well above a) or k_max = b_0; A
    and B coincide for k_max = 1. The polygon is right in every case.

    Returns:
        float64 of shape (4, 2), tokens per millisecond of (prefill, decode).

    Raises:
        LLMGymError: not a staircase, no k_max, k_max above the tile, or a budget that is not whole tiles.
    """
    engine = _batch_limited(engine)
    time, budget, seqs = engine.batch_time, engine.token_budget, engine.max_num_seqs
    if not isinstance(time, Staircase):
        raise LLMGymError(f"The corners A-D need a Staircase batch time, got {shown(time)}.")
    if seqs is None or seqs > time.tile:
        raise LLMGymError(
            f"The corners A-D need max_num_seqs of at most one tile ({time.tile}), got {seqs}; "
            "use stability_polygon."
        )
    if budget % time.tile:
        raise LLMGymError(
            f"The corners A-D need a token budget of whole tiles, got {budget} with tiles of "
            f"{time.tile}; use stability_polygon."
        )
    rest = seqs - 1
    batches = np.array([(budget, 0), (budget - rest, rest), (time.tile - rest, rest), (0, seqs)])
    return batches / batch_ms(engine, batches.sum(axis=1))[:, None]


def _batch_limited(engine: Engine | Scenario) -> Engine:
    engine = engine.engine if isinstance(engine, Scenario) else engine
    if not isinstance(engine, Engine):
        raise LLMGymError(f"Expected an Engine or a Scenario, got {shown(engine)}.")
    if engine.max_num_seqs is not None and engine.seq_limit == "resident":
        raise LLMGymError(
            "With seq_limit='resident' the region depends on the output lengths and is no polygon "
            "of token rates. Use capacity(scenario), or seq_limit='batch'."
        )
    return engine
