"""The rate that KV memory allows, against simulation."""

from __future__ import annotations

import numpy as np
import pytest

import llmgym
from llmgym import baselines
from llmgym.core.errors import LLMGymError
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.request_size import longest_request
from llmgym.theory.kv_memory import memory_bound, token_iterations

MIXES = {
    "even": (llmgym.Uniform(20, 60), llmgym.Uniform(20, 60)),
    "prompts": (llmgym.Uniform(100, 200), llmgym.Uniform(5, 15)),
    "outputs": (llmgym.Fixed(10), llmgym.Uniform(50, 150)),
}
CHUNK, ITERATION_MS = 32, 10.0


def scenario(mix: str, tokens: int = 4000, first_token: str = "decode") -> llmgym.Scenario:
    """Iterations of 10 ms whatever is in them, and a budget that never binds: only memory counts."""
    work = llmgym.Workload(llmgym.Poisson(1.0), *MIXES[mix])
    return llmgym.Scenario.single_engine(
        llmgym.Affine(ITERATION_MS, 0.0),
        8192,
        work,
        kv_cache=KVCache(tokens, 1),
        first_token=first_token,
        slots=512,
    )


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize(("prompt", "output"), [(64, 5), (70, 1), (1, 9), (32, 0)])
def test_a_request_holds_what_it_holds(prompt: int, output: int, first_token: str) -> None:
    """The footprint of one request, added up iteration by iteration."""
    replay = llmgym.Replay([0.0], [prompt], [output])
    base = llmgym.Scenario(scenario("even", first_token=first_token).engines, replay, slots=4)
    footprint, tokens = 0, 0
    while tokens < prompt:
        tokens = min(tokens + CHUNK, prompt)
        footprint += tokens
    for j in range(1, max(output - (first_token == "prefill"), 0) + 1):
        footprint += prompt + j
    assert token_iterations(base, CHUNK) == footprint


def test_context_that_a_call_inherits_is_held_too() -> None:
    """The prompt of the second call is all of the first and its own; the third is elsewhere."""
    stages = (
        llmgym.Stage(40, 3, engine="a", name="first"),
        llmgym.Stage(20, 2, engine="a", name="second", after="first", inherits=True),
        llmgym.Stage(500, 9, engine="b", name="third", after="second"),
    )
    engines = tuple(llmgym.Engine(llmgym.Affine(ITERATION_MS, 0.0), 8192, name=n) for n in "ab")
    network = llmgym.Scenario(engines, (llmgym.JobType(llmgym.Poisson(1), stages, name="job"),))
    footprint = 0
    for prompt, output in ((40, 3), (40 + 3 + 20, 2)):
        held = [min(end, prompt) for end in range(CHUNK, prompt + CHUNK, CHUNK)]
        footprint += sum(held) + sum(prompt + j for j in range(1, output + 1))
    assert token_iterations(network, CHUNK, network.engines[0]) == footprint
    assert token_iterations(network, CHUNK) == footprint


def test_mean_over_the_distribution() -> None:
    rng = np.random.default_rng(0)
    prompts, outputs = rng.integers(20, 61, 200_000), rng.integers(20, 61, 200_000)
    one = llmgym.Scenario(
        scenario("even").engines,
        llmgym.Replay(np.zeros(prompts.size), prompts, outputs),
        slots=4,
    )
    assert token_iterations(scenario("even"), CHUNK) == pytest.approx(
        token_iterations(one, CHUNK), rel=0.01
    )
    assert longest_request(scenario("even")) == 120
    assert longest_request(scenario("even", first_token="prefill")) == 119


def test_capacity_solves_both_bounds_together() -> None:
    for mix in MIXES:
        base = scenario(mix)
        # A whole prompt in one iteration: the least that it can hold.
        bound = memory_bound(base, ITERATION_MS)
        found = llmgym.capacity(base)
        assert found.requests_per_s == pytest.approx(bound.requests_per_s, rel=1e-6)
        plenty = llmgym.capacity(scenario(mix, tokens=10**7)).requests_per_s
        tokens = scenario(mix).mean_prefill + scenario(mix).mean_decode
        assert plenty == pytest.approx(8192 / ITERATION_MS * 1000 / tokens)
    # Where both bind, together they allow less than each alone.
    work = llmgym.Workload(llmgym.Poisson(1.0), llmgym.Fixed(129), llmgym.Fixed(112))
    free = llmgym.Scenario.single_engine(llmgym.CODELLAMA_34B_A100, 512, work)
    limit = llmgym.capacity(free).requests_per_s
    tight = llmgym.Scenario.single_engine(
        llmgym.CODELLAMA_34B_A100, 512, work, kv_cache=KVCache(15_000, 1)
    )
    both = llmgym.capacity(tight).requests_per_s
    alone = memory_bound(tight, 11.28 + 35.47).requests_per_s  # in the shortest iterations
    assert both < 0.99 * min(limit, alone)


def test_a_first_token_with_the_prompt_is_one_decode_less() -> None:
    work = llmgym.Workload(llmgym.Poisson(1.0), llmgym.Fixed(30), llmgym.Fixed(11))
    rates = {
        mode: llmgym.capacity(
            llmgym.Scenario.single_engine(llmgym.Affine(1, 0.1), 64, work, first_token=mode)
        ).requests_per_s
        for mode in ("decode", "prefill")
    }
    assert rates["prefill"] / rates["decode"] == pytest.approx(41 / 40)


def test_bad_input() -> None:
    with pytest.raises(LLMGymError, match="iteration_ms"):
        memory_bound(scenario("even"), float("nan"))
    with pytest.raises(LLMGymError, match="chunk_tokens"):
        memory_bound(scenario("even"), 1.0, 0)
    with pytest.raises(LLMGymError, match="kv_cache"):
        memory_bound(llmgym.scenario("geometric"), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
def test_stable_below_and_unstable_above(mix: str) -> None:
    base = scenario(mix)
    bound = memory_bound(base, ITERATION_MS, CHUNK)
    policy = baselines.make("vllm_v1", long_prefill_cap=CHUNK)
    below = llmgym.stability(base.at_rate(0.9 * bound.stable_per_s), policy)
    assert below.verdict == "stable", below
    above = llmgym.stability(base.at_rate(1.1 * bound.requests_per_s), policy)
    assert above.verdict == "unstable", above
