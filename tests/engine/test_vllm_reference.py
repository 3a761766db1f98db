"""The plain model of vLLM's V1 scheduler: against recorded batches, and what must hold of any batch."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from vllm_reference import random_case, schedule

CASES, SEEDS = 32, range(200)
WIDE = {
    "max_num_batched_tokens": 64,
    "max_num_seqs": 8,
    "block_size": 4,
    "num_blocks_incl_null": 101,
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": 0,
    "policy": "fcfs",
    "enable_prefix_caching": False,
    "scheduler_reserve_full_isl": True,
    "watermark": 0.0,
    "prefill_schedule_interval": 1,
    "max_model_len": 8192,
}
"""Memory and budget for every small workload below."""


def workload(*rows: tuple[int, int, int] | tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Rows of (arrival step, prompt, outputs[, priority]); ids are 0, 1, ..."""
    names = ("arrival_step", "prompt_len", "output_len", "priority")
    padded = [(*row, 0)[:4] for row in rows]
    return [{"id": str(n), **dict(zip(names, row, strict=True))} for n, row in enumerate(padded)]


def batches(steps: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Tokens of each request in each step."""
    return [{entry["id"]: entry["tokens"] for entry in step["scheduled"]} for step in steps]


@pytest.fixture(scope="module")
def recorded(shared_data: Path) -> dict[str, Any]:
    file = shared_data / "vllm_scheduler" / "batches.json.gz"
    with gzip.open(file, "rt") as text:
        data: dict[str, Any] = json.load(text)
    assert len(data["cases"]) == CASES
    return data


@pytest.mark.parametrize("number", range(CASES))
def test_every_step_of_a_recorded_case_is_equal(recorded: dict[str, Any], number: int) -> None:
    case = recorded["cases"][number]
    steps = schedule(recorded["workloads"][case["workload"]], case["config"])
    for step, expected in zip(steps, case["steps"], strict=False):
        differ = [key for key in expected if step[key] != expected[key]]
        assert step == expected, f"{case['name']}, step {expected['step']}: {differ} differ"
    assert len(steps) == case["n_steps"] == len(case["steps"]), case["name"]
    assert sum(len(step["preempted"]) for step in steps) == case["n_preemptions"]


def test_every_recorded_step_is_compared(recorded: dict[str, Any]) -> None:
    assert sum(len(case["steps"]) for case in recorded["cases"]) == 2464


def test_random_cases_often_preempt() -> None:
    counts = [sum(len(s["preempted"]) for s in schedule(*random_case(seed))) for seed in SEEDS]
    assert sum(count > 0 for count in counts) > len(SEEDS) // 3
    assert any(
        len(step["preempted"]) > 1 for seed in SEEDS for step in schedule(*random_case(seed))
    )


@pytest.mark.parametrize("caching", [False, True])
def test_no_step_exceeds_a_limit(caching: bool) -> None:
    for seed in SEEDS:
        requests, config = random_case(seed, caching)
        usable = config["num_blocks_incl_null"] - 1
        for step in schedule(requests, config):
            assert step["total_tokens"] == sum(entry["tokens"] for entry in step["scheduled"])
            assert step["total_tokens"] <= config["max_num_batched_tokens"]
            assert all(entry["tokens"] > 0 for entry in step["scheduled"])
            assert len(step["running_after_schedule"]) <= config["max_num_seqs"]
            assert 0 <= step["free_blocks_after_schedule"] <= step["free_blocks_after_update"]
            assert step["free_blocks_after_update"] <= usable


@pytest.mark.parametrize("caching", [False, True])
def test_everyone_finishes_and_memory_is_free_again(caching: bool) -> None:
    for seed in SEEDS:
        requests, config = random_case(seed, caching)
        steps = schedule(requests, config)
        finished = [name for step in steps for name in step["finished"]]
        assert sorted(finished) == sorted(row["id"] for row in requests)
        assert steps[-1]["free_blocks_after_update"] == config["num_blocks_incl_null"] - 1


def test_blocks_are_those_of_the_tokens_in_memory() -> None:
    for seed in SEEDS:
        requests, config = random_case(seed)
        stored: Counter[str] = Counter()
        for step in schedule(requests, config):
            for name in step["preempted"]:
                stored[name] = 0
            for entry in step["scheduled"]:
                assert entry["computed_before"] == stored[entry["id"]]
                stored[entry["id"]] += entry["tokens"]
            for key, leaving in (("schedule", ()), ("update", step["finished"])):
                for name in leaving:
                    stored[name] = 0
                used = sum(-(-tokens // config["block_size"]) for tokens in stored.values())
                free = step[f"free_blocks_after_{key}"]
                assert free + used == config["num_blocks_incl_null"] - 1


@pytest.mark.parametrize("caching", [False, True])
def test_a_request_costs_its_tokens_and_those_computed_again(caching: bool) -> None:
    for seed in SEEDS:
        requests, config = random_case(seed, caching)
        cost, stored, lost, hit, outputs = (Counter[str]() for _ in range(5))
        for step in schedule(requests, config):
            for name in step["preempted"]:
                lost[name] += stored.pop(name)
            for entry in step["scheduled"]:
                name = entry["id"]
                if name not in stored:  # admitted
                    stored[name] = entry["computed_before"]
                    hit[name] += stored[name]
                    assert stored[name] % config["block_size"] == 0
                cost[name] += entry["tokens"]
                stored[name] += entry["tokens"]
                outputs[name] += entry["samples"]
        assert caching or not hit.total()
        for row in requests:
            name, most = row["id"], config["max_model_len"] - row["prompt_len"]
            assert outputs[name] == min(row["output_len"], most)
            assert cost[name] == row["prompt_len"] + outputs[name] - 1 + lost[name] - hit[name]


def test_prefix_caching_saves_tokens() -> None:
    saved = 0
    for seed in SEEDS:
        requests, config = random_case(seed, prefix_caching=True)
        without = schedule(requests, config | {"enable_prefix_caching": False})
        saved += sum(step["total_tokens"] for step in without)
        saved -= sum(step["total_tokens"] for step in schedule(requests, config))
    assert saved > 0


def test_one_request_may_preempt_several() -> None:
    """A chunk of two blocks: the last admitted goes first and waits behind the other."""
    rows = workload((0, 8, 1), (0, 2, 2), (0, 2, 2))
    tight = {"num_blocks_incl_null": 5, "block_size": 2, "scheduler_reserve_full_isl": False}
    capped = {"max_num_batched_tokens": 8, "long_prefill_token_threshold": 4}
    steps = schedule(rows, WIDE | tight | capped)
    assert batches(steps)[:2] == [{"0": 4, "1": 2, "2": 2}, {"0": 4}]
    assert steps[1]["preempted"] == ["2", "1"]
    assert steps[1]["waiting_after_schedule"] == ["1", "2"]


def test_a_preempted_request_leaves_the_batch_it_was_in() -> None:
    """The more urgent request 1 needs a block when request 0 is scheduled already."""
    rows = workload((0, 5, 9, 1), (1, 7, 9, 0))
    steps = schedule(rows, WIDE | {"policy": "priority", "num_blocks_incl_null": 5})
    assert batches(steps)[:4] == [{"0": 5}, {"0": 1, "1": 7}, {"0": 1, "1": 1}, {"1": 1}]
    assert steps[3]["preempted"] == steps[3]["waiting_after_schedule"] == ["0"]
    assert steps[3]["running_after_schedule"] == ["1"]


def test_tokens_of_a_preempted_request_return_to_the_budget() -> None:
    """Request 2, last in the scan, has two tokens of six, as request 0 gave its own back."""
    rows = workload((0, 2, 9, 2), (1, 11, 1, 0), (1, 8, 1, 1))
    tight = {"num_blocks_incl_null": 7, "block_size": 2, "scheduler_reserve_full_isl": False}
    capped = {"max_num_batched_tokens": 6, "long_prefill_token_threshold": 4}
    steps = schedule(rows, WIDE | tight | capped | {"policy": "priority"})
    assert batches(steps)[:3] == [{"0": 2}, {"0": 1, "1": 4, "2": 1}, {"1": 4, "2": 2}]
    assert steps[2]["preempted"] == ["0"]


def test_a_preempted_request_gives_its_tokens_to_those_behind_only() -> None:
    """The chunk of request 1, for which request 0 had to leave, was set before and stays five."""
    rows = workload((0, 2, 9, 2), (1, 11, 1, 0))
    tight = {"num_blocks_incl_null": 7, "block_size": 2, "scheduler_reserve_full_isl": False}
    steps = schedule(rows, WIDE | tight | {"max_num_batched_tokens": 6, "policy": "priority"})
    assert batches(steps)[:4] == [{"0": 2}, {"0": 1, "1": 5}, {"1": 5}, {"1": 1}]


def test_a_request_that_preempts_itself_ends_the_scan() -> None:
    """Request 0 comes first and is the least urgent: request 1 behind it gets nothing."""
    rows = workload((0, 6, 9, 1), (1, 7, 9, 0))
    steps = schedule(rows, WIDE | {"policy": "priority", "num_blocks_incl_null": 5})
    assert batches(steps)[2:5] == [{"0": 1, "1": 1}, {}, {"1": 1}]
    assert steps[3]["preempted"] == ["0"] and steps[3]["running_after_schedule"] == ["1"]


def test_watermark_holds_back_all_but_the_first() -> None:
    rows = workload((0, 8, 3), (0, 8, 3))
    free = WIDE | {"num_blocks_incl_null": 6}
    assert batches(schedule(rows, free))[0] == {"0": 8, "1": 8}
    held = schedule(rows, free | {"watermark": 0.34})  # 2 of 6 blocks, though 5 are usable
    assert batches(held)[0] == {"0": 8} and held[0]["free_blocks_after_schedule"] == 3
    alone = schedule(workload((0, 20, 1)), free | {"watermark": 0.34})
    assert batches(alone) == [{"0": 20}]


def test_reserving_the_whole_prompt_holds_back_what_a_chunk_would_not() -> None:
    rows = workload((0, 8, 2), (0, 12, 1))
    tight = WIDE | {"num_blocks_incl_null": 5, "max_num_batched_tokens": 12}
    assert batches(schedule(rows, tight))[0] == {"0": 8}
    bold = schedule(rows, tight | {"scheduler_reserve_full_isl": False})
    assert batches(bold)[0] == {"0": 8, "1": 4}


def test_whole_prompts_wait_for_a_budget_that_holds_them() -> None:
    rows = workload((0, 20, 2), (0, 15, 1), (0, 5, 1))
    whole = WIDE | {"enable_chunked_prefill": False, "max_num_batched_tokens": 30}
    assert batches(schedule(rows, whole)) == [{"0": 20}, {"0": 1, "1": 15, "2": 5}]


def test_long_prefill_cap_spares_a_request_that_is_alone() -> None:
    rows = workload((0, 30, 1), (1, 30, 1))
    capped = WIDE | {"long_prefill_token_threshold": 10, "max_num_batched_tokens": 24}
    assert batches(schedule(rows, capped)) == [
        {"0": 24},
        {"0": 6, "1": 10},
        {"1": 20},
    ]


def test_prefill_interval_defers_prefills_while_someone_decodes() -> None:
    """Steps 0, 3, 6 admit; with nobody to decode any step does."""
    rows = workload((0, 4, 6), (1, 8, 1), (6, 4, 1))
    assert batches(schedule(rows, WIDE | {"prefill_schedule_interval": 3})) == [
        {"0": 4},
        {"0": 1},
        {"0": 1},
        {"0": 1, "1": 8},
        {"0": 1},
        {"0": 1},
        {"2": 4},
    ]
    late = schedule(workload((1, 4, 1)), WIDE | {"prefill_schedule_interval": 3})
    assert batches(late) == [{}, {"0": 4}]


def test_prefill_interval_is_lifted_while_a_backlog_is_left() -> None:
    rows = workload((0, 4, 6), (0, 4, 1), (0, 4, 1))
    config = WIDE | {"prefill_schedule_interval": 9, "max_num_seqs": 2}
    assert batches(schedule(rows, config))[:2] == [{"0": 4, "1": 4}, {"0": 1, "2": 4}]


def test_prefill_interval_defers_chunks_and_prompts_of_more_than_one_token() -> None:
    rows = workload((0, 4, 9), (0, 10, 1), (1, 8, 1), (1, 1, 1))
    config = WIDE | {"prefill_schedule_interval": 3, "max_num_batched_tokens": 8}
    steps = schedule(rows, config)
    assert batches(steps)[:4] == [
        {"0": 4, "1": 4},
        {"0": 1, "3": 1},
        {"0": 1},
        {"0": 1, "1": 6, "2": 1},
    ]


def test_a_step_that_preempts_says_nothing_of_a_backlog() -> None:
    """Step 3 may admit, but request 1 leaves in it: step 4 defers as if there had been no step 3."""
    rows = workload((0, 6, 9), (0, 6, 9))
    tight = {"num_blocks_incl_null": 6, "scheduler_reserve_full_isl": False}
    config = WIDE | tight | {"prefill_schedule_interval": 3, "long_prefill_token_threshold": 8}
    steps = schedule(rows, config)
    assert steps[3]["preempted"] == ["1"]
    assert batches(steps)[3:7] == [{"0": 1}, {"0": 1}, {"0": 1}, {"0": 1, "1": 8}]


def test_max_model_len_ends_a_request() -> None:
    steps = schedule(workload((0, 6, 9)), WIDE | {"max_model_len": 10})
    assert batches(steps) == [{"0": 6}, {"0": 1}, {"0": 1}, {"0": 1}]


def test_blocks_longest_free_are_forgotten_first() -> None:
    """Of what request 0 left, request 1 overwrites nothing, the second block, or both."""
    rows = workload((0, 9, 1), (1, 9, 1), (2, 9, 1))
    for row, first in zip(rows, (0, 50, 0), strict=True):
        row["prompt_token_ids"] = list(range(first, first + 9))
    for usable, hit in ((5, 8), (4, 4), (3, 0)):
        config = WIDE | {"enable_prefix_caching": True, "num_blocks_incl_null": usable + 1}
        assert schedule(rows, config)[2]["scheduled"][0]["computed_before"] == hit


def test_at_least_one_token_is_computed_after_a_hit() -> None:
    rows = workload((0, 8, 1), (0, 8, 1), (1, 9, 1))
    for row in rows:
        row["prompt_token_ids"] = list(range(row["prompt_len"]))
    steps = schedule(rows, WIDE | {"enable_prefix_caching": True})
    assert batches(steps) == [{"0": 8, "1": 4}, {"2": 1}]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_blocks_incl_null": 8}, "memory for 29 tokens, there is 28"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 28}, "budget is 28"),
        ({"max_model_len": 20}, "max_model_len is 20"),
        ({"policy": "sjf"}, "'fcfs' or 'priority'"),
        ({"max_num_seqs": 0}, "at least 1"),
    ],
)
def test_what_could_never_run_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule(workload((0, 20, 10)), WIDE | config)


@pytest.mark.parametrize("row", [(0, 0, 1), (0, 1, 0), (-1, 1, 1)])
def test_requests_that_are_none_are_refused(row: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="request 0: lengths must be at least 1"):
        schedule(workload(row), WIDE)


def test_a_request_that_just_fits_is_served() -> None:
    steps = schedule(workload((0, 20, 9)), WIDE | {"num_blocks_incl_null": 8})
    assert steps[-1]["finished"] == ["0"]
    assert min(step["free_blocks_after_schedule"] for step in steps) == 0
