"""Flow control: who is activated and who is evicted, the peak of memory, the queue, and stability."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import Slot, batch, decoding, show, tokens, waiting

import llmgym
from llmgym import baselines
from llmgym.baselines.flow_control import _due
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.engine.fill import clip
from llmgym.engine.view import Batch
from llmgym.evaluation import rollout
from llmgym.evaluation.policies import compose
from llmgym.scenario.kv_cache import KVCache
from llmgym.theory import flow_control, mean_waiting

LINE = [
    decoding(),
    waiting(3),
    waiting(4, job_class=1),
    waiting(5),
    waiting(6, job_class=1),
    waiting(7),
]


def test_a_slot_activates_so_many_of_each_class_in_order_of_arrival() -> None:
    view = show(LINE, classes=2)
    assert tokens("flow_control", view, activations=1) == [1, 3, 4, 0, 0, 0]
    assert tokens("flow_control", view, activations=(2, 1)) == [1, 3, 4, 5, 0, 0]
    assert tokens("flow_control", view, activations=(1, 2)) == [1, 3, 4, 0, 6, 0]
    assert tokens("flow_control", view) == [1, 3, 4, 5, 6, 7]  # memory without limit
    assert tokens("flow_control", show(LINE, budget=6, classes=2), activations=1) == [
        1,
        3,
        2,
        0,
        0,
        0,
    ]
    with pytest.raises(LLMGymError, match="3 entries, and the scenario has 2 classes"):
        tokens("flow_control", view, activations=(1, 1, 1))


def test_fractions_are_spread_over_the_iterations() -> None:
    slots = [decoding(), waiting(3), waiting(4)]
    got = [tokens("flow_control", show(slots, batches=n), activations=0.5) for n in range(4)]
    assert got == [[1, 0, 0], [1, 3, 0], [1, 0, 0], [1, 3, 0]]
    alone = show([waiting(3), waiting(4)])
    assert tokens("flow_control", alone, activations=0.1) == [3, 0]


@given(rate=st.floats(1e-3, 40), start=st.integers(0, 2**31 - 200))
@settings(max_examples=40, deadline=None)
def test_any_stretch_of_iterations_activates_its_share(rate: float, start: int) -> None:
    view = show([waiting(1)])
    numbers = jnp.arange(start, start + 100, dtype=jnp.int32)
    due = np.asarray(jax.vmap(lambda n: _due(replace(view, batches=n), rate))(numbers))
    assert set(due) <= {np.floor(rate), np.floor(rate) + 1}
    # Shares come in steps of 2**-16, cut off.
    assert abs(due.sum() - 100 * rate) <= 1 + 100 * 2**-16


def test_by_default_as_many_are_activated_as_memory_holds() -> None:
    # l = 100 and o = 9: 100 + 900 + 45 token-slots, or 900 + 36 where the prompt yields an output.
    slots = [decoding(prompt=3), *[waiting(3)] * 4, *[waiting(3, job_class=1)] * 4]
    for first_token, held in (("decode", 1045), ("prefill", 936)):
        for memory, each in ((4 * held, 2), (4 * held - 1, 1), (2 * held, 1)):
            view = show(slots, blocks=memory, classes=2, first_token=first_token)
            line = [3] * each + [0] * (4 - each)
            assert tokens("flow_control", view) == [1, *line, *line]
            drawn = tokens("flow_control_eviction", view)
            assert sum(drawn[1:]) in (3 * np.floor(memory / held), 3 * np.ceil(memory / held))


def test_newcomers_wait_for_memory() -> None:
    view = show([decoding(prompt=9), waiting(5), waiting(6)], blocks=22)
    assert tokens("flow_control", view, activations=2) == [1, 5, 6]
    view = show([decoding(prompt=9), waiting(5), waiting(6)], blocks=21)
    assert tokens("flow_control", view, activations=2) == [1, 5, 0]


def evicted(slots: list[Slot], blocks: int, **chosen: Any) -> tuple[list[int], list[int]]:
    """Tokens and evictions of Algorithm 2; the engine must have nothing to add."""
    view = show(slots, blocks=blocks)
    asked = batch("flow_control_eviction", view, **chosen)
    assert asked.preempt is not None
    with jax.disable_jit():
        ran, clipped = clip(view, asked)
    assert not clipped
    assert ran.preempt is not None
    assert (ran.preempt == asked.preempt).all()
    return asked.tokens.tolist(), asked.preempt.astype(int).tolist()


def test_the_newest_activations_are_evicted_until_the_others_fit() -> None:
    # They hold 10, 20 and 10 tokens and want one more each; the second was activated first.
    slots = [decoding(9, admitted=3), decoding(19, admitted=1), decoding(9, admitted=3)]
    assert evicted(slots, 43) == ([1, 1, 1], [0, 0, 0])
    assert evicted(slots, 42) == ([1, 1, 0], [0, 0, 1])
    assert evicted(slots, 32) == ([1, 1, 0], [0, 0, 1])
    assert evicted(slots, 31) == ([0, 1, 0], [1, 0, 1])
    # A newcomer is the newest of all.
    more = [*slots, waiting(5)]
    assert evicted(more, 48, activations=1) == ([1, 1, 1, 5], [0, 0, 0, 0])
    assert evicted(more, 47, activations=1) == ([1, 1, 1, 0], [0, 0, 0, 0])
    assert evicted(more, 42, activations=1) == ([1, 1, 0, 0], [0, 0, 1, 0])


def test_activations_are_drawn_with_their_mean() -> None:
    policy = baselines.make("flow_control_eviction", activations=2.3)

    @jax.jit
    def number(key: jax.Array) -> jax.Array:
        return jnp.sum(policy(key, show([decoding(), *[waiting(1)] * 6])).tokens) - 1

    drawn = np.asarray(jax.vmap(number)(jax.random.split(jax.random.key(0), 2000)))
    assert set(drawn) == {2, 3}
    assert drawn.mean() == pytest.approx(2.3, abs=4 * np.sqrt(0.21 / 2000))
    alone = show([waiting(3), waiting(4)])
    assert tokens("flow_control_eviction", alone, activations=0.01) == [3, 0]


SLOTS, ENVS = 1500, 8


@partial(jax.jit, static_argnames=("policy", "length"))
def watch(
    policy: baselines.Policy, physics: simulator.Params, state: Any, key: jax.Array, length: int
) -> dict[str, jax.Array]:
    """What happens in every slot: memory held at its end, who waits, who is preempted."""

    def body(state: Any, _: None) -> tuple[Any, dict[str, jax.Array]]:
        view = simulator.view(physics, state)
        asked = compose(policy, rollout.policy_key(key, state.steps), view)
        after, info = simulator.step(physics, state, asked)
        assert view.memory is not None
        gone = jnp.zeros_like(view.live) if info.batch.preempt is None else info.batch.preempt
        waits = view.live & ~view.memory.resident & (info.batch.tokens == 0)
        queues = [waits & (view.job_class == k) for k in range(view.classes.count)]
        return after, {
            "held": jnp.sum(jnp.where(gone, 0, view.memory.cached + info.batch.tokens), axis=0),
            "waiting": jnp.stack([jnp.sum(queue, axis=0) for queue in queues]),
            "preempted": info.preempted,
            "clipped": info.clipped,
            "duration": info.duration,
            "dropped": after.totals.dropped,
        }

    return jax.lax.scan(body, state, length=length)[1]


def observe(policy: Any, scenario: llmgym.Scenario, burst: int = 0, length: int = SLOTS) -> Any:
    """The same as NumPy arrays, slots first, environments last."""
    physics, key = simulator.lower(scenario, burst), rollout.keys(0, ENVS)
    return jax.device_get(watch(policy, physics, rollout.start(physics, key), key, length))


FOUR = baselines.make("flow_control", activations=(4, 4, 4))


def test_the_published_peak_of_memory_and_the_published_queue() -> None:
    """Peak 16,240 of 16,492 tokens, and 0.801 requests waiting in each class at 3 arrivals a slot."""
    scenario = llmgym.scenario("flow-control", slots=1024)
    verdict = flow_control(scenario, FOUR.activations)
    assert (verdict.verdict, verdict.peak_tokens) == ("stable", 16240)

    full = observe(FOUR, scenario, burst=150)  # enough for 4 of each class in 60 slots and more
    assert (full["waiting"][:60] > 0).all()
    assert (full["held"].max(axis=0) == verdict.peak_tokens).all()
    assert (full["held"][59] == verdict.peak_tokens).all()  # the longest class is complete then
    assert (full["duration"] == 2000).all()
    assert not full["preempted"].any()
    assert not full["clipped"].any()
    assert not full["dropped"].any()

    calm = observe(FOUR, scenario)
    assert calm["held"].max() < verdict.peak_tokens
    assert not calm["preempted"].any()
    check_queue(calm["waiting"][100:])


def check_queue(waiting: np.ndarray) -> float:
    """Its 99.9 % interval over environments and classes has the exact value; returns half of it."""
    means = waiting.mean(axis=0).ravel()
    half = 3.5 * means.std(ddof=1) / np.sqrt(means.size)
    assert abs(means.mean() - mean_waiting(3.0, 4)) < half
    return float(half)


@pytest.mark.slow
def test_the_published_queue_to_two_percent() -> None:
    scenario = llmgym.scenario("flow-control", slots=1024)
    calm = observe(FOUR, scenario, length=60_000)
    assert not calm["preempted"].any()
    assert check_queue(calm["waiting"][100:]) < 0.02 * mean_waiting(3.0, 4)


def small(arrivals: float, first_token: str = "prefill") -> llmgym.Scenario:
    """Two classes of 22 and 60 token-slots; memory has room for 2 activations of each."""
    jobs = tuple(
        llmgym.JobType(
            llmgym.Poisson(arrivals / 0.02),
            (llmgym.Stage(llmgym.Fixed(4), llmgym.Fixed(output)),),
            name=f"{output}",
        )
        for output in (4, 8)
    )
    return llmgym.Scenario.single_engine(
        llmgym.Affine(20.0, 0.0),
        64,
        jobs,
        kv_cache=KVCache(170, 1),
        first_token=first_token,
        slots=256,
    )


@pytest.mark.slow
def test_eviction_keeps_memory_and_the_engine_preempts_nobody_else() -> None:
    policy = baselines.make("flow_control_eviction", activations=4.5)
    seen = observe(policy, small(2.0), burst=60, length=400)
    assert seen["held"].max() <= 170
    assert seen["held"].max() > 160
    assert seen["preempted"].sum() > 100
    assert not seen["clipped"].any()


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        ("flow_control", {"activations": 2}),
        pytest.param("flow_control_eviction", {"activations": 3.8}, marks=pytest.mark.slow),
        pytest.param("vllm_v1", {}, marks=pytest.mark.slow),
    ],
)
def test_stable_inside_the_conditions_and_unstable_beyond_memory(
    policy: str, chosen: dict[str, Any]
) -> None:
    made = baselines.make(policy, **chosen)
    inside, beyond = small(1.7), small(2.2)
    assert flow_control(inside).verdict == "stable"
    assert flow_control(beyond, 2).verdict == "unstable"
    below = llmgym.stability(inside, made)
    assert below.verdict == "stable", below
    above = llmgym.stability(beyond, made)
    assert above.verdict == "unstable", above


@pytest.mark.slow
def test_fewer_activations_than_arrivals_are_unstable() -> None:
    assert flow_control(small(1.7), 1).verdict == "undecided"
    verdict = llmgym.stability(small(1.7), baselines.make("flow_control", activations=(2, 1)))
    assert verdict.verdict == "unstable", verdict


@pytest.mark.slow
@pytest.mark.parametrize("policy", [FOUR, "flow_control", "vllm_v1"])
def test_the_shipped_scenarios_lie_on_either_side(policy: Any) -> None:
    inside, beyond = (llmgym.scenario(n) for n in ("flow-control", "flow-control-overloaded"))
    below = llmgym.stability(inside, policy, replications=4)
    assert below.verdict == "stable", below
    above = llmgym.stability(beyond, policy, replications=4)
    assert above.verdict == "unstable", above


def test_memory_knows_whether_prompts_yield_an_output() -> None:
    for first_token, samples in (("prefill", True), ("decode", False)):
        physics = simulator.lower(small(1.0, first_token))

        def look(key: jax.Array, physics: Any = physics) -> llmgym.View:
            return simulator.view(physics, simulator.init(physics, key))

        memory = jax.eval_shape(look, rollout.keys(0, 1)).memory
        assert memory is not None
        assert memory.prompt_samples is samples


def test_batches_that_name_nobody_preempt_nobody() -> None:
    view = show([decoding(9), decoding(9)], blocks=22)
    assert batch("flow_control_eviction", view).preempt is not None
    assert isinstance(batch("flow_control", view), Batch)
    assert batch("flow_control", view).preempt is None
