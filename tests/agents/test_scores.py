"""A learned order of requests: against rules that it contains, and its likelihood by enumeration."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import views

import llmgym
from llmgym import LLMGymError, agents
from llmgym.agents.checkpoint import policy_of, save_agent
from llmgym.agents.neural import log_probs
from llmgym.agents.ppo import PPO
from llmgym.agents.scores import REQUEST_FEATURES, ScoreChoice
from llmgym.agents.trained import TrainedPolicy
from llmgym.agents.training import Training, train
from llmgym.baselines import make
from llmgym.engine.view import View

ENVS, STEPS, SLOTS = 4, 60, 64
CHOICE = ScoreChoice(tiles=1, requests=SLOTS, guard=None)
"""All prompts are scored and every batch is full: an order and nothing else."""

SCENARIO = llmgym.scenario("two-class", slots=SLOTS)


@pytest.fixture(scope="module")
def seen() -> View:
    """Prompts of many lengths."""
    return views.seen(SCENARIO, ENVS, STEPS)


def untrained(choice: ScoreChoice) -> TrainedPolicy:
    """The policy that is its prior."""
    actor = choice.init_actor(jax.random.key(0), 4)
    still = {name: [*actor[name][:-1], silent(actor[name][-1])] for name in ("tiles", "score")}
    return policy_of(choice, dict(actor) | still, {}, "untrained")


def silent(layer: Any) -> dict[str, Any]:
    return {name: 0.0 * x for name, x in layer.items()}


@pytest.mark.parametrize(("order", "rule"), [(2.0, "spf"), (0.0, "sarathi")])
def test_untrained_it_is_a_known_order(seen: View, order: float, rule: str) -> None:
    settings = {"ageing": 0.0} if rule == "spf" else {}
    policy, expected = untrained(replace(CHOICE, order=order)), make(rule, **settings)
    got, wanted = (jax.jit(lambda v, p=p: p(None, v).tokens)(seen) for p in (policy, expected))
    assert np.array_equal(got, wanted)
    waiting = np.asarray(jnp.sum(seen.prefill > 0, axis=0))
    assert waiting.max() > 10 and (np.asarray(jnp.sum(got, axis=0)) == 512).any()


def test_likelihoods_of_all_choices_add_up_to_one() -> None:
    """Three prompts of 5, 3 and 4 tokens in room for 6: some orders fill it alike, and count once."""
    choice = ScoreChoice(tiles=2, requests=4, guard=None)
    mask = np.array([True, True, True, True, True, False])
    log_p = log_probs(choice.parts, jnp.array([0.3, -0.2, 1.0, 0.1, -0.7, 9.0]), mask)
    wanted, room = (5, 3, 4), 6
    chosen = set()
    for order in itertools.permutations(range(3)):
        ranks, used = [4, 4, 4, 4], 0
        for rank, prompt in enumerate(order):
            if used < room:
                ranks[prompt], used = rank, used + wanted[prompt]
        chosen |= {(tiles, *ranks) for tiles in range(2)}
    found = np.exp(choice.log_prob_of(log_p, jnp.array(sorted(chosen))))
    assert len(chosen) == 12 and found.sum() == pytest.approx(1.0, abs=1e-6)
    weight = np.exp([1.0, 0.1, -0.7])  # the second prompt, then the first
    by_hand = weight[1] / weight.sum() * weight[0] / (weight[0] + weight[2])
    tiles = np.exp(0.3) / (np.exp(0.3) + np.exp(-0.2))
    found = np.exp(choice.log_prob_of(log_p, jnp.array([0, 1, 0, 4, 4])))
    assert found == pytest.approx(tiles * by_hand, rel=1e-5)


def test_draws_are_those_that_find_room(seen: View) -> None:
    """The ranks of a choice: 0, 1, ... of as many prompts as are needed to fill the room."""
    choice = ScoreChoice(tiles=4, requests=8, guard=None)
    noise = jax.random.gumbel(jax.random.key(1), (seen.prefill.shape[1], 12))
    chosen = np.asarray(jax.jit(choice.choose)(seen, noise))
    batch = np.asarray(jax.jit(choice.batch)(seen, chosen.T).tokens)
    prefill, decodes = np.asarray(seen.prefill), np.asarray(seen.decode).sum(axis=0)
    several = 0
    for n in range(chosen.shape[0]):
        slots = np.flatnonzero(prefill[:, n])[:8]
        ranks = chosen[n, 1 : 1 + slots.size]
        drawn = np.flatnonzero(ranks < 8)
        assert sorted(ranks[drawn]) == list(range(drawn.size))
        assert (chosen[n, 1 + slots.size :] == 8).all()
        best = slots[np.argsort(-np.asarray(noise)[n, 4 : 4 + slots.size])]
        room = max(min((chosen[n, 0] + 1) * 128, 512) - decodes[n], 0)
        taken = np.minimum(np.cumsum(prefill[best, n]), room)
        needed = int((np.diff(taken, prepend=0) > 0).sum())
        assert drawn.size == needed
        assert np.array_equal(batch[best, n][:needed], np.diff(taken, prepend=0)[:needed])
        several += needed > 1
    assert several > 5


def test_scores_do_not_depend_on_the_place_in_the_line() -> None:
    choice = ScoreChoice(tiles=2, requests=5)
    actor = choice.init_actor(jax.random.key(2), 8)
    shared = len(choice.features)
    x = np.random.default_rng(0).uniform(0.1, 1, choice.inputs).astype(np.float32)
    own = x[shared:].reshape(len(REQUEST_FEATURES), 5)
    own[:, 4] = 0.0  # there is no fifth
    turned = np.array([2, 0, 3, 1, 4])
    other = np.concatenate([x[:shared], own[:, turned].ravel()])
    x = np.concatenate([x[:shared], own.ravel()])
    one, two = (np.asarray(choice.logits(actor, jnp.asarray(v))) for v in (x, other))
    np.testing.assert_allclose(one[2:][turned][:4], two[2:][:4], atol=1e-6)
    np.testing.assert_allclose(one[:2], two[:2], atol=1e-6)
    assert np.ptp(one[2:6]) > 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedPolicy, Path]:
    choice = ScoreChoice(tiles=4, requests=4, guard=4.0)
    settings = PPO(choice, num_envs=4, steps=16, epochs=1, minibatches=2, hidden=4, warm_up=0.0)
    out = tmp_path_factory.mktemp("scores")
    (policy,) = train(Training((SCENARIO,), settings, steps=320), out)
    return policy, out / "agent-0.npz"


def test_it_trains_and_its_checkpoint_runs(trained: tuple[TrainedPolicy, Path]) -> None:
    policy, path = trained
    start = policy.choice.init_actor(jax.random.key(0), 4)
    assert jax.tree.structure(start) == jax.tree.structure(policy.actor)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(policy.actor))
    assert (policy.actor["score"][-1]["bias"] != 0).any()  # the untrained has none
    loaded: Any = agents.load(path)
    assert loaded == policy and loaded.choice == policy.choice
    run = llmgym.simulate(SCENARIO, loaded, duration_s=10, num_envs=2)
    assert run.policy == "agent-0" and run.summary["completed"] > 0


def test_damaged_checkpoints_are_refused(
    trained: tuple[TrainedPolicy, Path], tmp_path: Path
) -> None:
    policy, path = trained
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:900])
    with pytest.raises(LLMGymError, match="damaged"):
        agents.load(tmp_path / "cut.npz")
    for name, actor in {
        "short": {k: v for k, v in policy.actor.items() if k != "embed"},
        "narrow": dict(policy.actor) | {"tiles": policy.actor["score"]},
    }.items():
        save_agent(tmp_path / f"{name}.npz", replace(policy, actor=actor))
        with pytest.raises(LLMGymError, match="holds no trained policy"):
            agents.load(tmp_path / f"{name}.npz")


def test_settings_are_checked() -> None:
    for settings, message in [
        ({"requests": 0}, "requests"),
        ({"order": -1.0}, "order"),
        ({"shares": 3}, "no shares"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            ScoreChoice(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_keeps_limits_of_memory_and_seats() -> None:
    """Long prompts on an engine whose KV memory is short: requests are served and none is stuck."""
    policy = untrained(ScoreChoice(tiles=16, guard=None))
    run = llmgym.simulate("multi-tenant", policy, load=0.7, duration_s=60, num_envs=2)
    sarathi = llmgym.simulate("multi-tenant", "sarathi", load=0.7, duration_s=60, num_envs=2)
    assert run.summary["completed"] > 0.8 * sarathi.summary["completed"]
