"""Prefix caching: what is found, what is forgotten first, and what theory may count on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.prefixes import SharedPrefix, check_ids, dense, known_tokens
from llmgym.traces.readers import read_trace


def engine(blocks: int, **settings: object) -> llmgym.Engine:
    cache = KVCache(blocks, 4, **settings)  # type: ignore[arg-type]
    return llmgym.Engine(llmgym.Affine(10.0, 1.0), 64, kv_cache=cache, first_token="prefill")


def played(
    prompts: list[int], ids: list[list[int]], blocks: int = 40, caching: bool = True
) -> llmgym.evaluation.simulate.Run:
    """One request a second, two output tokens each; stretches of 8 tokens, two blocks."""
    count = len(prompts)
    replay = llmgym.Replay(np.arange(count), prompts, [2] * count, prefix_ids=ids, prefix_tokens=8)
    one = llmgym.Scenario((engine(blocks, prefix_caching=caching),), replay, slots=8)
    return llmgym.simulate(one, "vllm_v1")


def computed(run: llmgym.evaluation.simulate.Run) -> list[int]:
    """Prompt tokens that each request computed: they come one at a time."""
    batches = run.batches[run.batches.prefill_tokens > 0]
    return batches.prefill_tokens.tolist()


def test_what_others_had_before_is_not_computed_again() -> None:
    prompts, ids = [20, 20, 18, 16, 30], [[0, 1, 2], [0, 1, 3], [0, 1], [0, 1], [7, 8]]
    run = played(prompts, ids)
    # 16 tokens are known; of a prompt of 16 the last block is computed, for its next token.
    assert computed(run) == [20, 4, 2, 4, 30]
    assert run.raw["found"].sum() == 16 + 16 + 12
    assert computed(played(prompts, ids, caching=False)) == prompts
    first = run.requests.first_token_ms - run.requests.arrival_ms
    assert first.tolist() == pytest.approx([30, 14, 12, 14, 40])


@pytest.mark.parametrize("prompt", [27, 31, 32, 63])
def test_the_longest_request_has_room_for_all_its_blocks(prompt: int) -> None:
    replay = llmgym.Replay([0.0], [prompt], [2], prefix_ids=[[0]], prefix_tokens=8)
    one = llmgym.Scenario((engine(40, prefix_caching=True),), replay, slots=8)
    sources = simulator.lower(one).prefixes
    assert sources is not None
    assert sources.most * sources.block_size >= prompt + 1  # one token comes with the prompt


@pytest.mark.slow
def test_the_longest_free_block_is_forgotten_first_and_the_end_before_the_beginning() -> None:
    ids = [[0, 1], [2, 3], [0, 1], [2, 3]]
    # Prompts of 16 and one output hold 5 blocks: with 10 both stay, but for the unfilled fifth.
    assert computed(played([16] * 4, ids, blocks=10)) == [16, 16, 4, 4]
    # With 7 the second takes the last two of the first request's four; the third finds the others.
    assert computed(played([16] * 3, ids[:3], blocks=7)) == [16, 16, 8]


@pytest.mark.slow
def test_memory_is_shared_at_the_same_time() -> None:
    """Two requests at once fit into 7 blocks only because 4 of them are the same."""
    replay = llmgym.Replay(
        [0.0, 0.0], [18, 18], [4, 4], prefix_ids=[[0, 1], [0, 1]], prefix_tokens=8
    )
    for caching, together in ((True, 2), (False, 1)):
        one = llmgym.Scenario((engine(7, prefix_caching=caching),), replay, slots=8)
        assert llmgym.simulate(one, "vllm_v1").batches.requests.max() == together


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["vllm_v1", "vllm_v1_priority", "sarathi"])
def test_environments_side_by_side_are_those_alone(policy: str) -> None:
    stage = llmgym.Stage(
        llmgym.Uniform(10, 30), llmgym.Uniform(1, 30), shared_prefix=SharedPrefix(12, variants=3)
    )
    work = llmgym.JobType(llmgym.Poisson(20), (stage,))
    one = llmgym.Scenario((engine(30, prefix_caching=True),), work, slots=24)
    several = llmgym.simulate(one, policy, duration_s=2, num_envs=3)
    alone = llmgym.simulate(one, policy, duration_s=2)
    mine = several.requests[several.requests.env == 0].reset_index(drop=True)
    assert mine.equals(alone.requests)
    assert several.raw["found"][..., 0].sum() > 0
    assert several.requests.preemptions.sum() > 0


def test_swapping_costs_time_and_loses_nothing() -> None:
    replay = llmgym.Replay([0.0, 0.0], [8, 8], [9, 9])
    runs = {}
    for name, settings in {"swap": {"swap_tokens_per_ms": 2.0}, "recompute": {}}.items():
        one = llmgym.Scenario((engine(6, **settings),), replay, slots=8)
        runs[name] = llmgym.simulate(one, "vllm_v1")
    # Both have 12 tokens, 3 blocks each, when the first wants a seventh block. The second goes out,
    # which takes 6 ms, and comes back when the first is done: 6 ms again.
    batches = runs["swap"].batches
    usual = 10 + batches.prefill_tokens + batches.decode_tokens
    extra = (batches.duration_ms - usual).round(6)
    assert extra[extra > 0].tolist() == [6.0, 6.0]
    served = {
        n: (r.batches.prefill_tokens + r.batches.decode_tokens).sum() for n, r in runs.items()
    }
    assert served == {"swap": 32, "recompute": 32 + 12}
    for run in runs.values():
        assert run.requests.preemptions.tolist() == [0, 1]
        assert run.requests.finish_ms.notna().all()


def test_capacity_counts_shared_tokens_once() -> None:
    stage = llmgym.Stage(llmgym.Fixed(40), llmgym.Fixed(4), shared_prefix=SharedPrefix(33))
    work = llmgym.JobType(llmgym.Poisson(1.0), (stage,))
    plain, caching = (
        llmgym.Scenario((engine(400, prefix_caching=c),), work, slots=64) for c in (False, True)
    )
    cut = llmgym.Workload(llmgym.Poisson(1.0), llmgym.Fixed(8), llmgym.Fixed(4))
    least = llmgym.Scenario((engine(400),), cut, slots=64)
    assert llmgym.capacity(caching).requests_per_s == llmgym.capacity(least).requests_per_s
    assert llmgym.capacity(plain).requests_per_s < llmgym.capacity(caching).requests_per_s


@pytest.mark.slow
def test_measured_capacity_comes_near_that_limit() -> None:
    stage = llmgym.Stage(llmgym.Fixed(40), llmgym.Fixed(4), shared_prefix=SharedPrefix(32))
    work = llmgym.JobType(llmgym.Poisson(1.0), (stage,))
    caching = llmgym.Scenario((engine(400, prefix_caching=True),), work, slots=64)
    limit = llmgym.capacity(caching).requests_per_s
    found = llmgym.estimate_capacity(caching, "vllm_v1", replications=2, requests=2000)
    assert 0.97 * limit < found.requests_per_s < 1.001 * limit


@pytest.mark.slow
def test_the_scenario_is_stable_because_of_it() -> None:
    one = llmgym.scenario("shared-prefix")
    cache = one.engine.kv_cache
    assert cache is not None
    without = one.override(kv_cache=replace(cache, prefix_caching=False))
    assert llmgym.stability(one, "vllm_v1", replications=2, horizon_s=60).verdict == "stable"
    assert llmgym.stability(without, "vllm_v1", replications=2, horizon_s=60).verdict == "unstable"


def test_known_tokens() -> None:
    ids = check_ids(dense([["a", "b"], ["a", "c", "d"], ["a", "c"], ["a", "c", "d"]]), 8, 4)
    assert ids[:, :3].tolist() == [[0, 1, -1], [0, 2, 3], [0, 2, -1], [0, 2, 3]]
    saved = known_tokens(ids, 8, np.array([16, 20, 14, 24]), 4)
    assert saved.tolist() == [0, 8, 12, 20]


def test_mooncake_prefixes(shared_data: Path) -> None:
    replay = read_trace(shared_data / "traces" / "mooncake_conversation_trace.jsonl")
    assert replay.prefix_ids is not None
    prompts, ids = np.asarray(replay.prefill_tokens), np.asarray(replay.prefix_ids)
    saved = known_tokens(ids, replay.prefix_tokens, prompts, 512)
    assert saved.sum() / prompts.sum() == pytest.approx(0.37, abs=0.015)  # as its source says
    few = replay.first(40)
    assert np.shape(few.prefix_ids) == (40, ids.shape[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefix_ids": [[1]]}, "1 rows for 2 requests"),
        ({"prefix_ids": [[1], [0.5]]}, "whole numbers"),
        ({"prefix_ids": [1, 2]}, "whole numbers"),
        ({"prefix_ids": [[-2], [1]]}, "from 0"),
        ({"prefix_ids": [[1], [2]], "prefix_tokens": 0}, "prefix_tokens"),
    ],
)
def test_bad_prefixes_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        llmgym.Replay([0.0, 1.0], [8, 8], [1, 1], **settings)  # type: ignore[arg-type]


def test_stretches_must_be_whole_blocks() -> None:
    replay = llmgym.Replay([0.0], [8], [1], prefix_ids=[[1]], prefix_tokens=6)
    one = llmgym.Scenario((engine(9, prefix_caching=True),), replay)
    with pytest.raises(LLMGymError, match="choose a block_size that divides 6"):
        llmgym.simulate(one, "vllm_v1")
    with pytest.raises(LLMGymError, match="tokens of a shared prefix"):
        SharedPrefix(0)
    assert replace(SharedPrefix(3), variants=2).variants == 2
