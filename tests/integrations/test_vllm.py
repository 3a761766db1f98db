"""The vllm_v1 baselines through the engine: recorded batches of vLLM, and the plain-Python scheduler."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import vllm_reference

from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.integrations import vllm
from llmgym.integrations.vllm import schedule

REQUESTS = 10
PROMPT, OUTPUT = 40, 30

Case = tuple[list[dict[str, Any]], dict[str, Any]]


def assert_equal(got: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for mine, theirs in zip(got, expected, strict=False):
        assert mine == theirs
    assert len(got) == len(expected)


# Cases that between them have every option; all of them are in the slow set.
QUICK = (
    "kv_growth6|num_blocks_incl_null=13",
    "prio8|num_blocks_incl_null=20",
    "shared_prefix6|enable_prefix_caching=True",
)


def recorded_cases(shared_data: Path, every: bool) -> list[tuple[dict[str, Any], Any]]:
    """All 32 cases or the quick ones, each with its workload."""
    with gzip.open(shared_data / "vllm_scheduler" / "batches.json.gz") as file:
        recorded = json.load(file)
    cases = [c for c in recorded["cases"] if every or c["name"].startswith(QUICK)]
    assert len(cases) == (32 if every else 3)
    return [(case, recorded["workloads"][case["workload"]]) for case in cases]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_batches_are_those_of_vllm(shared_data: Path, every: bool) -> None:
    for case, workload in recorded_cases(shared_data, every):
        assert_equal(schedule(workload, case["config"]), case["steps"])


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_station_of_a_network_forms_the_batches_of_vllm(shared_data: Path, every: bool) -> None:
    for case, workload in recorded_cases(shared_data, every):
        if case["config"]["policy"] == "priority" and not every:
            continue  # the order of the queue is the policy's, station or not
        scenario, policy = vllm.scenario_of(workload, case["config"])
        network = simulator.lower(scenario, as_network=True)
        assert_equal(vllm.run(network, policy, workload), case["steps"])


def settings(number: int) -> dict[str, Any]:
    """What is compiled into the engine: drawn once for many cases."""
    rng = random.Random(number)
    return {
        "block_size": rng.choice((1, 2, 4, 8)),
        "enable_chunked_prefill": rng.random() < 0.75,
        "long_prefill_token_threshold": rng.choice((0, 0, 5, 12)),
        "policy": ("fcfs", "priority")[number % 2],
        "enable_prefix_caching": number % 4 > 1,  # under both queues
        "scheduler_reserve_full_isl": rng.random() < 0.5,
        "watermark": rng.choice((0.0, 0.0, 0.05, 0.2)),
        "prefill_schedule_interval": 1,
    }


def random_case(fixed: dict[str, Any], seed: int) -> Case:
    """A workload and limits under which it mostly runs short of memory."""
    rng = random.Random(seed)
    workload = [
        {
            "id": f"request-{n}",
            "arrival_step": rng.randint(0, 20),
            "prompt_len": rng.randint(1, PROMPT) if n else PROMPT,
            "output_len": rng.randint(1, OUTPUT),
            "priority": n % 3,
        }
        for n in range(REQUESTS)
    ]
    for row in workload if fixed["enable_prefix_caching"] else ():
        shared = rng.randint(0, row["prompt_len"])  # begins as others do, then goes its own way
        row["prompt_token_ids"] = [
            n if n < shared else rng.randint(1000, 1001) for n in range(row["prompt_len"])
        ]
    longest = max(row["prompt_len"] + row["output_len"] for row in workload) - 1
    least = -(-longest // fixed["block_size"])
    blocks = least + rng.randint(0, least)
    if fixed["enable_prefix_caching"]:  # a pool of another size is compiled anew: two for all cases
        most = -(-(PROMPT + OUTPUT) // fixed["block_size"])
        blocks = rng.choice((most, most + most // 2))
    chunked = fixed["enable_chunked_prefill"]
    limits = {
        "max_num_batched_tokens": rng.choice((3, 8, 16, 64)) if chunked else longest + 9,
        "max_num_seqs": rng.randint(1, REQUESTS + 1),
        "num_blocks_incl_null": 1 + blocks,
        "max_model_len": 8192,
    }
    return workload, fixed | limits


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 13))
def test_random_cases_are_those_of_the_plain_scheduler(number: int) -> None:
    preempted = found = 0
    for seed in range(42):
        workload, config = random_case(settings(number), 1000 * number + seed)
        expected = vllm_reference.schedule(
            sorted(workload, key=lambda row: row["arrival_step"]), config
        )
        assert_equal(schedule(workload, config), expected)
        preempted += sum(len(step["preempted"]) for step in expected)
        ran = [entry for step in expected for entry in step["scheduled"]]
        begun: set[str] = set()
        for entry in ran:  # the first time that a request runs it has nothing but what is found
            found += entry["id"] not in begun and entry["computed_before"] > 0
            begun.add(entry["id"])
    assert preempted > 21
    assert (found > 0) == settings(number)["enable_prefix_caching"]


def small() -> Case:
    row = {"id": "a", "arrival_step": 0, "prompt_len": 20, "output_len": 5, "priority": 0}
    config = settings(0) | {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 4,
        "block_size": 4,
        "num_blocks_incl_null": 9,
        "max_model_len": 100,
    }
    return [row], config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "prioritty"}, "Did you mean 'priority'"),
        ({"prefill_schedule_interval": 2}, "prefill_schedule_interval = 2 is not modelled"),
        ({"num_blocks_incl_null": 6}, "'a' needs KV memory for 24 tokens; there is room for 20"),
        ({"max_model_len": 20}, "'a' has a prompt of 20 tokens"),
        ({"enable_chunked_prefill": False}, "compute 24 tokens at once"),
        ({"block_size": 0}, "block_size"),
        ({"watermark": float("nan")}, "watermark"),
        ({"max_num_batched_tokens": -1}, "max_num_batched_tokens must be at least 1"),
    ],
)
def test_what_it_refuses(change: dict[str, Any], message: str) -> None:
    workload, config = small()
    with pytest.raises(LLMGymError, match=message):
        schedule(workload, config | change)


def test_missing_entries_and_empty_workloads_are_named() -> None:
    workload, config = small()
    with pytest.raises(LLMGymError, match="no entry 'max_num_seqs'"):
        schedule(workload, {k: v for k, v in config.items() if k != "max_num_seqs"})
    with pytest.raises(LLMGymError, match="no entry 'prompt_len'"):
        schedule([{k: v for k, v in workload[0].items() if k != "prompt_len"}], config)
    with pytest.raises(LLMGymError, match="no requests"):
        schedule([], config)
    short = [workload[0] | {"prompt_token_ids": [1, 2, 3]}]
    with pytest.raises(LLMGymError, match="has 3 prompt_token_ids and a prompt_len of 20"):
        schedule(short, config | {"enable_prefix_caching": True})
    with pytest.raises(LLMGymError, match="different ids"):
        schedule([workload[0], workload[0]], config)
