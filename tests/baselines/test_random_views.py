"""On random views, and in whole runs, the policies form feasible batches and serve everyone."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from request_classes import one_class

import llmgym
from llmgym import baselines
from llmgym.engine import simulator
from llmgym.engine.fill import clip
from llmgym.engine.view import Batch, Memory, View
from llmgym.evaluation import policies
from llmgym.evaluation.rollout import keys
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.replay import Replay

NAMES = (
    "slai",
    "rad",
    "exclusive_batching",
    "exclusive_batching_plus",
    "wait",
    "nested_wait",
    "flow_control",
    "flow_control_eviction",
    "mc_sf",
    "spf",
    "srpt",
    "las",
    "edf",
    "llf",
    "mlfq",
)


SLOTS, ENVS = 12, 3
SHAPE = (SLOTS, ENVS)
CHOSEN = {"flow_control": {"activations": 1.5}, "flow_control_eviction": {"activations": 2.5}}
MADE = tuple(baselines.make(n, **CHOSEN.get(n, {})) for n in NAMES)
KEYS = keys(3, ENVS)


def random_view(seed: int, busy: float, seats: str, memory: bool) -> View:
    """Any mixture of waiting, paused and decoding requests on three engines."""
    rng = np.random.default_rng(seed)
    phase = rng.choice(4, SHAPE, p=[1 - busy, busy / 4, busy / 4, busy / 2])
    prompt = rng.integers(2, 40, SHAPE)
    prefill = np.select([phase == 1, phase == 2], [prompt, rng.integers(1, prompt)], 0)
    done = phase == 3
    generated = np.where(done, rng.integers(0, 20, SHAPE), 0)
    started = (phase == 2) | done
    cached = jnp.asarray(np.where(started, prompt + generated - prefill, 0), jnp.int32)
    block = 4
    held = (-(-np.asarray(cached) // block)).sum(axis=0)
    blocks = np.maximum(held, 80 // block) + rng.integers(0, 8, ENVS)  # each request fits alone
    limit = np.maximum(started.sum(axis=0), rng.integers(1, 2 * SLOTS, ENVS))

    def whole(x: Any) -> jax.Array:
        return jnp.asarray(x, jnp.int32)

    per_engine = partial(jnp.broadcast_to, shape=(ENVS,))
    return View(
        prefill=whole(prefill),
        decoding=jnp.asarray(done),
        started=jnp.asarray(started),
        prompt=whole(np.where(phase > 0, prompt, 0)),
        generated=whole(generated),
        waited=whole(rng.integers(0, 2**31 - 1, SHAPE) >> rng.integers(0, 31, SHAPE)),
        unserved=whole(rng.integers(0, 2**31 - 1, SHAPE) >> rng.integers(0, 31, SHAPE)),
        job_class=jnp.zeros(SHAPE, jnp.int32),
        decode_left=whole(np.where(phase > 0, rng.integers(1, 20, SHAPE), 0)),
        token_budget=whole(rng.integers(1, 120, ENVS)),
        max_num_seqs=whole(limit),
        batch_time=jax.tree.map(per_engine, llmgym.CODELLAMA_34B_A100),
        tick_ms=jnp.full(ENVS, 0.01),
        batches=jnp.zeros(ENVS, jnp.int32),
        classes=one_class((ENVS,)),
        free=jnp.ones(ENVS, bool),
        job_age=jnp.zeros(SHAPE, jnp.int32),
        resident_limit=seats == "resident",
        memory=Memory(cached, whole(rng.integers(0, 5, SHAPE)), whole(blocks), block)
        if memory
        else None,
    )


def named(batch: Batch) -> Batch:
    """The batch with nobody to preempt where it says nothing of that."""
    if batch.preempt is None:
        return Batch(batch.tokens, jnp.zeros(batch.tokens.shape, bool))
    return batch


@jax.jit
def together(key: jax.Array, view: View) -> tuple[jax.Array, jax.Array]:
    """Tokens of the batches of all policies, and what the engine makes of them (policies, slots, ...)."""
    batches = [named(policies.compose(policy, key, view)) for policy in MADE]
    asked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    return asked.tokens, jax.vmap(lambda batch: clip(view, batch)[0].tokens)(asked)


KINDS = (("batch", False), pytest.param("resident", True, marks=pytest.mark.slow))


@pytest.mark.parametrize(("seats", "memory"), KINDS, ids=str)
@given(seed=st.integers(0, 2**32 - 1), busy=st.floats(0, 1))
@example(seed=129, busy=0.15625)  # the budget goes to a request that is evicted
@example(seed=6092, busy=0.6875)  # a request would enter in a slot that evicts
@settings(max_examples=50, deadline=None)
def test_batches_are_feasible_and_run(seats: str, memory: bool, seed: int, busy: float) -> None:
    view = random_view(seed, busy, seats, memory)
    demand, budget = np.asarray(view.demand), np.asarray(view.token_budget)
    limit = np.asarray(view.max_num_seqs)
    batches, after = (np.asarray(x) for x in together(KEYS, view))
    for policy, given_tokens, runs in zip(MADE, batches, after, strict=True):
        assert (given_tokens >= 0).all(), policy.name
        assert (given_tokens <= demand).all(), policy.name
        assert (given_tokens.sum(axis=0) <= budget).all(), policy.name
        taken = (given_tokens > 0) | (np.asarray(view.started) & (seats == "resident"))
        assert (taken.sum(axis=0) <= limit).all(), policy.name
        if policy.work_conserving and not memory:
            full = np.minimum(demand.sum(axis=0), budget)
            assert (given_tokens.sum(axis=0) == full)[limit >= SLOTS].all(), policy.name
        if policy.name == "flow_control_eviction":  # it evicts before the engine has to preempt
            assert (runs == given_tokens).all()
        # Nobody but WAIT idles while requests are there, and memory never empties a batch.
        some = demand.any(axis=0)
        if policy.name in ("wait", "nested_wait"):
            some = given_tokens.any(axis=0)
        assert (runs.sum(axis=0) > 0)[some].all(), policy.name


@pytest.mark.slow
def test_batches_are_the_same_under_vmap() -> None:
    view = random_view(5, 0.9, "resident", memory=True)
    native = np.asarray(together(KEYS, view)[0])
    first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), view)
    mapped = jax.jit(jax.vmap(lambda key, view: together(key, view)[0]))(KEYS, first)
    np.testing.assert_array_equal(np.moveaxis(native, -1, 0), mapped)
    assert len({batch.tobytes() for batch in native}) > 5


STEPS, REQUESTS = 600, 24
SHORT = (
    "slai",
    "rad",
    "exclusive_batching",
    "wait",
    "nested_wait",
    "flow_control",
    "flow_control_eviction",
    "mc_sf",
    "spf",
)


def served(blocks: int, gap_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Requests completed and preempted (policies, engines), and steps clipped, of short runs."""
    rng = np.random.default_rng(1)
    prompts, outputs = rng.integers(1, 60, REQUESTS), rng.integers(1, 15, REQUESTS)
    workload = Replay(np.arange(REQUESTS) * gap_s, prompts, outputs)
    scenario = llmgym.Scenario.single_engine(
        llmgym.Staircase(5.0, 10.0, 16),
        64,
        workload,
        max_num_seqs=8,
        seq_limit="resident",
        kv_cache=KVCache(blocks, 4),
        slots=REQUESTS,
        lengths_known=True,
    )
    done, lost = _run(simulator.lower(scenario))
    return np.asarray(done), np.asarray(lost), prompts + outputs


@jax.jit
def _run(physics: simulator.Params) -> tuple[jax.Array, jax.Array]:
    key = keys(0, 1)
    made = [baselines.make(n, **CHOSEN.get(n, {})) for n in SHORT]
    composers = [lambda *seen, p=policy: named(policies.compose(p, *seen)) for policy in made]

    def run(number: jax.Array) -> tuple[jax.Array, jax.Array]:
        def body(state: Any, _: None) -> tuple[Any, jax.Array]:
            batch = jax.lax.switch(number, composers, key, simulator.view(physics, state))
            # An engine that waits looks again after a second: WAIT ends by its timeout.
            state, info = simulator.step(physics, state, batch, jnp.int32(100_000))
            return state, info.preempted

        state, lost = jax.lax.scan(body, simulator.init(physics, key), length=STEPS)
        return state.totals.completed[0], jnp.sum(lost)

    return jax.lax.map(run, jnp.arange(len(SHORT)))


@pytest.mark.slow
def test_everyone_is_served_at_low_load() -> None:
    done, lost, _ = served(blocks=400, gap_s=0.5)
    assert dict(zip(SHORT, done.tolist(), strict=True)) == dict.fromkeys(SHORT, REQUESTS)
    assert not lost.any()


@pytest.mark.slow
def test_everyone_is_served_where_memory_is_short() -> None:
    done, lost, lengths = served(blocks=22, gap_s=0.01)
    assert lengths.max() <= 22 * 4
    assert dict(zip(SHORT, done.tolist(), strict=True)) == dict.fromkeys(SHORT, REQUESTS)
    preempted = dict(zip(SHORT, lost.tolist(), strict=True))
    assert preempted["mc_sf"] == 0  # its forecasts hold
    assert preempted["spf"] > 0
    assert preempted["flow_control_eviction"] > 0
