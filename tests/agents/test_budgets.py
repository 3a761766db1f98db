"""A learned token budget: the baseline under it, and what it sees of urgent requests."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import views

import llmgym
from llmgym import LLMGymError
from llmgym.agents import training as trainings
from llmgym.agents.budgets import URGENT, BudgetChoice
from llmgym.agents.checkpoint import policy_of
from llmgym.agents.ppo import PPO
from llmgym.agents.training import Training
from llmgym.baselines import make
from llmgym.baselines.decisions import remembers
from llmgym.core.blocks import compiled
from llmgym.engine.view import View
from llmgym.scenario.kv_cache import KVCache

BASE = "vllm_v1_priority"
SCENARIO = llmgym.scenario(
    "multi-tenant", slots=48, token_budget=512, kv_cache=KVCache(blocks=600, block_size=16)
).at_rate(6.0)
CHOICE = BudgetChoice(base=BASE, tiles=4, guard=None, prior=0.0)


@pytest.fixture(scope="module")
def view() -> View:
    """A busy engine, seen many times."""
    return views.seen(SCENARIO, envs=2, steps=60, burst=30)


def test_a_choice_is_the_token_budget_of_the_baseline(view: View) -> None:
    for choice, budget in enumerate((128, 256, 384, 512)):
        chosen = jnp.full((1, view.batches.size), choice)
        found = CHOICE.batch(view, chosen)
        expected = make(BASE, token_budget=budget)(jax.random.key(0), view)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.preempt, expected.preempt)
        assert (found.tokens.sum(axis=0) <= budget).all()
    assert (found.tokens.sum(axis=0) > 128).any()


@pytest.mark.slow
def test_with_one_choice_it_is_the_baseline() -> None:
    choice = BudgetChoice(base=BASE, tiles=1, guard=None)
    policy = policy_of(choice, choice.init_actor(jax.random.key(0), 4), {}, "untrained")
    mine = llmgym.simulate(SCENARIO, policy, duration_s=20)
    assert mine.requests.equals(llmgym.simulate(SCENARIO, BASE, duration_s=20).requests)
    assert mine.requests.preemptions.sum() > 0


AVERAGING = "slai:average_weight=0.1,tbt_ms=200"


@pytest.mark.slow
def test_with_one_choice_it_is_the_base_and_its_memory() -> None:
    choice = BudgetChoice(base=AVERAGING, tiles=1, guard=None)
    policy = policy_of(choice, choice.init_actor(jax.random.key(0), 4), {}, "untrained")
    assert choice.remembers and remembers(policy) and not remembers(policy_of(CHOICE, [], {}, ""))
    mine = llmgym.simulate(SCENARIO, policy, duration_s=20)
    base = llmgym.simulate(SCENARIO, AVERAGING, duration_s=20)
    assert mine.requests.equals(base.requests)
    without = llmgym.simulate(SCENARIO, "slai:tbt_ms=200", duration_s=20)
    assert not base.requests.equals(without.requests)


@pytest.mark.slow
def test_the_memory_of_the_base_is_trained_with_and_saved(tmp_path: Path) -> None:
    choice = BudgetChoice(base=AVERAGING, tiles=4, guard=None)
    learner = PPO(choice, num_envs=4, steps=16, epochs=1, minibatches=2, hidden=4)
    slots = llmgym.scenario("latency", slots=48)
    training = Training((slots.at_rate(9.0), slots.at_rate(12.0)), learner, steps=1280)
    run = trainings.Run.start(training, (0,))
    assert not np.asarray(run.learners.worlds[0].memory).any()
    static = (learner, training.iterations)
    program = compiled(trainings._chunk.lower(*static, run.physics, run.learners))
    run.advance(program)
    run.save(tmp_path / "training-0.npz")
    halfway = np.array(run.learners.worlds[0].memory)
    assert halfway.shape == (1, 2, 4) and (halfway > 0).all()
    resumed = trainings.Run.start(training, (0,))
    resumed.resume(tmp_path / "training-0.npz")
    np.testing.assert_array_equal(resumed.learners.worlds[0].memory, halfway)
    run.advance(program)
    resumed.advance(program)
    for a, b in zip(*(jax.tree.leaves(r.learners) for r in (run, resumed)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_urgent_requests_are_seen_apart(view: View) -> None:
    """Class 0 is the interactive one, of priority 1."""
    sight = CHOICE.look(view)
    assert CHOICE.features[-3:] == URGENT and sight.features.shape == (
        len(CHOICE.features),
        view.batches.size,
    )
    urgent = np.asarray(view.live & (view.job_class == 0))
    left, waited = np.asarray(view.prefill), np.asarray(view.waited) * 1e-5
    waiting = urgent & (left > 0)
    tokens = np.where(waiting, left, 0).sum(axis=0)
    age = np.where(waiting, waited, 0).max(axis=0)
    decodes = (urgent & np.asarray(view.decoding)).sum(axis=0)
    assert tokens.any() and decodes.any() and (~urgent & np.asarray(view.live)).any()
    expected = [np.log1p(tokens / 128), np.log1p(np.minimum(age, 10)), decodes / 128]
    np.testing.assert_allclose(sight.features[-3:], expected, rtol=1e-5)


def test_faults_are_named() -> None:
    with pytest.raises(LLMGymError, match="Unknown policy 'vlm'"):
        BudgetChoice(base="vlm")
    with pytest.raises(LLMGymError, match="no shares for prefill"):
        BudgetChoice(shares=2)
