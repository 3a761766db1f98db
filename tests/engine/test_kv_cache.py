"""KV memory in the engine: never exceeded, nothing lost, and everyone served in the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.engine.memory.paged import cached_tokens, secure
from llmgym.engine.view import Batch
from llmgym.evaluation import policies, rollout
from llmgym.scenario import toml_reader, toml_writer
from llmgym.scenario.batch_time import Attention, Roofline
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.prefixes import SharedPrefix

ENVS, STEPS = 16, 400


CACHES: dict[str, dict[str, Any]] = {
    "recompute": {},
    "swap": {"swap_tokens_per_ms": 10.0},
    "prefix caching": {"prefix_caching": True},
}


def scenario(
    first_token: str = "prefill", blocks: int = 20, cache: str = "recompute", **settings: object
) -> llmgym.Scenario:
    """Prompts and outputs of up to 60 tokens, and memory for one and a half of the longest."""
    stage = llmgym.Stage(
        llmgym.Uniform(1, 30), llmgym.Uniform(1, 30), shared_prefix=SharedPrefix(13, variants=2)
    )
    work = llmgym.JobType(llmgym.Poisson(40), (stage,))
    return llmgym.Scenario.single_engine(
        llmgym.Affine(5.0, 0.1),
        32,
        work,
        kv_cache=KVCache(blocks, 4, **CACHES[cache]),
        first_token=first_token,
        slots=24,
        **settings,  # type: ignore[arg-type]
    )


def anything(key: jax.Array, view: llmgym.View) -> Batch:
    """Random tokens, feasible or not, and random victims."""
    tokens, victims = jax.random.split(key)
    asked = jax.random.randint(tokens, view.prefill.shape, -3, 20)
    return Batch(asked, jax.random.uniform(victims, view.prefill.shape) < 0.05)


def used(state: simulator.State) -> jax.Array:
    """Blocks that somebody holds, each once."""
    assert state.pool is not None
    return jnp.sum((state.pool.users > 0).astype(jnp.int32), axis=0)


@jax.jit
def look(physics: simulator.Params, state: simulator.State) -> dict[str, jax.Array]:
    table, ps = state.table, physics.prompt_samples
    left = table.prefill + table.decode
    left = left - (ps & (table.prefill > 0) & (table.decode > 0))
    view = simulator.view(physics, state)
    assert view.memory is not None
    return {
        "left": jnp.sum(left, axis=0),
        "held": jnp.sum(view.memory.held, axis=0) if state.pool is None else used(state),
        "free": view.memory.free,
        "least": jnp.min(view.memory.cached, axis=0),
        "over": jnp.max(view.memory.cached - table.prompt - table.output, axis=0),
    }


@pytest.mark.parametrize(
    ("first_token", "cache"),
    [
        ("decode", "recompute"),
        *(
            pytest.param("prefill", cache, marks=[pytest.mark.slow] * (cache == "prefix caching"))
            for cache in CACHES
        ),
    ],
)
def test_whatever_is_asked_memory_and_tokens_are_conserved(first_token: str, cache: str) -> None:
    physics, keys = simulator.lower(scenario(first_token, cache=cache)), rollout.keys(0, ENVS)
    state = rollout.start(physics, keys)

    @jax.jit
    def advance(state: simulator.State) -> tuple[simulator.State, dict[str, jax.Array]]:
        def body(state: simulator.State, _: None) -> tuple[simulator.State, dict[str, jax.Array]]:
            drawn = rollout.policy_key(keys, state.steps)
            before = simulator.view(physics, state)
            batch = policies.compose(anything, drawn, before)
            after, info = simulator.step(physics, state, batch)
            assert info.batch.preempt is not None
            assert before.memory is not None
            lost = jnp.where(info.batch.preempt, before.memory.cached, 0)
            seen = look(physics, after) | {
                "backlog": after.backlog.low,
                "present": after.present,
                "size": info.prefill_tokens + info.decode_tokens,
                "lost": jnp.sum(lost, axis=0),
                "preempted": info.preempted,
                "found": jnp.sum(info.found, axis=0),
                "swapped": info.swapped,
                "ran_preempted": jnp.sum(jnp.where(info.batch.preempt, info.batch.tokens, 0)),
            }
            return after, seen

        return jax.lax.scan(body, state, None, length=STEPS)

    state, seen = advance(state)
    seen = {name: np.asarray(values) for name, values in seen.items()}
    assert (seen["held"] <= 20).all()
    assert (seen["free"] >= 0).all()
    assert (seen["held"] + seen["free"] == 20).all()
    assert (seen["least"] >= 0).all()
    assert (seen["over"] <= 0).all()
    assert (seen["left"] == seen["backlog"]).all()
    assert not seen["ran_preempted"].any()
    assert seen["preempted"].sum() > 100
    assert (seen["found"].sum() > 0) == (cache == "prefix caching")
    assert (seen["swapped"].sum() > 0) == (cache == "swap")
    totals = state.totals
    counts = np.asarray(totals.completed + totals.dropped + state.present)
    assert (counts == np.asarray(totals.arrived)).all()
    assert (np.asarray(totals.completed) > 5).all()


def test_tokens_served_are_those_asked_for_and_those_computed_again() -> None:
    """P + O - 1 tokens a request where the prompt yields the first one, P + O in the paper's model."""
    arrivals, prompts, outputs = [0.0, 0.0, 0.0, 0.1], [20, 30, 9, 4], [25, 10, 1, 12]
    for first_token, extra in (("prefill", 4), ("decode", 0)):
        replay = llmgym.Replay(arrivals, prompts, outputs)
        base = scenario(first_token, blocks=16)
        run = llmgym.simulate(llmgym.Scenario(base.engines, replay, slots=8), "sarathi")
        frame, batches = run.requests, run.batches
        assert frame.finish_ms.notna().all()
        served = (batches.prefill_tokens + batches.decode_tokens).sum()
        assert frame.preemptions.sum() > 0
        assert served > sum(prompts) + sum(outputs) - extra  # some were computed again
        calm = llmgym.simulate(
            llmgym.Scenario(scenario(first_token, blocks=99).engines, replay, slots=8), "sarathi"
        )
        served = (calm.batches.prefill_tokens + calm.batches.decode_tokens).sum()
        assert served == sum(prompts) + sum(outputs) - extra
        assert not calm.requests.preemptions.any()
        if first_token == "prefill":
            short = calm.requests[calm.requests.decode_tokens == 1].iloc[0]
            assert short.first_token_ms == short.finish_ms


@pytest.mark.parametrize(
    "policy",
    [
        "orca",
        "vllm_v1",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("sarathi", "vllm_v1_priority", "max_pressure", "random")
        ),
    ],
)
def test_everyone_is_served_in_the_end(policy: str) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 31, (2, 40))
    replay = llmgym.Replay(np.sort(rng.uniform(0, 1, 40)), *lengths)
    crowd = llmgym.Scenario(scenario().engines, replay, slots=64)
    run = llmgym.simulate(crowd, policy)
    assert run.summary["dropped"] == 0
    assert run.requests.finish_ms.notna().all()
    assert run.requests.preemptions.sum() > 0 or policy == "random"


def test_what_can_never_fit_is_dropped_and_counted() -> None:
    replay = llmgym.Replay([0.0, 0.0, 0.0], [50, 60, 5], [30, 30, 5])  # memory holds 80 tokens
    for first_token, dropped in (("prefill", 1), ("decode", 1)):
        crowd = llmgym.Scenario(scenario(first_token).engines, replay, slots=4)
        with pytest.warns(
            llmgym.UnservableWarning, match="never fit into KV memory, which holds 80"
        ):
            run = llmgym.simulate(crowd, "vllm_v1")
        assert run.summary["dropped"] == dropped
        assert sorted(run.requests.prefill_tokens) == [5, 50]
        assert run.requests.finish_ms.notna().all()


def test_secure_preempts_the_last_and_then_admits_nobody() -> None:
    physics = simulator.lower(scenario(blocks=10))
    state = simulator.init(physics, rollout.keys(0, 1)[0])
    memory = simulator.view(physics, state).memory
    assert memory is not None
    size = memory.cached.shape[0]

    def column(*values: int) -> jax.Array:
        return jnp.zeros(size, jnp.int32).at[: len(values)].set(jnp.array(values, jnp.int32))

    memory = llmgym.engine.memory.paged.Memory(column(16, 12, 11, 0), column(), jnp.int32(10), 4)
    tokens, gone = secure(memory, column(1, 1, 1, 4), None)
    assert tokens[:4].tolist() == [1, 1, 0, 0]  # 5 + 4 blocks; the third would be the 11th and 12th
    assert gone[:4].tolist() == [False, False, True, False]
    tokens, gone = secure(memory, column(0, 0, 1, 4), None)
    assert tokens[:4].tolist() == [0, 0, 1, 0]  # 4 + 3 + 3 blocks: all are taken
    assert not gone.any()
    named = jnp.zeros(size, bool).at[jnp.array([0, 3])].set(True)
    tokens, gone = secure(memory, column(1, 1, 1, 4), named)
    assert tokens[:4].tolist() == [0, 1, 1, 0]
    assert gone[:4].tolist() == [True, False, False, False]  # who holds nothing loses nothing


def test_batch_times_see_the_context() -> None:
    roofline = Roofline(1.0, 0.0, 0, kv_ms_per_kilotoken=1000.0, prefill_ms_per_megapair=1e6)
    replay = llmgym.Replay([0.0], [10], [3])
    base = llmgym.Scenario.single_engine(roofline, 6, replay, first_token="prefill", slots=4)
    took = llmgym.simulate(base, "sarathi").batches.duration_ms.tolist()
    # Chunks of 6 and 4 tokens: 6*3 and 4*(6 + 2) pairs; then decodes that read 11 and 12 tokens.
    assert took == pytest.approx([1 + 18, 1 + 32, 1 + 11, 1 + 12])
    assert roofline.ms(1, Attention(11.0, 0.0)) == pytest.approx(12)


def test_cached_tokens_of_the_phases() -> None:
    physics = simulator.lower(scenario())
    table = simulator.init(physics, rollout.keys(0, 1)[0]).table
    set_to = {"prompt": 10, "output": 5, "prefill": 4, "decode": 5}
    for samples, rows in ((True, [6, 10, 11]), (False, [6, 11, 12])):
        for (prefill, decode), cached in zip([(4, 5), (0, 4), (0, 3)], rows, strict=True):
            values = set_to | {"prefill": prefill, "decode": decode}
            one = llmgym.engine.state.Table(
                **{name: jnp.full(3, values.get(name, 0)) for name in table.__dataclass_fields__}
            )
            assert cached_tokens(one, samples).tolist() == [cached] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KVCache(0), "blocks"),
        (lambda: KVCache(10, -1), "block_size"),
        (lambda: KVCache(float("nan")), "blocks"),  # type: ignore[arg-type]
        (lambda: KVCache(2**24, 2**16), "blocks"),
        (lambda: KVCache(10, swap_tokens_per_ms=0.0), "swap_tokens_per_ms"),
        (lambda: KVCache(10, 16, True, 5.0), "choose one"),
        (lambda: KVCache(10, 16, 1), "prefix_caching must be True or False"),  # type: ignore[arg-type]
        (lambda: scenario("prompt"), "first_token"),
        (lambda: llmgym.Engine(llmgym.Affine(1, 1), 5, kv_cache=7), "KVCache"),  # type: ignore[arg-type]
        (lambda: baselines.make("vllm_v1", watermark=2.0), "watermark"),
        (lambda: baselines.make("vllm_v1", long_prefill_cap=-1), "long_prefill_cap"),
        (lambda: llmgym.Replay([0.0], [1], [1], priority=[0.5]), "priority"),
        (lambda: llmgym.Replay([0.0], [1], [1], priority=[1, 2]), "priority"),
    ],
)
def test_bad_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"kv_cache": KVCache(10, 32)}, "same block_size"),
        ({"first_token": "prefill"}, "same first_token"),
        ({"kv_cache": KVCache(10, prefix_caching=True)}, "all engines have prefix caching or none"),
    ],
)
def test_what_the_engines_of_a_network_must_share(second: dict[str, Any], message: str) -> None:
    one = llmgym.Engine(llmgym.Affine(1, 1), 5, kv_cache=KVCache(10), name="one")
    other = replace(one, name="other", **second)
    stages = (llmgym.Stage(2, 2, engine="one"), llmgym.Stage(2, 2, engine="other"))
    with pytest.raises(LLMGymError, match=message):
        llmgym.simulate(
            llmgym.Scenario((one, other), llmgym.JobType(llmgym.Poisson(1), stages)),
            "sarathi",
            duration_s=1,
        )


def test_scenario_files_hold_the_memory() -> None:
    one = scenario()
    again = toml_reader.loads(toml_writer.dumps(one))
    assert again == one
    assert again.engine.kv_cache == KVCache(20, 4)
    for cache in CACHES:
        other = scenario(cache=cache)
        assert toml_reader.loads(toml_writer.dumps(other)) == other
    replay = llmgym.Scenario(
        one.engines, llmgym.Replay([0.0, 1.0], [3, 4], [5, 6], priority=[1, 0])
    )
    again = toml_reader.loads(toml_writer.dumps(replay))
    assert list(again.workload.priority) == [1, 0]  # type: ignore[union-attr, arg-type]


def test_memory_that_weights_leave() -> None:
    # 0.9 * 80 GB - 16 GB = 56 GB, in blocks of 16 tokens of 131,072 bytes.
    assert KVCache.left_over(80, 16, 131_072) == KVCache(26_702, 16)
    assert KVCache.left_over(1, 0.5, 1e6, utilization=1, block_size=10) == KVCache(50, 10)
    for bad, message in [
        ((80, 72, 131_072), "leave no KV memory in 0.9 of 80 GB"),
        ((80, 16, 0), "bytes_per_token must be greater than 0"),
        ((80, 16, 131_072, 1.5), "utilization must be at most 1"),
        ((80, -1, 131_072), "weights_gb must be greater than 0"),
        ((float("nan"), 16, 131_072), "memory_gb must be finite"),
    ]:
        with pytest.raises(LLMGymError, match=message):
            KVCache.left_over(*bad)
