"""Loop, scan, vmap and batches of any size: one run, bit for bit, on random scenarios of every kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_workloads import POLICIES, Structure, random_network, structures
from single_stations import SINGLES, single

from llmgym import baselines
from llmgym.engine import simulator
from llmgym.engine.ended import Ended
from llmgym.engine.params import Params
from llmgym.engine.queues import compact
from llmgym.evaluation import rollout
from llmgym.evaluation.rollout import keys

STEPS = 96
"""Decisions of a run."""

ALONE, FEW = 2, 3
"""The environment that is also run by itself, and the size of the batch that it is taken from."""


NETWORKS = structures()
CASES = [SINGLES[0], SINGLES[3], NETWORKS[1], NETWORKS[3], NETWORKS[13]]
"""Two engines alone and three networks, with prefix caching, recompute, swapping, rooflines and loops.

Scenarios of one structure share their programs: compiling is what costs time.
"""

SEEDS = 4
"""Random scenarios of each structure: twenty in all."""


def lowered(structure: Structure, seed: int) -> Params:
    """The scenario of a seed, with tables of the sizes that the structure says."""
    found = (single if structure in SINGLES else random_network)(structure, seed)
    physics = simulator.lower(found.scenario, found.burst)
    physics = replace(physics, fresh=structure.fresh)
    physics = physics if physics.lone else replace(physics, coming=structure.fresh)
    if physics.prefixes is not None:
        physics = replace(physics, prefixes=replace(physics.prefixes, most=64))
    return physics


def run(physics: Params, policy: Any, key: jax.Array, steps: int) -> tuple[rollout.Carry, Any]:
    """A run as one loop: how it ends, and what each step said."""

    def body(carry: rollout.Carry, _: None) -> tuple[rollout.Carry, Any]:
        carry, told = rollout.step(physics, policy, carry, key)
        return carry, _said(told)

    begun = rollout.Carry(simulator.init(physics, key))
    return jax.lax.scan(body, begun, None, length=steps)


def _said(epoch: Any) -> dict[str, Any]:
    """What a step did: counts, and of each row its tokens, whether it finished, and whose it is."""
    info = epoch.info
    counts = ("duration", "batch_ticks", "clipped", "preempted", "lost", "swapped")
    found = {name: getattr(info, name) for name in counts if getattr(info, name) is not None}
    whose = {name: getattr(info.table, name) for name in ("request", "job_class")}
    return found | whose | {"tokens": info.batch.tokens, "finished": info.finished}


ROWS = ("tokens", "finished", "request", "job_class")


def in_order(physics: Params, found: tuple[rollout.Carry, Any]) -> tuple[Any, Any]:
    """A run with the calls of a network in the order of their rows, which themselves mean nothing there.

    When calls move up depends on the environments beside; in what order they stand does not.
    """
    carry, said = found
    if physics.lone:
        return jax.device_get((carry.state, said))
    nobody = Ended.of(jnp.zeros_like(carry.state.table.live), jnp.asarray(False))
    state = _compact(physics, (carry.state, nobody))[0]
    if state.pool is not None:  # beyond the blocks that a call holds, its row means nothing
        blocks = state.pool.table
        place = jax.lax.broadcasted_iota(jnp.int32, blocks.shape, 1)
        held = _held(physics, state)[: blocks.shape[0], None]
        pool = replace(state.pool, table=jnp.where(place < held, blocks, 0))
        state = replace(state, pool=pool)
    # What is drawn in advance, and the rows for it, depend on the environments beside.
    state = replace(state, stream=None, inflow=replace(state.inflow, coming=None, tail=None))
    state, said = jax.device_get((state, dict(said)))
    some = (said["tokens"] > 0) | said["finished"][:, :, : said["tokens"].shape[2]]
    order = np.argsort(~some, axis=1, kind="stable")
    for name in ROWS:
        column = said[name][:, :, : some.shape[2]]
        said[name] = np.take_along_axis(np.where(some, column, 0), order, axis=1)
    return state, said


_compact = jax.jit(compact)


@jax.jit
def _held(physics: Params, state: Any) -> jax.Array:
    memory = simulator.view(physics, state).memory
    assert memory is not None
    return memory.needed()


@partial(jax.jit, static_argnames="policy")
def one_step(
    physics: Params, policy: Any, carry: rollout.Carry, key: jax.Array
) -> tuple[rollout.Carry, Any]:
    carry, told = rollout.step(physics, policy, carry, key)
    return carry, _said(told)


scanned = jax.jit(run, static_argnames=("policy", "steps"))


@partial(jax.jit, static_argnames=("policy", "steps"))
def mapped(physics: Params, policy: Any, key: jax.Array, steps: int) -> Any:
    return jax.vmap(lambda one: run(physics, policy, one, steps))(key)


def looped(physics: Params, policy: Any, key: jax.Array, steps: int) -> tuple[Any, Any]:
    """The same as a loop of Python."""
    carry, said = rollout.Carry(jax.jit(simulator.init)(physics, key)), []
    for _ in range(steps):
        carry, told = one_step(physics, policy, carry, key)
        said.append(jax.device_get(told))
    return carry, jax.tree.map(lambda *parts: np.stack(parts), *said)


def assert_same(one: Any, other: Any, pick: Any = lambda x: x) -> None:
    """Equal bytes and types, leaf by leaf; ``pick`` takes its part of each leaf of ``other``."""
    leaves, others = jax.tree_util.tree_flatten_with_path(one)[0], jax.tree.leaves(other)
    for (path, left), right in zip(leaves, others, strict=True):
        left, right = np.asarray(left), np.asarray(pick(np.asarray(right)))
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.tobytes() == right.tobytes(), jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    ("structure", "seeds"),
    [(CASES[0], range(2)), *(pytest.param(s, range(SEEDS), marks=pytest.mark.slow) for s in CASES)],
    ids=lambda x: x.label if isinstance(x, Structure) else len(x),
)
def test_loop_scan_and_vmap_are_one_run(structure: Structure, seeds: range) -> None:
    name, fixed = POLICIES[CASES.index(structure)]
    policy, seen = baselines.make(name, **fixed), Counter[str]()
    for seed in seeds:
        physics, several = lowered(structure, seed), keys(seed, FEW)
        key = several[ALONE]
        alone = in_order(physics, scanned(physics, policy, key, STEPS))
        assert_same(alone, in_order(physics, looped(physics, policy, key, STEPS)))
        beside = jax.tree.map(lambda leaf: leaf[ALONE], mapped(physics, policy, several, STEPS))
        assert_same(alone, in_order(physics, beside))
        native = in_order(
            physics, scanned(physics, policy, several, STEPS)
        )  # their axis is the last
        assert_same(alone, native, lambda leaf: leaf[..., ALONE])
        seen["tokens"] += int(alone[1]["tokens"].sum())
        seen["ended"] += int(alone[0].totals.completed) + int(
            alone[1].get("lost", np.zeros(1)).sum()
        )
    assert seen["ended"] > 0 and seen["tokens"] > 0, seen  # or there was nothing to compare
