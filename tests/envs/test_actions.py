"""Action encodings on many random queues: what masks promise, and which batches actions stand for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import ACTION_SETTINGS, ACTIONS, SCENARIO, random_masked

from llmgym import JobType, Poisson, Stage, baselines
from llmgym.composition import Batch, View, clip
from llmgym.envs.actions import make_encoding
from llmgym.scenario import Scenario

SLOTS, CASES = 24, 400

TWO_CLASSES = SCENARIO.override(
    workload=tuple(JobType(Poisson(5.0), (Stage(50, 20),), name=name) for name in ("chat", "bulk"))
)
CAPS = {
    "uncapped": SCENARIO,
    "budget between tiles": SCENARIO.override(token_budget=200),
    "batch cap": SCENARIO.override(max_num_seqs=5),
    "resident cap": SCENARIO.override(max_num_seqs=5, seq_limit="resident"),
    "two classes": TWO_CLASSES,
}


def queues(scenario: Scenario, seed: int = 0) -> View:
    """Random queues of 0 to SLOTS requests with holes, CASES of them along the last axis."""
    rng, shape = np.random.default_rng(seed), (SLOTS, CASES)
    live = rng.random(shape) < rng.random(CASES)
    engine = scenario.engine
    prompt = rng.integers(1, 150, shape)
    left = rng.integers(0, prompt + 1)
    generated = np.where(left == 0, rng.integers(0, 20, shape), 0)
    started = live & ((left < prompt) | (generated > 0))
    if engine.seq_limit == "resident" and engine.max_num_seqs is not None:
        # Only as many requests as there are seats can have started.
        fresh = np.cumsum(started, axis=0) > engine.max_num_seqs
        left, generated = np.where(fresh, prompt, left), np.where(fresh, 0, generated)
        started &= ~fresh
    waited = np.sort(rng.integers(0, 10**6, shape), axis=0)[::-1]

    def spread(value: float, dtype: Any = jnp.int32) -> jax.Array:
        return jnp.full(CASES, value, dtype)

    seqs = engine.max_num_seqs
    return View(
        prefill=jnp.asarray(np.where(live, left, 0), jnp.int32),
        decoding=jnp.asarray(live & (left == 0)),
        started=jnp.asarray(started),
        prompt=jnp.asarray(np.where(live, prompt, 0), jnp.int32),
        generated=jnp.asarray(np.where(live, generated, 0), jnp.int32),
        waited=jnp.asarray(np.where(live, waited, 0), jnp.int32),
        unserved=jnp.asarray(np.where(live, rng.integers(0, 50, shape), 0), jnp.int32),
        job_class=jnp.asarray(rng.integers(0, len(scenario.class_names), shape), jnp.int32),
        decode_left=None,
        token_budget=spread(engine.token_budget),
        max_num_seqs=None if seqs is None else spread(seqs),
        batch_time=jax.tree.map(lambda x: spread(x, jnp.float32), engine.batch_time),
        tick_ms=spread(scenario.tick_ms, jnp.float32),
        resident_limit=engine.seq_limit == "resident",
    )


def encoding_of(action: str, scenario: Scenario) -> Any:
    return make_encoding(action, scenario, **ACTION_SETTINGS.get(action, {}))


def expand(encoding: Any, view: View, actions: np.ndarray) -> np.ndarray:
    return np.asarray(jax.jit(encoding.expand)(jnp.asarray(actions), view).tokens)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("action", ACTIONS)
def test_actions_inside_the_mask_are_never_clipped(action: str, cap: str) -> None:
    encoding, view = encoding_of(action, CAPS[cap]), queues(CAPS[cap])
    mask, rng = np.asarray(encoding.mask(view)), np.random.default_rng(0)
    actions = [random_masked(encoding.space, mask[:, i], rng) for i in range(CASES)]
    tokens = expand(encoding, view, np.stack(actions, axis=-1))
    _, clipped = jax.jit(clip)(view, Batch(jnp.asarray(tokens)))
    assert not np.asarray(clipped).any()
    assert tokens.sum(axis=0).max() > 100


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("action", ["tiles", "split", "tokens"])
def test_masks_leave_a_choice_in_every_dimension(action: str, cap: str) -> None:
    encoding, view = encoding_of(action, CAPS[cap]), queues(CAPS[cap])
    mask, space = np.asarray(encoding.mask(view)), encoding.space
    sizes = [space.n] if isinstance(space, gym.spaces.Discrete) else list(space.nvec)
    assert mask.shape == (sum(sizes), CASES)
    assert (np.asarray(view.live).sum(axis=0) == 0).any()  # the empty queue is among the cases
    for part in np.split(mask, np.cumsum(sizes)[:-1]):
        assert part.any(axis=0).all() and not part.all()


@pytest.mark.parametrize("cap", CAPS)
def test_every_tile_inside_the_mask_is_of_use_and_no_other(cap: str) -> None:
    encoding, view = encoding_of("tiles", CAPS[cap]), queues(CAPS[cap])
    mask = np.asarray(encoding.mask(view))
    batches = [expand(encoding, view, np.full(CASES, k)) for k in range(encoding.most)]
    sizes = np.array([tokens.sum(axis=0) for tokens in batches])
    assert encoding.most == 4
    assert mask[0].all()
    np.testing.assert_array_equal(mask[1:], sizes[1:] > sizes[:-1])


@pytest.mark.parametrize("cap", CAPS)
def test_all_tiles_are_the_full_batch(cap: str) -> None:
    scenario = CAPS[cap]
    encoding, view = encoding_of("tiles", scenario), queues(scenario)
    full = baselines.make("always_full", tile=64)(jax.random.key(0), view).tokens
    np.testing.assert_array_equal(expand(encoding, view, np.full(CASES, 3)), full)


def test_split_gives_prefill_its_share() -> None:
    encoding, view = encoding_of("split", SCENARIO), queues(SCENARIO)
    decoding, prefill = np.asarray(view.decoding), np.asarray(view.prefill)
    for tiles in range(4):
        for share in range(5):
            tokens = expand(encoding, view, np.full((2, CASES), [[tiles], [share]]))
            room = (tiles + 1) * 64
            prefills = np.where(decoding, 0, tokens).sum(axis=0)
            decodes = np.where(decoding, tokens, 0).sum(axis=0)
            np.testing.assert_array_equal(
                prefills, np.minimum(prefill.sum(axis=0), room * share // 4)
            )
            np.testing.assert_array_equal(
                decodes, np.minimum(decoding.sum(axis=0), room - prefills)
            )


def test_most_tokens_of_each_phase_are_sarathi() -> None:
    encoding, view = encoding_of("tokens", SCENARIO), queues(SCENARIO)
    most = np.full((2, CASES), encoding.levels - 1)
    sarathi = baselines.make("sarathi")(jax.random.key(0), view).tokens
    np.testing.assert_array_equal(expand(encoding, view, most), sarathi)


def test_token_levels_are_tokens_of_a_class_and_phase() -> None:
    encoding, view = encoding_of("tokens", TWO_CLASSES), queues(TWO_CLASSES)
    assert list(encoding.space.nvec) == [5, 5, 5, 5]  # 0, 64, ..., 256; prefill twice, decode twice
    levels = np.random.default_rng(1).integers(0, 5, (4, CASES))
    tokens = expand(encoding, view, levels)
    room = np.full(CASES, 256)
    kind = np.where(np.asarray(view.decoding), 2, 0) + np.asarray(view.job_class)
    for dimension in (2, 3, 0, 1):  # decodes first, classes in their order
        mine = kind == dimension
        demand = np.where(mine, np.asarray(view.demand), 0)
        given = np.minimum(np.minimum(demand.sum(axis=0), 64 * levels[dimension]), room)
        room = room - given
        # First come, first served: each takes what those before it left.
        before = np.cumsum(demand, axis=0) - demand
        expected = np.clip(given - before, 0, demand)
        np.testing.assert_array_equal(np.where(mine, tokens, 0), expected)


def test_token_masks_end_where_the_tokens_do() -> None:
    encoding, view = encoding_of("tokens", SCENARIO), queues(SCENARIO)
    mask = np.asarray(encoding.mask(view)).reshape(2, 5, CASES)
    for phase, demand in enumerate((view.prefill, view.decode)):
        needed = -(-np.asarray(demand).sum(axis=0) // 64)  # levels that still add tokens
        expected = np.arange(5)[:, None] <= np.minimum(needed, 4)
        np.testing.assert_array_equal(mask[phase], expected)


def test_equal_scores_are_first_come_first_served() -> None:
    for scenario in CAPS.values():
        encoding, view = encoding_of("scores", scenario), queues(scenario)
        arrival = baselines.make("k_fcfs", order="arrival")(jax.random.key(0), view).tokens
        tokens = expand(encoding, view, np.zeros((6, CASES), np.float32))
        np.testing.assert_array_equal(tokens, arrival)


@pytest.mark.parametrize("cap", ["uncapped", "batch cap", "resident cap"])
def test_scores_are_served_from_the_highest(cap: str) -> None:
    scenario, listed = CAPS[cap], 6
    encoding, view = encoding_of("scores", scenario), queues(scenario)
    scores = np.random.default_rng(2).uniform(-1, 1, (listed, CASES)).astype(np.float32)
    tokens = expand(encoding, view, scores)
    demand, started = np.asarray(view.demand), np.asarray(view.started)
    seats = scenario.engine.max_num_seqs or SLOTS
    resident = scenario.engine.seq_limit == "resident" and scenario.engine.max_num_seqs is not None
    for case in range(CASES):
        live = np.flatnonzero(np.asarray(view.live)[:, case])
        order = [*live[:listed][np.argsort(-scores[: live.size, case])], *live[listed:]]
        room, free = 256, seats - (started[:, case].sum() if resident else 0)
        expected = np.zeros(SLOTS, int)
        for slot in order:
            newcomer = not (resident and started[slot, case])
            if newcomer and free <= 0:
                continue
            free -= newcomer
            expected[slot] = min(demand[slot, case], room)
            room -= expected[slot]
        np.testing.assert_array_equal(tokens[:, case], expected)


def test_the_mask_of_scores_says_which_requests_exist() -> None:
    encoding, view = encoding_of("scores", SCENARIO), queues(SCENARIO)
    count = np.asarray(view.live).sum(axis=0)
    np.testing.assert_array_equal(encoding.mask(view), np.arange(6)[:, None] < count)
