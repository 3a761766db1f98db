"""vLLM's own terms: its workloads and configurations in, its scheduler's steps out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.baselines.vllm_v1_priority import VLLMV1Priority
from llmgym.core.checks import as_list, check_name, check_settings, check_text
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.engine import simulator
from llmgym.engine.epoch import Epoch
from llmgym.engine.params import Params
from llmgym.evaluation.rollout import Carry, begin, keys, scan
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.prefixes import dense
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario

Step = dict[str, Any]

CHUNK = 64
"""Steps that are compiled as one."""

CONFIGURATION = (
    "max_num_batched_tokens", "max_num_seqs", "block_size", "num_blocks_incl_null",
    "enable_chunked_prefill", "long_prefill_token_threshold", "policy", "enable_prefix_caching",
    "scheduler_reserve_full_isl", "watermark", "prefill_schedule_interval", "max_model_len",
)  # fmt: skip
"""What a configuration must hold."""

MOST = 2**30
NUMBERS = {"arrival_step": 0, "prompt_len": 0, "output_len": 0, "priority": -MOST}
"""The numbers that a request must hold, and the least that each may be."""


def schedule(workload: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Step]:
    """The steps in which an engine under ``vllm_v1`` serves a workload, one tick each.

    Args:
        workload: requests in order of arrival, each with id, arrival_step, prompt_len, output_len,
            priority.
        config: max_num_batched_tokens, max_num_seqs, block_size, num_blocks_incl_null,
            enable_chunked_prefill, long_prefill_token_threshold, policy, enable_prefix_caching,
            scheduler_reserve_full_isl, watermark, prefill_schedule_interval, max_model_len.

    Returns:
        A dictionary for each step: step, arrivals, scheduled (id, tokens, computed_before, phase,
        samples), total_tokens, preempted, free_blocks_after_schedule, running_after_schedule,
        waiting_after_schedule, finished, free_blocks_after_update. ``finished`` is sorted as text.

    Raises LLMGymError for a missing entry, for what is not modelled, and for requests that could never run.
    """
    scenario, policy = scenario_of(workload, config)
    return run(simulator.lower(scenario), policy, workload)


def run(physics: Params, policy: VLLMV1, workload: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps of one engine, which may be the only one of a network, as ``schedule`` gives them.

    Args:
        physics: parameters of the scenario, as ``simulator.lower`` makes them.
        policy: the scheduler, as ``scenario_of`` gives it.
        workload: requests as ``schedule`` takes them, the same that the scenario replays.
    """
    workload, key = _requests(workload), keys(0, 1)[0]
    carry = begin(physics, policy, key)
    ids = [row["id"] for row in workload]
    arrives = [row["arrival_step"] for row in workload]
    steps: list[Step] = []
    while True:
        carry, recorded = _run(physics, carry, key, policy)
        recorded = jax.device_get(recorded)
        for n in range(CHUNK):
            if sum(len(s["finished"]) for s in steps) == len(ids):
                return steps
            now = len(steps)
            joins = [name for name, step in zip(ids, arrives, strict=True) if step == now]
            one = {name: column[n].ravel() for name, column in recorded.items()}
            steps.append({"step": now, "arrivals": joins} | _step(one, ids, physics))


def scenario_of(
    workload: Sequence[Mapping[str, Any]], config: Mapping[str, Any]
) -> tuple[Scenario, VLLMV1]:
    """The scenario and the policy that serve a workload as vLLM does under a configuration."""
    config, workload = _configuration(config), _requests(workload)
    limit, budget = config["max_model_len"], config["max_num_batched_tokens"]
    caching = config["enable_prefix_caching"]
    cache = KVCache(config["num_blocks_incl_null"] - 1, config["block_size"], caching)
    queues = {"fcfs": VLLMV1, "priority": VLLMV1Priority}
    check_name("policy", config["policy"], queues)
    policy = queues[config["policy"]](
        chunked_prefill=config["enable_chunked_prefill"],
        long_prefill_cap=config["long_prefill_token_threshold"],
        reserve_full=config["scheduler_reserve_full_isl"],
        watermark=config["watermark"],
    )
    interval = config["prefill_schedule_interval"]
    if interval != 1:
        raise LLMGymError(f"prefill_schedule_interval = {interval} is not modelled; use 1.")
    if not workload:
        raise LLMGymError("The workload has no requests.")
    rows = [(r["id"], r["arrival_step"], r["prompt_len"], r["output_len"]) for r in workload]
    for name, _, prompt, output in rows:
        _check_request(name, prompt, min(output, limit - prompt), config, cache)
    if len({name for name, *_ in rows}) < len(rows):
        raise LLMGymError("Requests need different ids.")
    _, arrival, prompts, outputs = (list(column) for column in zip(*rows, strict=True))
    replay = Replay(
        np.asarray(arrival) / 1000.0,
        prompts,
        [min(o, limit - p) for p, o in zip(prompts, outputs, strict=True)],
        # In vLLM the smaller number is the more urgent.
        priority=[-r["priority"] for r in workload] if config["policy"] == "priority" else None,
        prefix_ids=_prefix_ids(workload, cache.block_size) if caching else None,
        prefix_tokens=cache.block_size,
    )
    engine = Engine(
        Affine(1.0, 0.0),
        budget,
        config["max_num_seqs"],
        "resident",
        kv_cache=cache,
        first_token="prefill",
    )
    return Scenario((engine,), replay, slots=max(len(rows), 8), tick_ms=1.0), policy


def _configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration, with all that it must hold; other checks are those of Engine and KVCache."""
    found = check_settings("config", config)
    _require(found, CONFIGURATION)
    limits = {"max_model_len": 1, "num_blocks_incl_null": 2, "prefill_schedule_interval": 1}
    for name, low in (limits | {"max_num_batched_tokens": 1}).items():
        found[name] = check_number(name, found[name], low=low, high=MOST, integer=True)
    return found


def _requests(workload: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The requests in order of arrival, their entries checked."""
    rows = []
    for given in as_list("workload", workload, Mapping, "requests"):
        row = check_settings("a request", given)
        _require(row, ("id", *NUMBERS))
        check_text("id", row["id"])
        for name, low in NUMBERS.items():
            label = f"{name} of request {shown(row['id'])}"
            row[name] = check_number(label, row[name], low=low, high=MOST, integer=True)
        rows.append(row)
    return sorted(rows, key=lambda row: row["arrival_step"])


def _require(found: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if name not in found:
            raise LLMGymError(f"The workload or its configuration has no entry {name!r}.")


def _prefix_ids(workload: Sequence[Mapping[str, Any]], block_size: int) -> list[list[int]]:
    """A number for each whole block of a prompt and all before it; prompts without tokens share none."""
    rows = []
    for row in workload:
        tokens = row.get("prompt_token_ids") or []
        tokens = as_list("prompt_token_ids", tokens, (int, np.integer), "whole numbers")
        if len(tokens) not in (0, row["prompt_len"]):
            raise LLMGymError(
                f"Request {shown(row['id'])} has {len(tokens)} prompt_token_ids and a prompt_len of "
                f"{row['prompt_len']}."
            )
        ends = range(block_size, len(tokens) + 1, block_size)
        rows.append([tuple(tokens[:end]) for end in ends])
    return dense(rows)


def _check_request(
    name: str, prompt: int, output: int, config: Mapping[str, Any], cache: KVCache
) -> None:
    most = prompt + output - 1  # the last output token is never computed
    if output < 1:
        limit = config["max_model_len"]
        raise LLMGymError(
            f"Request {shown(name)} has a prompt of {prompt} tokens and at least one of output; "
            f"max_model_len is {limit}."
        )
    if most > cache.tokens:
        raise LLMGymError(
            f"Request {shown(name)} needs KV memory for {most} tokens; there is room for {cache.tokens}."
        )
    budget = config["max_num_batched_tokens"]
    if not config["enable_chunked_prefill"] and most > budget:
        raise LLMGymError(
            f"Request {shown(name)} may have to compute {most} tokens at once after a preemption; "
            f"without chunked prefill the token budget is {budget}."
        )


@partial(jax.jit, static_argnames="policy")
def _run(
    physics: Params, carry: Carry, key: jax.Array, policy: VLLMV1
) -> tuple[Carry, dict[str, jax.Array]]:
    """Run CHUNK steps, each of one tick even if nothing runs, and record what ``_step`` needs of each."""

    def keep(epoch: Epoch) -> dict[str, jax.Array]:
        state, view, _, info, after = epoch
        assert view.memory is not None
        assert state.table.preemptions is not None
        preempt = info.batch.preempt
        assert preempt is not None
        ran = info.batch.tokens
        stays = (view.memory.resident & ~preempt) | (ran > 0)
        if after.pool is None:
            gone = jnp.sum(jnp.where(info.finished, view.memory.needed(ran), 0))
            free_after = info.free_blocks + gone
        else:
            free_after = after.pool.free
        return {
            "request": state.table.request,
            "live": view.live,
            "tokens": ran,
            "computed": view.memory.cached + info.found,
            "left": view.demand - info.found,
            "again": state.table.preemptions > 0,
            "decodes": view.decoding,
            "preempt": preempt,
            "admitted": jnp.where(view.memory.resident, view.memory.admitted, state.steps),
            "urgency": view.urgency,
            "running": stays,
            "finished": info.finished,
            "free": info.free_blocks,
            "free_after": free_after,
        }

    return scan(physics, policy, carry, key, CHUNK, keep, limit=jnp.int32(1))


def _step(one: dict[str, Any], ids: Sequence[str], physics: Params) -> Step:
    """A step as vLLM's recorder writes it down."""
    row = np.arange(one["tokens"].size)
    by_urgency = np.lexsort((row, -one["urgency"]))
    by_admission = np.lexsort((row, -one["urgency"], one["admitted"]))

    def named(mask: np.ndarray, order: np.ndarray = row) -> list[str]:
        return [ids[one["request"][n]] for n in order if mask[n]]

    scheduled = [
        {
            "id": ids[one["request"][row]],
            "tokens": int(one["tokens"][row]),
            "computed_before": int(one["computed"][row]),
            "phase": "decode"
            if one["decodes"][row]
            else ("recompute" if one["again"][row] else "prefill"),
            "samples": bool(one["tokens"][row] == one["left"][row]),
        }
        for row in by_admission
        if one["tokens"][row] > 0
    ]
    return {
        "scheduled": scheduled,
        "total_tokens": int(one["tokens"].sum()),
        "preempted": named(one["preempt"], by_urgency[::-1]),
        "free_blocks_after_schedule": one["free"].item(),
        "running_after_schedule": named(one["live"] & one["running"], by_admission),
        "waiting_after_schedule": named(one["live"] & ~one["running"], by_urgency),
        "finished": sorted(named(one["finished"])),
        "free_blocks_after_update": one["free_after"].item(),
    }


__all__ = ["schedule"]
