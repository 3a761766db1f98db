"""What learned tile policies see and may do: against the baselines and counted by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import views

import llmgym
from llmgym import LLMGymError
from llmgym.agents.checkpoint import policy_of
from llmgym.agents.neural import init_mlp
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.trained import TrainedPolicy
from llmgym.baselines import make
from llmgym.engine.view import View

ENVS, STEPS = 8, 300

look = jax.jit(TileChoice.look, static_argnums=0)
batch_of = jax.jit(TileChoice.batch, static_argnums=0)


def untrained(choice: TileChoice) -> TrainedPolicy:
    """The policy that is its prior."""
    sizes = (len(choice.features), 4, sum(choice.parts))
    return policy_of(choice, init_mlp(jax.random.key(0), sizes, 0.0), {}, "untrained")


@pytest.fixture(scope="module")
def seen() -> View:
    return views.seen(llmgym.scenario("latency", slots=128).at_rate(13.0), ENVS, STEPS)


@pytest.fixture(scope="module")
def seen_capped() -> View:
    scenario = llmgym.scenario("capped", slots=128, max_num_seqs=20).at_rate(13.0)
    return views.seen(scenario, ENVS, STEPS)


def test_untrained_policy_is_the_greedy_rate(seen: View) -> None:
    policy = untrained(TileChoice(guard=None))
    expected = make("greedy_rate")(None, seen)  # type: ignore[arg-type]
    got = jax.jit(lambda v: policy(None, v))(seen)  # type: ignore[arg-type]
    sizes = np.unique(np.asarray(got.size))
    assert np.array_equal(got.tokens, expected.tokens)
    assert sizes.size > 20 and sizes.max() == 512


def test_guard_takes_the_full_batch(seen: View) -> None:
    demand = np.asarray(jnp.sum(seen.demand, axis=0))
    over = demand >= 512
    policy = untrained(TileChoice(guard=1.0))
    got = np.asarray(jax.jit(lambda v: policy(None, v).size)(seen))  # type: ignore[arg-type]
    assert over.any() and (got[over] == 512).all()
    assert (got[~over] < 512).all()


def test_mask_leaves_out_tiles_that_would_hold_nothing(seen: View) -> None:
    mask = np.asarray(look(TileChoice(guard=None), seen).mask)
    demand = np.asarray(jnp.sum(seen.demand, axis=0))
    tiles = np.clip(-(-demand // 128), 1, 4)
    assert np.array_equal(mask.sum(axis=0), tiles)
    assert np.array_equal(mask, np.arange(4)[:, None] < tiles)


def test_features_by_hand(seen: View) -> None:
    choice = TileChoice()
    features = dict(zip(choice.features, np.asarray(look(choice, seen).features), strict=True))
    prefill, decoding = np.asarray(seen.prefill), np.asarray(seen.decoding)
    waited = np.asarray(seen.waited) * 1e-5
    prompts, decodes = prefill.sum(axis=0), decoding.sum(axis=0)
    expected = {
        "prompt_tokens": np.log1p(prompts / 128),
        "prompts": np.log1p((prefill > 0).sum(axis=0)),
        "decodes": decodes / 128,
        "decode_sawtooth": decodes / 128 % 1,
        "work_sawtooth": (decodes + prompts) / 128 % 1,
        "oldest_prompt": np.log1p(np.where(prefill > 0, waited, 0).max(axis=0)),
        "arriving_load": (((prefill > 0) | decoding) & (waited < 5)).sum(axis=0)
        / 5 * 241 / (512 / 153.16 * 1000),
        "rate_4": np.minimum(decodes + prompts, 512)
        / (11.28 + 35.47 * np.clip(np.ceil((decodes + prompts) / 128), 1, 4)) / (512 / 153.16),
        "free_seats": 1.0,
    }  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(
            features[name], np.broadcast_to(value, prompts.shape), rtol=2e-5, atol=1e-5
        )


def test_under_a_cap_only_what_has_a_seat_counts(seen_capped: View) -> None:
    choice = TileChoice(guard=None)
    mask = np.asarray(look(choice, seen_capped).mask)
    full = np.asarray(batch_of(choice, seen_capped, jnp.full((1, mask.shape[1]), 3)).size)
    assert np.array_equal(mask.sum(axis=0), np.clip(-(-full // 128), 1, 4))
    demand = np.asarray(jnp.sum(seen_capped.demand, axis=0))
    assert (full < np.minimum(demand, 512)).any()


def test_guard_under_a_cap_is_the_index(seen_capped: View) -> None:
    """argmax of (d_k + w * p_k) / t_k over batches that are really formed."""
    count, decoding = seen_capped.token_budget.shape[0], np.asarray(seen_capped.decoding)
    for weight in (0.8, 50.0):
        choice = TileChoice(guard=1e-6, guard_weight=weight)
        mask = np.asarray(look(choice, seen_capped).mask)
        scores = []
        for k in range(4):
            batch = batch_of(choice, seen_capped, jnp.full((1, count), k))
            tokens = np.asarray(batch.tokens)
            decoded, size = np.where(decoding, tokens, 0).sum(axis=0), tokens.sum(axis=0)
            ms = 11.28 + 35.47 * np.clip(np.ceil(size / 128), 1, None)
            scores.append((decoded + weight * (size - decoded)) / ms)
        assert (mask.sum(axis=0) == 1).all()
        chosen = np.take_along_axis(np.array(scores), mask.argmax(axis=0)[None], axis=0)[0]
        np.testing.assert_allclose(chosen, np.max(scores, axis=0), rtol=1e-5)
        assert mask.any(axis=1).sum() > 1 or weight != 0.8


def test_shares_of_prefill(seen: View) -> None:
    choice = TileChoice(shares=4, guard=None)
    count = seen.token_budget.shape[0]
    decodes = np.asarray(jnp.sum(seen.decode, axis=0))
    prompts = np.asarray(jnp.sum(seen.prefill, axis=0))
    for share in range(4):
        picked = jnp.stack([jnp.full(count, 3), jnp.full(count, share)])
        tokens = np.asarray(batch_of(choice, seen, picked).tokens)
        prefilled = np.where(np.asarray(seen.prefill) > 0, tokens, 0).sum(axis=0)
        room = np.maximum(512 - decodes, 0)
        assert np.array_equal(prefilled, np.minimum(-(-room * (share + 1) // 4), prompts))


def test_bad_settings_are_refused() -> None:
    for settings, message in [
        ({"tiles": 0}, "tiles must be at least 1"),
        ({"shares": 1.5}, "shares must be a whole number"),
        ({"guard": 0}, "guard must be greater than 0"),
        ({"prior": -1}, "prior must be at least 0"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            TileChoice(**settings)
