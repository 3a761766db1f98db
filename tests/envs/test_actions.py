"""Action encodings on many random queues: what masks promise, and which batches actions stand for."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from env_samples import ACTION_SETTINGS, ACTIONS, SCENARIO, random_masked, random_queues

from llmgym import JobType, Poisson, Stage, baselines
from llmgym.engine.fill import clip
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.actions import make_encoding

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


@cache
def queues(cap: str) -> View:
    return random_queues(CAPS[cap], SLOTS, CASES)


@cache
def encoding_of(action: str, cap: str) -> Any:
    return make_encoding(action, CAPS[cap], **ACTION_SETTINGS.get(action, {}))


@cache
def compiled(action: str, cap: str) -> Any:
    return jax.jit(encoding_of(action, cap).expand)


def expand(action: str, cap: str, actions: np.ndarray) -> np.ndarray:
    """Tokens (SLOTS, CASES) of the actions on the queues of a cap."""
    return np.asarray(compiled(action, cap)(jnp.asarray(actions), queues(cap)).tokens)


@cache
def mask_of(action: str, cap: str) -> np.ndarray:
    """Masks (choices, CASES) on the queues of a cap."""
    return np.asarray(jax.jit(encoding_of(action, cap).mask)(queues(cap)))


def tokens_of(policy: Any, cap: str) -> np.ndarray:
    """The same of a baseline."""
    return np.asarray(jax.jit(policy)(jax.random.key(0), queues(cap)).tokens)


PAIRS = [(action, cap) for action in ACTIONS for cap in ("uncapped", "batch cap", "resident cap")]
PAIRS += [("tiles", "budget between tiles"), ("tokens", "two classes")]


@pytest.mark.parametrize(("action", "cap"), PAIRS)
def test_actions_inside_the_mask_are_never_clipped(action: str, cap: str) -> None:
    mask, rng, space = (
        mask_of(action, cap),
        np.random.default_rng(0),
        encoding_of(action, cap).space,
    )
    actions = [random_masked(space, mask[:, i], rng) for i in range(CASES)]
    tokens = expand(action, cap, np.stack(actions, axis=-1))
    _, clipped = jax.jit(clip)(queues(cap), Batch(jnp.asarray(tokens)))
    assert not np.asarray(clipped).any()
    assert tokens.sum(axis=0).max() > 100


@pytest.mark.parametrize(("action", "cap"), [pair for pair in PAIRS if pair[0] != "scores"])
def test_masks_leave_a_choice_in_every_dimension(action: str, cap: str) -> None:
    mask, space, view = mask_of(action, cap), encoding_of(action, cap).space, queues(cap)
    sizes = [space.n] if isinstance(space, gym.spaces.Discrete) else list(space.nvec)
    assert mask.shape == (sum(sizes), CASES)
    assert (np.asarray(view.live).sum(axis=0) == 0).any()  # the empty queue is among the cases
    for part in np.split(mask, np.cumsum(sizes)[:-1]):
        assert part.any(axis=0).all() and not part.all()


@pytest.mark.parametrize("cap", [cap for action, cap in PAIRS if action == "tiles"])
def test_every_tile_inside_the_mask_is_of_use_and_no_other(cap: str) -> None:
    encoding, mask = encoding_of("tiles", cap), mask_of("tiles", cap)
    batches = [expand("tiles", cap, np.full(CASES, k)) for k in range(encoding.sizes.tiles)]
    sizes = np.array([tokens.sum(axis=0) for tokens in batches])
    assert encoding.sizes.tiles == 4
    assert mask[0].all()
    np.testing.assert_array_equal(mask[1:], sizes[1:] > sizes[:-1])


@pytest.mark.parametrize("cap", [cap for action, cap in PAIRS if action == "tiles"])
def test_all_tiles_are_the_full_batch(cap: str) -> None:
    full = tokens_of(baselines.make("always_full", tile=64), cap)
    np.testing.assert_array_equal(expand("tiles", cap, np.full(CASES, 3)), full)


def test_split_gives_prefill_its_share() -> None:
    view = queues("uncapped")
    decoding, prefill = np.asarray(view.decoding), np.asarray(view.prefill)
    for tiles in range(4):
        for share in range(5):
            tokens = expand("split", "uncapped", np.full((2, CASES), [[tiles], [share]]))
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
    most = np.full((2, CASES), encoding_of("tokens", "uncapped").levels - 1)
    sarathi = tokens_of(baselines.make("sarathi"), "uncapped")
    np.testing.assert_array_equal(expand("tokens", "uncapped", most), sarathi)


def test_token_levels_are_tokens_of_a_class_and_phase() -> None:
    encoding, view = encoding_of("tokens", "two classes"), queues("two classes")
    assert list(encoding.space.nvec) == [5, 5, 5, 5]  # 0, 64, ..., 256; prefill twice, decode twice
    levels = np.random.default_rng(1).integers(0, 5, (4, CASES))
    tokens = expand("tokens", "two classes", levels)
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
    view = queues("uncapped")
    mask = mask_of("tokens", "uncapped").reshape(2, 5, CASES)
    for phase, demand in enumerate((view.prefill, view.decode)):
        needed = -(-np.asarray(demand).sum(axis=0) // 64)  # levels that still add tokens
        expected = np.arange(5)[:, None] <= np.minimum(needed, 4)
        np.testing.assert_array_equal(mask[phase], expected)


@pytest.mark.parametrize("cap", [cap for action, cap in PAIRS if action == "scores"])
def test_equal_scores_are_first_come_first_served(cap: str) -> None:
    arrival = tokens_of(baselines.make("k_fcfs", order="arrival"), cap)
    tokens = expand("scores", cap, np.zeros((6, CASES), np.float32))
    np.testing.assert_array_equal(tokens, arrival)


@pytest.mark.parametrize("cap", [cap for action, cap in PAIRS if action == "scores"])
def test_scores_are_served_from_the_highest(cap: str) -> None:
    scenario, view, listed = CAPS[cap], queues(cap), 6
    scores = np.random.default_rng(2).uniform(-1, 1, (listed, CASES)).astype(np.float32)
    tokens = expand("scores", cap, scores)
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
    count = np.asarray(queues("uncapped").live).sum(axis=0)
    np.testing.assert_array_equal(mask_of("scores", "uncapped"), np.arange(6)[:, None] < count)
