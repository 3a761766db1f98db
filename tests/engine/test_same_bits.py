"""Loop, scan, vmap and batches of any size: one run, bit for bit, on random scenarios of every kind."""

from __future__ import annotations

from dataclasses import dataclass
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
from llmgym.scenario.scenario import Scenario

STEPS = 96
"""Decisions of a run."""

ALONE, FEW = 2, 3
"""The environment that is also run by itself, and the size of the batch that it is taken from."""


@dataclass(frozen=True)
class Case:
    """A random scenario under a policy; ``structure`` says what is in it."""

    structure: Structure
    number: int

    @property
    def scenario(self) -> Scenario:
        """As the number of the case draws it."""
        found = single if self.structure in SINGLES else random_network
        return found(self.structure, self.number).scenario

    @property
    def policy(self) -> Any:
        """One that preempts nobody by itself; all but every sixth run is under another one."""
        name, fixed = POLICIES[self.number % len(POLICIES)]
        return baselines.make(name, **fixed)


CASES = [Case(s, n) for n, s in enumerate([*SINGLES, *structures()[:13]])]
"""Twenty: seven of one engine, thirteen networks; KV memory, prefixes, swapping and rooflines in many."""

QUICK = (0, 8)
"""Those of the default set: prefix caching with a roofline, and a network that swaps."""


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
    state, said = jax.device_get((_compact(physics, (carry.state, nobody))[0], dict(said)))
    some = (said["tokens"] > 0) | said["finished"][:, :, : said["tokens"].shape[2]]
    order = np.argsort(~some, axis=1, kind="stable")
    for name in ROWS:
        column = said[name][:, :, : some.shape[2]]
        said[name] = np.take_along_axis(np.where(some, column, 0), order, axis=1)
    return state, said


_compact = jax.jit(compact)


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
    "case",
    [
        pytest.param(case, marks=[pytest.mark.slow] * (n not in QUICK))
        for n, case in enumerate(CASES)
    ],
    ids=lambda case: f"{case.number}-{case.structure.label}",
)
def test_loop_scan_and_vmap_are_one_run(case: Case) -> None:
    physics, policy, several = simulator.lower(case.scenario), case.policy, keys(case.number, FEW)
    key = several[ALONE]
    alone = in_order(physics, scanned(physics, policy, key, STEPS))
    assert_same(alone, in_order(physics, looped(physics, policy, key, STEPS)))
    beside = jax.tree.map(lambda leaf: leaf[ALONE], mapped(physics, policy, several, STEPS))
    assert_same(alone, in_order(physics, beside))
    native = scanned(physics, policy, several, STEPS)  # the batch axis is the last
    assert_same(alone, in_order(physics, native), lambda leaf: leaf[..., ALONE])
    assert alone[0].totals.completed > 0 and np.count_nonzero(alone[1]["tokens"]) > 40
