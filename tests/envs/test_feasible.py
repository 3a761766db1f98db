"""Random play inside the mask asks for nothing that the engine has to cut, with KV memory either."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym

STEPS = 400


def random_choice(core: Any, key: jax.Array, mask: jax.Array) -> jax.Array:
    """A choice inside the flat ``mask``, uniform in each dimension."""
    space = core.action_space
    if space.dtype == np.float32:
        return jax.random.uniform(key, space.shape, minval=-1.0, maxval=1.0)
    sizes = np.atleast_1d(space.nvec if hasattr(space, "nvec") else space.n)
    noise, picks = jax.random.uniform(key, (int(sizes.sum()),)), []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        part = slice(start, start + size)
        picks.append(jnp.argmax(jnp.where(mask[part], noise[part], -1.0)))
    return jnp.stack(picks) if hasattr(space, "nvec") else picks[0]


ACTIONS = ("tokens", "tiles", "split", "scores")
QUICK = {(False, "tokens"), (False, "scores"), (True, "tokens")}
CASES = [
    pytest.param(network, action, marks=[] if (network, action) in QUICK else [pytest.mark.slow])
    for network in (False, True)
    for action in ACTIONS
]


@pytest.mark.parametrize(("network", "action"), CASES)
def test_masked_play_is_never_clipped_where_memory_is_short(action: str, network: bool) -> None:
    tight = llmgym.KVCache(60, 16)
    scenario = llmgym.scenario("multi-tenant", kv_cache=tight, replicas=1 + network, slots=24)
    name = "llmgym/Network-v0" if network else "llmgym/Engine-v0"
    core = llmgym.functional(name, scenario=scenario, load=None, action=action)

    def play(carry: tuple[Any, jax.Array], key: jax.Array) -> tuple[Any, Any]:
        state, mask = carry
        state, told = core.step(state, random_choice(core, key, mask))
        info = told.info
        return (state, info["action_mask"]), (info["clipped"], info["preempted"])

    @jax.jit
    def run() -> Any:
        state = core.init(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(play, (state, core.action_mask(state)), keys)[1]

    clipped, preempted = run()
    assert not np.asarray(clipped).any()
    assert np.asarray(preempted).sum() > 0, "memory was never short"
