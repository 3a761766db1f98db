"""One result however it is run: compaction, jit, vmap, batches, long clocks, one compilation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import start, trace
from workloads import MIXED, random_workload

from llmgym.baselines import RandomFeasible, SarathiServe
from llmgym.core.arrays import compacted
from llmgym.core.wide import Wide
from llmgym.engine import fresh_rows, simulator
from llmgym.engine.params import Params
from llmgym.engine.state import State
from llmgym.evaluation import policies
from llmgym.evaluation.rollout import keys, policy_key
from llmgym.scenario.arrivals import MMPP, Deterministic, GammaRenewal, Poisson
from llmgym.scenario.batch_time import Affine, Staircase
from llmgym.scenario.lengths import Geometric, LogNormal
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload

STEPS, ENVS = 96, 3  # as in test_dynamics, whose program it shares


def random_run(every: int, fresh: int, steps: int, offset: int = 0) -> dict[str, np.ndarray]:
    """Random feasible batches on two job types; what is seen of each request, by name and step."""
    physics = replace(mixed_physics(), fresh=fresh)
    key = keys(5, 2)

    @jax.jit
    def run(physics: Params) -> dict[str, jax.Array]:
        state = replace(simulator.init(physics, key), clock=Wide.zeros((2,)) + jnp.uint32(offset))

        def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
            batch = policies.compose(SarathiServe(), key, simulator.view(physics, state))
            after, info = simulator.step(physics, state, batch)
            kept = {
                "start": state.clock.low - jnp.uint32(offset),
                "duration": info.duration,
                "dropped": after.totals.dropped,
                "tokens": info.batch.tokens,
                "finished": info.finished,
                "waited": jnp.where(info.batch.tokens > 0, state.clock.low - info.table.arrival, 0),
                "latency": jnp.where(info.finished, after.clock.low - info.table.first_token, 0),
                "request": info.table.request,
                "job_class": info.table.job_class,
            }
            return after, kept

        return jax.lax.scan(body, state, None, length=steps)[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh_rows, "COMPACT_EVERY", every)
        out = jax.device_get(run(physics))
    observed = {name: out[name] for name in ("start", "duration", "dropped")}
    for name in ("tokens", "finished", "waited", "latency"):
        table = np.zeros((steps, 2, 2, 900), np.int64)  # step, env, class, number
        step, row, env = np.nonzero(out["tokens"])
        at = (step, env, out["job_class"][step, row, env], out["request"][step, row, env])
        table[at] = out[name][step, row, env]
        observed[name] = table
    return observed


def mixed_physics() -> Params:
    """Two job types under load 1, so small a table that it drops."""
    jobs = (
        Workload(Poisson(95.0), Geometric(6.0), 5, name="a"),
        Workload(Deterministic(70.0), 7, Geometric(4.0), name="b"),
    )
    scenario = Scenario.single_engine(Affine(2.0, 0.5), 16, jobs, slots=14)
    return simulator.lower(scenario)


@cache
def usual_run() -> dict[str, np.ndarray]:
    """The run that the others are compared with."""
    return random_run(every=16, fresh=18, steps=300)


@pytest.mark.parametrize(("every", "fresh"), [(1, 2), (3, 50), (1000, 5)])
def test_compaction_changes_nothing_observable(every: int, fresh: int) -> None:
    usual, other = usual_run(), random_run(every, fresh, steps=300)
    assert usual["dropped"][-1].min() > 0
    assert usual["finished"].sum() > 100
    for name, values in usual.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_the_clock_may_pass_32_bits() -> None:
    usual, late = usual_run(), random_run(16, 18, 300, offset=2**32 - 60_000)
    assert usual["start"][-1].min() > 60_000
    for name, values in usual.items():
        np.testing.assert_array_equal(values, late[name], err_msg=name)


def noisy_physics() -> Params:
    """Floating point wherever there is some: gaps, lognormal lengths, batch times."""
    jobs = (
        Workload(Poisson(40.0), LogNormal(6.0, 1.0), Geometric(5.0), name="a"),
        Workload(Poisson(40.0), Geometric(4.0), LogNormal(3.0, 0.5), name="b"),
    )
    return simulator.lower(Scenario.single_engine(Affine(2.0, 0.37), 16, jobs, slots=14))


def rejecting_physics() -> Params:
    """Arrivals drawn by loops whose length varies: Gamma gaps, a modulated Poisson process."""
    jobs = (
        Workload(GammaRenewal(40.0, 2.0), 6, Geometric(5.0), name="a"),
        Workload(MMPP(40.0, (1.0, 5.0), (0.5, 0.1)), Geometric(4.0), 3, name="b"),
    )
    return simulator.lower(Scenario.single_engine(Affine(2.0, 0.37), 16, jobs, slots=14))


RANDOM = RandomFeasible()


def decide(physics: Params, state: State, key: jax.Array) -> State:
    """One decision of a random policy."""
    batch = policies.compose(RANDOM, policy_key(key, state.steps), simulator.view(physics, state))
    return simulator.step(physics, state, batch)[0]


@partial(jax.jit, static_argnames="steps")
def scanned(physics: Params, key: jax.Array, steps: int) -> State:
    """A run as one compiled loop."""

    def body(state: State, _: None) -> tuple[State, None]:
        return decide(physics, state, key), None

    return jax.lax.scan(body, simulator.init(physics, key), None, length=steps)[0]


def same_leaves(one: Any, other: Any, pick: Any = lambda x: x) -> None:
    """Bit-equal, leaf by leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    for left, right in pairs:
        np.testing.assert_array_equal(np.asarray(left), pick(np.asarray(right)))


LENGTH = 70


@pytest.mark.slow
@pytest.mark.parametrize("make_physics", [noisy_physics, rejecting_physics])
def test_one_result_however_it_is_run(make_physics: Callable[[], Params]) -> None:
    physics, key = make_physics(), keys(9, 4)
    one_step = jax.jit(decide)
    looped = start(physics, key[2])
    for _ in range(LENGTH):
        looped = one_step(physics, looped, key[2])
    assert int(looped.totals.completed) > 20
    same_leaves(looped, scanned(physics, key[2], LENGTH))

    native = scanned(physics, key, LENGTH)  # batch axis last
    same_leaves(looped, native, lambda x: x[..., 2])
    same_leaves(native, scanned(physics, keys(9, 8), LENGTH), lambda x: x[..., :4])

    many = jax.jit(jax.vmap(scanned, in_axes=(None, 0, None)), static_argnums=2)
    same_leaves(looped, many(physics, key, LENGTH), lambda x: x[2])


def test_one_compilation_serves_every_load_and_constant() -> None:
    base, key = random_workload(MIXED, 0).scenario, keys(0, ENVS)
    changes: list[dict[str, Any]] = [
        {},
        {"arrival_rate_per_s": 30.0},
        {"token_budget": 500},
        {"batch_time": Staircase(1.0, 2.0, 64), "tick_ms": 0.1},
    ]
    sizes, jitted = set(), cast(Any, (trace, start))
    for change in changes:
        physics = replace(simulator.lower(base.override(**change)), fresh=MIXED.fresh)
        chosen = {name: jnp.int32(9) for name in ("token_budget", "k", "threshold")}
        trace(physics, start(physics, key), key, jnp.int32(6), chosen, STEPS)
        sizes.add(tuple(compiled._cache_size() for compiled in jitted))
    assert len(sizes) == 1


@given(mask=st.lists(st.booleans(), min_size=1, max_size=70))
@settings(max_examples=40, deadline=None)
def test_sources_moves_the_live_rows_up_in_order(mask: list[bool]) -> None:
    padded = np.array([mask + [False] * (70 - len(mask)), [True] * 70, [False] * 70]).T
    got = np.asarray(jax.jit(compacted)(jnp.asarray(padded)))
    for env in range(padded.shape[1]):
        live = np.flatnonzero(padded[:, env])
        expected = np.concatenate([live, np.full(70 - live.size, -1)])
        np.testing.assert_array_equal(got[:, env], expected)
