"""The stability polygon against the published corners, the planning LP and the batches."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import (
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    Affine,
    BatchTime,
    Hinge,
    Staircase,
)
from llmgym.scenario.engine import Engine
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload
from llmgym.theory import capacity, stability_polygon, staircase_corners

PUBLISHED = Engine(CODELLAMA_34B_A100, 1024, max_num_seqs=100)
CORNERS = [(3.4707, 0), (3.1352, 0.3355), (0.6203, 2.1176), (0, 2.1390)]

batch_times = st.one_of(
    st.builds(Staircase, st.floats(0, 50), st.floats(0.1, 50), st.integers(1, 64)),
    st.builds(Hinge, st.floats(0.1, 50), st.floats(0, 1), st.integers(0, 64)),
    st.builds(Affine, st.floats(0, 50), st.floats(0.01, 1)),
)
caps = st.one_of(st.none(), st.integers(1, 400))


def test_published_corners():
    assert stability_polygon(PUBLISHED).vertices == pytest.approx(np.array(CORNERS), abs=5.1e-5)
    assert staircase_corners(PUBLISHED) == pytest.approx(np.array(CORNERS), abs=5.1e-5)


def test_scenario_stands_for_its_engine():
    s = Scenario((PUBLISHED,), (Workload(Poisson(1.0), 129, 112),))
    assert np.array_equal(stability_polygon(s).vertices, stability_polygon(PUBLISHED).vertices)
    assert np.array_equal(staircase_corners(s), staircase_corners(PUBLISHED))


@settings(max_examples=60, deadline=None)
@given(
    c_ms=st.floats(0.1, 50),
    a_ms=st.floats(0.1, 50),
    tile=st.integers(3, 128),
    tiles=st.integers(2, 12),
    data=st.data(),
)
def test_hull_has_the_corners_of_the_formula(c_ms, a_ms, tile, tiles, data):
    seqs = data.draw(st.integers(2, tile))
    engine = Engine(Staircase(c_ms, a_ms, tile), tiles * tile, max_num_seqs=seqs)
    corners, polygon = staircase_corners(engine), stability_polygon(engine)
    _, b, c, d = corners
    outward = (c - b)[0] * (d - c)[1] - (c - b)[1] * (d - c)[0]
    assume(abs(outward) > 1e-6)  # not B, C and D on one line, where either answer is right
    expected = corners if outward > 0 else corners[[0, 1, 3]]  # C inside: setting up is dear
    assert polygon.vertices == pytest.approx(expected, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    batch_time=batch_times,
    token_budget=st.integers(1, 600),
    cap=caps,
    lengths=st.tuples(st.integers(0, 900), st.integers(0, 900)).filter(any),
)
def test_capacity_is_the_scale_of_the_mean_lengths(batch_time, token_budget, cap, lengths):
    workload = Replay([0.0, 1.0], [lengths[0]] * 2, [lengths[1]] * 2)
    s = Scenario.single_engine(batch_time, token_budget, workload, max_num_seqs=cap, tick_ms=1e-4)
    scale = stability_polygon(s).scale_to_boundary(lengths)
    assert capacity(s).requests_per_s == pytest.approx(1000 * scale, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(
    batch_time=batch_times,
    token_budget=st.integers(1, 300),
    cap=caps,
    share=st.floats(0, 1),
)
def test_every_feasible_batch_lies_inside_and_nothing_beyond(batch_time, token_budget, cap, share):
    polygon = stability_polygon(Engine(batch_time, token_budget, max_num_seqs=cap))
    decode = np.arange(token_budget + 1 if cap is None else min(cap - 1, token_budget) + 1)
    size = np.random.default_rng(0).integers(1, token_budget + 1, decode.size)
    for y, b in zip(decode, np.maximum(size, decode), strict=True):
        if b > 0:
            ms = float(batch_time.ms(b))
            assert polygon.contains((b - y) / ms * (1 - 1e-9), y / ms * (1 - 1e-9))
    ray = np.array([share, 1 - share])
    edge = ray * polygon.scale_to_boundary(tuple(ray))
    assert polygon.contains(*(0.999 * edge))
    assert not polygon.contains(*(1.001 * edge))


@pytest.mark.parametrize("batch_time", [CODELLAMA_34B_A100, LLAMA_3_70B, Affine(5.0, 0.1)])
@pytest.mark.parametrize("cap", [None, 1, 100, 8192])
def test_vertices_run_from_axis_to_axis_and_turn_left(batch_time, cap):
    polygon = stability_polygon(Engine(batch_time, 8192, max_num_seqs=cap))
    first, last = polygon.vertices[0], polygon.vertices[-1]
    assert first[1] == 0
    assert last[0] == 0
    assert polygon.vertices.max(axis=0) == pytest.approx([first[0], last[1]], rel=1e-12)
    step = np.diff(polygon.vertices, axis=0)
    assert np.all(step[:-1, 0] * step[1:, 1] > step[:-1, 1] * step[1:, 0])
    assert np.all(step @ (1, 0) <= 0)
    assert np.all(step @ (0, 1) >= 0)


def test_without_a_cap_the_region_is_the_triangle_of_theorem_2():
    rate = 512 / 153.16
    vertices = stability_polygon(Engine(CODELLAMA_34B_A100, 512)).vertices
    assert vertices == pytest.approx(np.array([(rate, 0), (0, rate)]), rel=1e-12)


def test_corner_c_is_on_the_boundary():
    polygon, corner = stability_polygon(PUBLISHED), np.array([29, 99]) / 46.75
    assert polygon.contains(*corner)
    assert polygon.scale_to_boundary(tuple(corner)) == pytest.approx(1, rel=1e-12)
    assert not polygon.contains(corner[0] * 1.001, corner[1])
    assert not polygon.contains(corner[0], corner[1] * 1.001)
    assert polygon.contains(0, 0)


@pytest.mark.parametrize("direction", [(0, 0), (-1, 1), (float("nan"), 1), (1,), (1, 2, 3), 5])
def test_bad_directions_are_refused(direction):
    with pytest.raises(LLMGymError, match="direction"):
        stability_polygon(PUBLISHED).scale_to_boundary(direction)


@pytest.mark.parametrize("rates", [(-1, 0), (0, -0.1), (float("inf"), 0), (0, float("nan"))])
def test_bad_rates_are_refused(rates):
    with pytest.raises(LLMGymError, match="lambda_"):
        stability_polygon(PUBLISHED).contains(*rates)


def engine(batch_time: BatchTime = CODELLAMA_34B_A100, budget: int = 512, **fields: Any) -> Engine:
    return Engine(batch_time, budget, **fields)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (engine(LLAMA_3_70B, max_num_seqs=50), "Staircase"),
        (engine(), "max_num_seqs"),
        (engine(max_num_seqs=129), "one tile"),
        (engine(budget=500, max_num_seqs=50), "whole tiles"),
        (engine(max_num_seqs=50, seq_limit="resident"), "resident"),
        ("engine", "Expected an Engine"),
    ],
)
def test_corners_are_refused_where_the_formula_does_not_hold(bad, message):
    with pytest.raises(LLMGymError, match=message):
        staircase_corners(bad)


def test_resident_cap_has_no_polygon_of_token_rates():
    with pytest.raises(LLMGymError, match=r"capacity\(scenario\)"):
        stability_polygon(engine(max_num_seqs=50, seq_limit="resident"))
