"""The choice of a network policy: what it sees and forms, what it does untrained, how it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import LLMGymError, agents, baselines
from llmgym.agents import checkpoint
from llmgym.agents import training as trainings
from llmgym.agents.network_choice import NetworkChoice, jobs_arrived, left_in_network
from llmgym.agents.neural import init_mlp
from llmgym.agents.ppo import PPO
from llmgym.agents.training import Training
from llmgym.agents.worlds import network_size
from llmgym.core.blocks import compiled
from llmgym.engine import simulator
from llmgym.evaluation import rollout
from llmgym.theory.capacity import at_load

SCENARIO = at_load(llmgym.scenario("rybko-stolyar", slots=320), 0.9)
CHOICE = NetworkChoice(decode_weight=0.05)
ENVS = 4


@pytest.fixture(scope="module")
def history() -> list[dict[str, Any]]:
    """Some epochs under the choices of a random agent; what was seen and formed in each."""
    physics = simulator.lower(SCENARIO)
    max_pressure = baselines.make("max_pressure", decode_weight=CHOICE.decode_weight)

    @jax.jit
    def epoch(state: Any, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        view = simulator.view(physics, state)
        sight = CHOICE.look(view)
        noise = jnp.where(sight.mask, jax.random.gumbel(key, sight.mask.shape), -jnp.inf)
        chosen = jnp.argmax(noise, axis=0)[None].astype(jnp.int32)
        batch = CHOICE.batch(view, chosen)
        after, info = simulator.step(physics, state, batch)
        told = {
            "view": view,
            "sight": sight,
            "chosen": chosen[0],
            "tokens": batch.tokens,
            "pressure": max_pressure.pressures(view),
            "clipped": info.clipped,
            "arrived": info.arrived,
            "counted": sum(jobs_arrived(physics, state, after)),
            "left": jnp.stack(left_in_network(physics, state)),
        }
        return after, told

    state, found = rollout.start(physics, rollout.keys(0, ENVS)), []
    for n in range(240):
        state, told = epoch(state, jax.random.key(n))
        found.append(jax.device_get(told))
    return found


def waiting(told: dict[str, Any]) -> np.ndarray:
    """Requests of each phase of an engine's own classes (4, engines, envs), from the slots."""
    view = told["view"]
    own = [[0, 3], [2, 1]]  # of each engine by hop: a's first and b's second call, and so on
    found = np.zeros((4, 2, ENVS), int)
    for engine, classes in enumerate(own):
        for j, k in enumerate(classes):
            mine = view.job_class[:, engine] == k
            found[j, engine] = (mine & (view.prefill[:, engine] > 0)).sum(axis=0)
            found[2 + j, engine] = (mine & view.decoding[:, engine]).sum(axis=0)
    return found


def test_masks_hold_what_is_there_at_the_engines_that_are_free(history: list[Any]) -> None:
    seen = 0
    for told in history:
        mask, free, there = told["sight"].mask, told["view"].free, waiting(told) > 0
        assert mask.shape == (4, 2, ENVS) and mask.any(axis=0).all()
        some = free & there.any(axis=0)
        assert (mask == there)[:, some].all()
        assert (mask[:, ~some].sum(axis=0) == 1).all() and mask[0, ~some].all()
        seen += (mask.sum(axis=0) > 1).sum()
    assert seen > 100


def test_features_are_finite_and_count_the_slots(history: list[Any]) -> None:
    names = CHOICE.features
    for told in history:
        sight = told["sight"]
        assert sight.features.shape == (len(names), 2, ENVS) and sight.features.dtype == np.float32
        assert np.isfinite(sight.features).all() and np.isfinite(sight.prior).all()
        rows = [names.index(f"{what}_{j}") for what in ("prompts", "decodes") for j in range(2)]
        np.testing.assert_allclose(sight.features[rows], np.log1p(waiting(told)), rtol=1e-5)
    assert np.isfinite([told["left"] for told in history]).all()


def test_untrained_the_phase_with_the_most_pressure_goes_first(history: list[Any]) -> None:
    own = np.array([[0, 3], [2, 1]])
    compared = 0
    for told in history:
        there = waiting(told) > 0
        for engine in range(2):
            phases = np.concatenate([own[engine], 4 + own[engine]])
            pressure = np.where(there[:, engine], told["pressure"][phases, engine], -np.inf)
            some = told["view"].free[engine] & there[:, engine].any(axis=0)
            prior = np.where(told["sight"].mask[:, engine], told["sight"].prior[:, engine], -np.inf)
            best = np.take_along_axis(pressure, prior.argmax(axis=0)[None], axis=0)[0]
            np.testing.assert_allclose(best[some], pressure.max(axis=0)[some], rtol=1e-5)
            compared += some.sum()
    assert compared > 100


def test_batches_fill_the_budget_and_begin_with_the_choice(history: list[Any]) -> None:
    own, full = np.array([[0, 3], [2, 1]]), 0
    for told in history:
        view, tokens = told["view"], told["tokens"]
        assert not told["clipped"].any()
        demand = np.where(view.decoding, 1, view.prefill)
        total = np.minimum(demand.sum(axis=0), view.token_budget)
        some = view.free
        assert (tokens.sum(axis=0) == total)[some].all()  # nobody waits while there is room
        for engine, env in zip(*np.nonzero(some), strict=True):
            chosen = told["chosen"][engine, env]
            mine = view.job_class[:, engine, env] == own[engine][chosen % 2]
            decoding = view.decoding[:, engine, env]
            first = mine & (decoding if chosen >= 2 else ~decoding)
            wanted = demand[first, engine, env].sum()
            given = tokens[first, engine, env].sum()
            assert given == min(wanted, 768)
            full += tokens[:, engine, env].sum() == 768
    assert full > 20


def test_arrivals_are_counted_by_type(history: list[Any]) -> None:
    for told in history:
        np.testing.assert_array_equal(told["counted"], told["arrived"])
    assert sum(told["arrived"].sum() for told in history) > 100


def test_the_guard_lets_decodes_go_first_then_the_prompts_with_the_most_pressure() -> None:
    physics = simulator.lower(SCENARIO, burst=64)
    state = rollout.start(physics, rollout.keys(0, ENVS))
    view = simulator.view(physics, state)
    assert (view.classes.prompt_tokens.sum(axis=0) > 2 * 768).all()
    guarded = replace(CHOICE, guard=2.0).look(view)
    expected = np.zeros((4, 2, ENVS), bool)
    expected[2] = True  # only first calls are there: class 0 of both engines
    np.testing.assert_array_equal(guarded.mask, expected)
    free = replace(CHOICE, guard=None).look(view).mask
    np.testing.assert_array_equal(np.asarray(free)[[0, 2]].any(axis=0), True)


def test_bad_settings_and_other_networks_are_refused() -> None:
    for settings, message in [
        ({"engines": 0}, "engines must be at least 1"),
        ({"prior": -1}, "prior must be at least 0"),
        ({"decode_weight": 0}, "decode_weight must be greater than 0"),
        ({"guard": 0}, "guard must be greater than 0"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            NetworkChoice(**settings)  # type: ignore[arg-type]
    physics = simulator.lower(SCENARIO)
    view = simulator.view(physics, rollout.start(physics, rollout.keys(0, ENVS)))
    with pytest.raises(LLMGymError, match="for 3 engines of up to 2 classes each"):
        replace(CHOICE, engines=3).look(view)
    with pytest.raises(LLMGymError, match="the view has 2 of up to 2; train one on"):
        replace(CHOICE, classes=1).look(view)
    latency = llmgym.scenario("latency")
    with pytest.raises(LLMGymError, match="no network of engines"):
        Training((latency,), PPO(choice=CHOICE))
    assert network_size([SCENARIO, llmgym.scenario("lu-kumar")]) == {"engines": 2, "classes": 2}


def test_a_checkpoint_keeps_the_kind_of_choice(tmp_path: Path) -> None:
    actor = jax.device_get(init_mlp(jax.random.key(0), (len(CHOICE.features), 4, 4), 0.01))
    policy = checkpoint.policy_of(CHOICE, actor, {"seed": 0}, "some")
    checkpoint.save_agent(tmp_path / "agent-0.npz", policy)
    loaded = agents.load(tmp_path / "agent-0.npz")
    assert loaded == policy and loaded.choice == CHOICE  # type: ignore[attr-defined]
    assert not loaded.saturates


@pytest.mark.slow
def test_a_seed_fixes_the_policy() -> None:
    settings = PPO(CHOICE, num_envs=ENVS, steps=16, epochs=1, minibatches=2, hidden=4, warm_up=0.0)
    training = Training((SCENARIO,), settings, steps=320)
    digests = []
    run = trainings.Run.start(training, (0,))
    lowered = trainings._chunk.lower(settings, training.iterations, run.physics, run.learners)
    program = compiled(lowered)
    for seed in (0, 0, 1):
        run = trainings.Run.start(replace(training, seeds=(seed,)), (seed,))
        while not run.over:
            run.advance(program)
        assert all(np.isfinite(x).all() for x in run.curve.values())
        digests.append(run.finish(None)[0].digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_decision_is_the_product_over_engines() -> None:
    rest = -9.0
    log_p = jnp.full((2, ENVS, sum(CHOICE.parts)), rest)  # engines, envs, choices
    log_p = log_p.at[0, 0, 1].set(jnp.log(0.5)).at[1, 0, 2].set(jnp.log(0.25))
    choice = jnp.zeros((2, ENVS, len(CHOICE.parts)), jnp.int32).at[:, 0, 0].set(jnp.array([1, 2]))
    found = CHOICE.log_prob_of(log_p, choice)
    assert found.shape == (ENVS,)
    others = rest * 2 * (len(CHOICE.parts) - 1)
    np.testing.assert_allclose(found[0], np.log(0.125) + others, rtol=1e-6)


@pytest.mark.slow
def test_the_shipped_policy_is_stable_where_priorities_are_not() -> None:
    scenario = llmgym.scenario("rybko-stolyar", slots=1536)
    found = llmgym.stability(scenario, "ppo-rybko-stolyar", load=0.9, replications=8)
    assert found.verdict == "stable" and found.dropped == 0
