"""A long run loses nothing: requests, tokens and time add up exactly.

LLMGYM_SOAK_STEPS sets the number of steps over all environments (100,000,000 takes some minutes).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.engine import simulator, stream
from llmgym.evaluation import rollout as rollouts
from llmgym.theory.capacity import at_load

BLOCK, CHUNK = 128, 250


def tokens_of_first(lengths: tuple, key: jax.Array, count: np.ndarray) -> np.ndarray:
    """Tokens of the first ``count`` requests of each environment, drawn anew from their numbers."""
    total, batch = np.zeros(count.size, np.int64), 4096

    @jax.jit
    def some(start: jax.Array) -> jax.Array:
        request = jnp.broadcast_to(start + jnp.arange(batch)[:, None], (batch, count.size))
        prefill, decode = stream.lengths_of(lengths, key, jnp.zeros_like(request), request)
        return jnp.where(request < count, prefill + decode, 0).sum(0)

    for start in range(0, int(count.max()), batch):
        total += np.asarray(some(start))
    return total


@pytest.mark.slow
def test_soak() -> None:
    steps = int(float(os.environ.get("LLMGYM_SOAK_STEPS", "3e6")))
    envs = 1024 if steps >= 10_000_000 else 256
    chunks = -(-steps // (envs * CHUNK))
    scenario = at_load(llmgym.scenario("geometric", slots=256), 0.7)
    physics, policy = simulator.lower(scenario), baselines.make("sarathi")
    keys = rollouts.keys(0, envs)

    def soak(block: int) -> tuple[int, float]:
        key = keys[block * BLOCK : (block + 1) * BLOCK]
        carry = rollouts.begin(physics, policy, key)
        ticks = np.zeros(BLOCK, np.int64)
        present_ticks = np.zeros(BLOCK, np.float64)
        for _ in range(chunks):
            carry, done = rollouts.run_chunk(physics, carry, key, None, policy, CHUNK, False)
            duration = np.asarray(done.duration).astype(np.int64)
            ticks += duration.sum(0)
            present_ticks += (duration * np.asarray(done.present)).sum(0)
        state = carry.state
        totals = state.totals
        arrived, completed = (
            np.asarray(x).astype(np.int64) for x in (totals.arrived, totals.completed)
        )
        assert (np.asarray(totals.dropped) == 0).all()
        assert (arrived == completed + np.asarray(state.present)).all()
        assert (ticks == state.clock.to_numpy()).all()
        served = totals.prefill_tokens.to_numpy() + totals.decode_tokens.to_numpy()
        words = jax.random.key_data(key).T
        asked = tokens_of_first(physics.lengths, words, arrived)
        assert (asked == served + state.backlog.to_numpy()).all()
        left = np.asarray(state.table.prefill + state.table.decode).sum(0)
        assert (left == state.backlog.to_numpy()).all()
        # The integral of the number present counts arrivals from within a step too.
        assert (totals.request_ticks.to_numpy() >= present_ticks).all()
        return int(arrived.sum()), float(ticks.sum())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(soak, range(envs // BLOCK)))
    # No drift: requests arrive at the rate of the scenario.
    arrivals, ticks = (sum(column) for column in zip(*results, strict=True))
    rate = arrivals / ticks * 1000 / scenario.tick_ms
    assert abs(rate / scenario.arrival_rate_per_s - 1) < 5 / np.sqrt(arrivals)
    print(f"{envs * chunks * CHUNK:,} steps, {arrivals:,} requests: all accounted for")
