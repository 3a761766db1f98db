"""Max-pressure finds the batch with the most pressure relieved per millisecond."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.engine.view import Batch, View
from llmgym.evaluation import rollout
from llmgym.theory.capacity import at_load

CHAT = llmgym.Workload(llmgym.Poisson(6), llmgym.Geometric(100), llmgym.Geometric(80), name="chat")
DIGEST = llmgym.Workload(
    llmgym.Poisson(1), llmgym.Geometric(900), llmgym.Geometric(20), name="digest"
)


def states(policy: baselines.Policy, **settings: object) -> Iterator[tuple[jax.Array, View]]:
    """What the policy sees every few steps of a run near capacity."""
    scenario = at_load(llmgym.scenario("paper-figure-1", workload=(CHAT, DIGEST), **settings), 0.97)
    physics, keys = simulator.lower(scenario), rollout.keys(0, 16)
    carry = rollout.begin(physics, policy, keys)
    for _ in range(12):
        carry, _ = rollout.run_chunk(physics, carry, keys, None, policy, 40, False)
        yield keys, simulator.view(physics, carry.state)


def relieved(view: View, batch: Batch, weight: float) -> np.ndarray:
    """The objective in float64, written out from its formula."""
    tokens, decoding = np.asarray(batch.tokens), np.asarray(view.decoding)
    total = np.zeros(tokens.shape[-1])
    for k in range(view.classes.count):
        mine = np.asarray(view.job_class) == k
        z_p, z_d = (
            np.asarray(z[k], float) for z in (view.classes.in_prefill, view.classes.in_decode)
        )
        m_p, m_d = (np.asarray(m[k]) for m in (view.classes.mean_prefill, view.classes.mean_decode))
        x, y = ((tokens * (mine & phase)).sum(0) for phase in (~decoding, decoding))
        total += x / m_p * (z_p - weight * z_d) + y / m_d * weight * z_d
    size = tokens.sum(0)
    return np.where(size > 0, total / llmgym.CODELLAMA_34B_A100.ms(size), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("seqs", [None, 40])
def test_no_other_policy_relieves_more(seqs: int | None) -> None:
    chosen = baselines.make("max_pressure")
    others = [baselines.make(n) for n in ("sarathi", "orca", "greedy_rate", "vllm", "tile_align")]
    better = 0
    for keys, view in states(chosen, max_num_seqs=seqs):
        best = relieved(view, chosen(keys, view), 0.05)
        for other in others:
            value = relieved(view, other(keys, view), 0.05)
            assert (value <= best * (1 + 1e-5) + 1e-9).all(), other.name
            better += int((value < 0.99 * best).sum())
    assert better > 100


@pytest.mark.slow
def test_it_is_stable_near_capacity() -> None:
    assert llmgym.stability("paper-figure-1", "max_pressure", load=0.95).verdict == "stable"


def test_bad_weights_are_refused() -> None:
    for weight in (0, -1.0, float("nan")):
        with pytest.raises(LLMGymError, match="decode_weight"):
            baselines.make("max_pressure", decode_weight=weight)
