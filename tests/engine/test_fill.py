"""Fill rules and clipping against plain loops, for arrays of every kind."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from request_classes import one_class

from llmgym.core.arrays import GROUP, prefix_sum, rows, select
from llmgym.engine.fill import choose, clip, fill, longest_unserved, oldest_first, own_budget
from llmgym.engine.view import Batch, Memory, View
from llmgym.scenario.batch_time import CODELLAMA_34B_A100

SLOTS, ENVS = 11, 2
SHAPE = (SLOTS, ENVS)
EXAMPLES = settings(max_examples=60, deadline=None)
INT32 = np.iinfo(np.int32)


def make_view(
    prefill: np.ndarray,
    decoding: np.ndarray,
    started: np.ndarray,
    token_budget: np.ndarray,
    max_num_seqs: np.ndarray | None = None,
    resident: bool = False,
    unserved: np.ndarray | None = None,
) -> View:
    """A view with what the fill rules look at; the rest is zero."""
    zero = jnp.zeros(SHAPE, jnp.int32)
    live = (prefill > 0) | decoding
    return View(
        prefill=jnp.asarray(prefill, jnp.int32),
        decoding=jnp.asarray(decoding),
        started=jnp.asarray(started & live),
        prompt=zero,
        generated=zero,
        waited=zero,
        unserved=zero if unserved is None else jnp.asarray(unserved, jnp.int32),
        job_class=zero,
        decode_left=None,
        token_budget=jnp.asarray(token_budget, jnp.int32),
        max_num_seqs=None if max_num_seqs is None else jnp.asarray(max_num_seqs, jnp.int32),
        batch_time=CODELLAMA_34B_A100,
        tick_ms=jnp.full((ENVS,), 0.01),
        batches=jnp.zeros(ENVS, jnp.int32),
        classes=one_class((ENVS,)),
        free=jnp.ones((ENVS,), bool),
        job_age=zero,
        resident_limit=resident,
    )


@dataclass(frozen=True)
class Case:
    """Numbers of a view; every environment has its own."""

    prefill: np.ndarray
    decoding: np.ndarray
    started: np.ndarray
    token_budget: np.ndarray
    max_num_seqs: np.ndarray | None
    resident: bool

    def view(self) -> View:
        """As arrays."""
        return make_view(
            self.prefill,
            self.decoding,
            self.started,
            self.token_budget,
            self.max_num_seqs,
            self.resident,
        )


def table(low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """A table of int32 numbers."""
    return hnp.arrays(np.int32, SHAPE, elements=st.integers(low, high))


def per_env(low: int, high: int) -> st.SearchStrategy[np.ndarray]:
    """A number for each environment."""
    return hnp.arrays(np.int32, (ENVS,), elements=st.integers(low, high))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Views in which some slots wait, some decode and some are empty."""
    prefill = draw(table(-3, 9)).clip(0)
    decoding = draw(hnp.arrays(bool, SHAPE)) & (prefill == 0)
    started = draw(hnp.arrays(bool, SHAPE)) & ((prefill > 0) | decoding)
    cap = draw(st.sampled_from([None, "batch", "resident"]))
    seats = None
    if cap is not None:  # a state never holds more started requests than a resident limit
        seats = np.maximum(draw(per_env(1, SLOTS)), started.sum(axis=0))
    return Case(prefill, decoding, started, draw(per_env(1, 40)), seats, cap == "resident")


def plain_fill(
    case: Case, env: int, batch: np.ndarray, demand: np.ndarray, budget: int, whole: bool
) -> np.ndarray:
    """Slot by slot: tokens while the budget lasts, to requests that have or find a seat."""
    filled = batch.copy()
    for slot in range(SLOTS):
        room = max(budget - int(filled.sum()), 0)
        held = (filled > 0) | (case.started[:, env] if case.resident else False)
        seat = case.max_num_seqs is None or held[slot] or held.sum() < case.max_num_seqs[env]
        wanted = int(demand[slot])
        if wanted == 0 or not seat:
            continue
        if whole and wanted > room:
            break
        filled[slot] += min(wanted, room)
    return filled


@jax.jit
def _fill_parts(view: View, batch: Batch, demand: jax.Array, budget: jax.Array) -> Batch:
    return fill(view, batch, demand, budget)


_oldest_first = jax.jit(oldest_first)


@jax.jit
def _fill_whole(view: View, batch: Batch, demand: jax.Array, budget: jax.Array) -> Batch:
    return fill(view, batch, demand, budget, whole=True)


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "whole"])
@given(data=st.data())
@EXAMPLES
def test_fill_equals_a_loop_over_slots(whole: bool, data: st.DataObject) -> None:
    case = data.draw(cases())
    demand = data.draw(table(0, 12))
    before = np.where(demand % 2 == 0, data.draw(table(0, 3)), 0)
    if case.resident:  # what is in the batch already has a seat
        before *= case.started
    elif case.max_num_seqs is not None:
        before[np.cumsum(before > 0, axis=0) > case.max_num_seqs] = 0
    own = data.draw(per_env(1, 50))
    filler = _fill_whole if whole else _fill_parts
    filled = filler(case.view(), Batch(jnp.asarray(before)), jnp.asarray(demand), jnp.asarray(own))
    for env in range(ENVS):
        budget = min(int(case.token_budget[env]), int(own[env]))
        expected = plain_fill(case, env, before[:, env], demand[:, env], budget, whole)
        np.testing.assert_array_equal(filled.tokens[:, env], expected)


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "whole"])
def test_fill_of_huge_demands_stays_inside_32_bits(whole: bool) -> None:
    none = np.zeros(SHAPE, bool)
    view = make_view(np.full(SHAPE, 2**20), none, none, np.array([2**20, 7]))
    filled = fill(view, view.empty(), view.prefill, whole=whole)
    expected = np.zeros(SHAPE, int)
    expected[0] = (2**20, 0 if whole else 7)
    np.testing.assert_array_equal(filled.tokens, expected)


wild = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([INT32.min, INT32.min + 1, INT32.max, INT32.max - 1, 2**20, -(2**20), 2**30]),
)


@given(case=cases(), asked=hnp.arrays(np.int32, SHAPE, elements=wild))
@EXAMPLES
def test_clip_equals_a_loop_over_slots(case: Case, asked: np.ndarray) -> None:
    batch, clipped = jax.jit(clip)(case.view(), Batch(jnp.asarray(asked)))
    possible = np.where(case.decoding, 1, case.prefill)
    for env in range(ENVS):
        wanted = np.clip(asked[:, env], 0, possible[:, env])
        empty = np.zeros(SLOTS, np.int32)
        expected = plain_fill(case, env, empty, wanted, int(case.token_budget[env]), whole=False)
        np.testing.assert_array_equal(batch.tokens[:, env], expected)
        assert bool(clipped[env]) == bool((expected != asked[:, env]).any())


@given(case=cases(), asked=hnp.arrays(np.int32, SHAPE, elements=wild))
@EXAMPLES
def test_a_clipped_batch_is_feasible_and_clipping_it_again_changes_nothing(
    case: Case, asked: np.ndarray
) -> None:
    view = case.view()
    batch, _ = jax.jit(clip)(view, Batch(jnp.asarray(asked)))
    tokens = np.asarray(batch.tokens)
    assert (tokens >= 0).all()
    assert (tokens <= np.where(case.decoding, 1, case.prefill)).all()  # (6a), (6c)
    assert (tokens.sum(axis=0) <= case.token_budget).all()  # (6d)
    if case.max_num_seqs is not None:
        seated = (tokens > 0) | (case.started if case.resident else False)
        assert (seated.sum(axis=0) <= case.max_num_seqs).all()
    again, clipped = jax.jit(clip)(view, batch)
    np.testing.assert_array_equal(again.tokens, tokens)
    assert not clipped.any()


@given(
    candidates=hnp.arrays(bool, SHAPE),
    ages=hnp.arrays(
        np.int32, SHAPE, elements=st.one_of(st.integers(0, 3), st.integers(0, INT32.max))
    ),
    count=per_env(0, SLOTS + 2),
)
@EXAMPLES
def test_longest_unserved_equals_a_stable_sort(
    candidates: np.ndarray, ages: np.ndarray, count: np.ndarray
) -> None:
    none = np.zeros(SHAPE, bool)
    view = make_view(none, none, none, np.ones(ENVS), unserved=ages)
    chosen = jax.jit(longest_unserved)(view, jnp.asarray(candidates), jnp.asarray(count))
    for env in range(ENVS):
        slots = [s for s in range(SLOTS) if candidates[s, env]]
        slots.sort(key=lambda s: -int(ages[s, env]))  # stable: ties in slot order
        expected = set(slots[: count[env]])
        assert set(np.flatnonzero(chosen[:, env]).tolist()) == expected


@pytest.mark.parametrize("limit", ["budget", "seats", "resident", "memory"])
def test_oldest_first_is_fill_where_slots_stand_by_age(limit: str) -> None:
    rng = np.random.default_rng(0)

    def by_age(table: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, order, axis=0)

    def view(case: Case, cached: np.ndarray) -> View:
        memory = Memory(jnp.asarray(cached), jnp.zeros_like(cached), jnp.asarray(blocks), 4)
        return replace(case.view(), memory=memory if limit == "memory" else None)

    for _ in range(60):
        demand, age = rng.integers(0, 12, SHAPE), rng.integers(0, 4, SHAPE)
        order = np.argsort(-age, axis=0, kind="stable")  # ties in slot order
        started = rng.random(SHAPE) < 0.3
        before, cached = started * rng.integers(0, 3, SHAPE), started * rng.integers(1, 9, SHAPE)
        blocks = (-(-(cached + before) // 4)).sum(axis=0) + rng.integers(0, 12, ENVS)
        seats = started.sum(axis=0) + rng.integers(0, 6, ENVS)
        seats = None if limit in ("budget", "memory") else seats.clip(1)
        budget = rng.integers(1, 80, ENVS)
        case = Case(demand, started & False, started, budget, seats, limit == "resident")
        arrays = (jnp.asarray(x) for x in (demand, age, budget))
        found = _oldest_first(view(case, cached), Batch(jnp.asarray(before)), *arrays)
        ordered = replace(case, prefill=by_age(demand), started=by_age(started))
        batch, wanted = Batch(jnp.asarray(by_age(before))), jnp.asarray(by_age(demand))
        expected = _fill_parts(view(ordered, by_age(cached)), batch, wanted, budget)
        np.testing.assert_array_equal(by_age(np.asarray(found.tokens)), expected.tokens)


def test_choose_takes_whole_batches() -> None:
    yes, no = Batch(jnp.full(SHAPE, 1)), Batch(jnp.full(SHAPE, 2))
    chosen = choose(jnp.array([True, False]), yes, no)
    np.testing.assert_array_equal(chosen.tokens, np.tile([1, 2], (SLOTS, 1)))


def test_choose_keeps_who_is_preempted() -> None:
    yes = Batch(jnp.array([[3, 3]]), jnp.array([[True, True]]))
    no = Batch(jnp.array([[7, 7]]))
    for first, second, expected in ((yes, no, [True, False]), (no, yes, [False, True])):
        chosen = choose(jnp.array([True, False]), first, second)
        assert chosen.preempt is not None and chosen.preempt.tolist() == [expected]


def test_own_budget_is_the_smaller_one() -> None:
    none = np.zeros(SHAPE, bool)
    view = make_view(none, none, none, np.array([5, 50]))
    np.testing.assert_array_equal(own_budget(view, None), [5, 50])
    np.testing.assert_array_equal(own_budget(view, 20), [5, 20])


@pytest.mark.parametrize("count", [1, 2, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP, 100])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_prefix_sum_equals_numpy(count: int, batch: tuple[int, ...]) -> None:
    x = np.random.default_rng(count).integers(-1000, 1000, (count, *batch)).astype(np.int32)
    np.testing.assert_array_equal(prefix_sum(jnp.asarray(x)), np.cumsum(x, axis=0))


def test_prefix_sum_counts_masks() -> None:
    mask = np.random.default_rng(0).integers(0, 2, (37, 2)).astype(bool)
    np.testing.assert_array_equal(prefix_sum(jnp.asarray(mask)), np.cumsum(mask, axis=0))


def test_rows_and_select() -> None:
    x = jnp.zeros((4, 2, 3))
    assert rows(x).shape == (4, 1, 1)
    np.testing.assert_array_equal(rows(x).ravel(), range(4))
    options = jnp.arange(12).reshape(4, 3)
    np.testing.assert_array_equal(select(options, jnp.array([3, 0, 1])), [9, 1, 5])
