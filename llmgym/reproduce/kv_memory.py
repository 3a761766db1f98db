"""KV memory: its stability bound, flow control, and the batches that vLLM forms."""

from __future__ import annotations

import gzip
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llmgym import baselines
from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.core.errors import LLMGymError
from llmgym.core.reading import MOST_JSON, BadJSONError, opened, parse_json
from llmgym.engine.view import View
from llmgym.evaluation.stability import stability
from llmgym.integrations.vllm import schedule
from llmgym.reproduce.items import (
    Check,
    Data,
    Effort,
    Item,
    equal,
    near,
    record,
    sampled,
    skipped,
    stands,
)
from llmgym.reproduce.watch import watch
from llmgym.scenario import library
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import Affine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.lengths import Fixed, Uniform
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import Workload
from llmgym.theory.flow_control import flow_control as conditions
from llmgym.theory.flow_control import mean_waiting
from llmgym.theory.kv_memory import memory_bound

MIXES = {
    "even": (Uniform(20, 60), Uniform(20, 60)),
    "prompts": (Uniform(100, 200), Uniform(5, 15)),
    "outputs": (Fixed(10), Uniform(50, 150)),
}
CHUNK, ITERATION_MS, MEMORY_TOKENS = 32, 10.0, 4000
BELOW, ABOVE = 0.9, 1.1


def _memory(effort: Effort, mix: str) -> Data:
    """Verdicts below and above the bound.

    Iterations take 10 ms whatever is in them, and the budget never binds: only memory counts.
    """
    base = Scenario.single_engine(
        Affine(ITERATION_MS, 0.0), 8192, Workload(Poisson(1.0), *MIXES[mix]),
        kv_cache=KVCache(MEMORY_TOKENS, 1), slots=512,
    )  # fmt: skip
    bound = memory_bound(base, ITERATION_MS, CHUNK)
    policy = VLLMV1(long_prefill_cap=CHUNK)
    found: Data = {"requests_per_s": bound.requests_per_s, "stable_per_s": bound.stable_per_s}
    for name, rate in (
        ("below", BELOW * bound.stable_per_s),
        ("above", ABOVE * bound.requests_per_s),
    ):
        found[name] = record(stability(base.at_rate(rate), policy, seed=effort.seed))
    return found


def _judge_memory(data: Data) -> list[Check]:
    checks = []
    for mix, found in data.items():
        stable, most = found["stable_per_s"], found["requests_per_s"]
        checks += [
            stands(f"{mix}: at {BELOW:g} of {stable:.2f} requests/s", "stable", found["below"]),
            stands(f"{mix}: at {ABOVE:g} of {most:.2f} requests/s", "unstable", found["above"]),
        ]
    return checks


kv_memory = Item(
    "kv-memory",
    "The rate that KV memory allows",
    "arXiv:2605.04595",
    lambda effort: {m: partial(_memory, effort, m) for m in effort.pick(tuple(MIXES), ("even",))},
    _judge_memory,
)

ACTIVATIONS = (4, 4, 4)
PEAK_TOKENS, QUEUE = 16_240, 0.801
LONGEST, WARM_SLOTS = 60, 100


def look(view: View, info: Any) -> dict[str, jax.Array]:
    """Tokens in memory at the end of a slot, and the requests of each class that still wait."""
    assert view.memory is not None
    waits = view.live & ~view.memory.resident & (info.batch.tokens == 0)
    queues = [jnp.sum(waits & (view.job_class == k), axis=0) for k in range(view.classes.count)]
    gone = jnp.zeros_like(view.live) if info.batch.preempt is None else info.batch.preempt
    held = jnp.sum(jnp.where(gone, 0, view.memory.cached + info.batch.tokens), axis=0)
    return {"held": held, "waiting": jnp.stack(queues), "preempted": info.preempted}


def _flow(effort: Effort) -> Data:
    """The peak of memory from a backlog that feeds every activation, and the queues from an empty start."""
    scenario = library.scenario("flow-control", slots=1024)
    policy = baselines.make("flow_control", activations=ACTIVATIONS)
    theory = conditions(scenario, ACTIVATIONS)
    steps = effort.pick(20_000, 2_000)
    settings = {"num_envs": 8, "seed": effort.seed}
    full = watch(scenario, policy, look, steps, burst=150, **settings)
    calm = watch(scenario, policy, look, steps, **settings)
    waiting = calm["waiting"][WARM_SLOTS:]  # (slots, classes, envs)
    return {
        "verdict": theory.verdict,
        "peak_tokens": theory.peak_tokens,
        "peaks_seen": sorted(set(full["held"][: 2 * LONGEST].max(axis=0).tolist())),
        "most_seen": int(max(full["held"].max(), calm["held"].max())),
        "preempted": int(full["preempted"].sum() + calm["preempted"].sum()),
        "mean_waiting": mean_waiting(3.0, ACTIVATIONS[0]),
        "waiting": waiting.mean(axis=0).ravel().tolist(),
    }


def _judge_flow(data: Data) -> list[Check]:
    found = data[""]
    return [
        equal("verdict of the conditions", "stable", found["verdict"]),
        equal("sum of b_k w_k, tokens", PEAK_TOKENS, found["peak_tokens"]),
        equal("peaks of memory from a backlog, tokens", f"[{PEAK_TOKENS}]", str(found["peaks_seen"])),
        equal("requests preempted", 0, found["preempted"]),
        near("mean queue of a class at 3 arrivals a slot, closed form", QUEUE,
             found["mean_waiting"], 0.0005),
        sampled("mean queue of a class", found["mean_waiting"], found["waiting"]),
    ]  # fmt: skip


flow_control = Item(
    "flow-control",
    "Flow control: the peak of memory and the queue",
    "arXiv:2604.11001; classes (10,20), (10,40), (10,60), M = 16492",
    lambda effort: {"": partial(_flow, effort)},
    _judge_flow,
)

QUICK_CASES = (
    "kv_growth6|num_blocks_incl_null=13",
    "prio8|num_blocks_incl_null=20",
    "shared_prefix6|enable_prefix_caching=True",
)
RECORDED = Path("vllm_scheduler") / "batches.json.gz"


def _recorded(path: Path) -> dict[str, Any]:
    """What was recorded of vLLM. Raises LLMGymError where the file is no record, or too large unpacked."""
    try:
        with opened(path, "record", MOST_JSON) as file, gzip.open(file) as unpacked:
            data = unpacked.read(MOST_JSON + 1)
        if len(data) > MOST_JSON:
            raise BadJSONError(f"it unpacks to more than {MOST_JSON:,} bytes")
        return parse_json(data)
    except (EOFError, zlib.error, BadJSONError) as error:
        raise LLMGymError(f"{path} is no record of vLLM: {error}.") from None


def _batches(effort: Effort) -> Data:
    """How many cases of vLLM's scheduler are recorded, and which of them differ here in any step."""
    assert effort.data is not None
    recorded = _recorded(effort.data / RECORDED)
    cases = [
        case for case in recorded["cases"]
        if not effort.quick or case["name"].startswith(QUICK_CASES)
    ]  # fmt: skip
    differ = [
        case["name"]
        for case in cases
        if schedule(recorded["workloads"][case["workload"]], case["config"]) != case["steps"]
    ]
    return {"cases": len(cases), "steps": sum(len(c["steps"]) for c in cases), "differ": differ}


def _vllm(effort: Effort) -> dict[str, Any]:
    there = effort.data is not None and (effort.data / RECORDED).exists()
    return {"": partial(_batches, effort)} if there else {}


def _judge_vllm(data: Data) -> list[Check]:
    if not data:
        why = f"needs {RECORDED}: name its folder with --data"
        return [skipped("recorded cases that differ", why)]
    found = data[""]
    what = f"of {found['cases']} recorded cases, {found['steps']:,} steps, those that differ"
    return [equal(what, 0, len(found["differ"]))]


vllm_batches = Item(
    "vllm-batches",
    "The batches of vLLM's scheduler, step by step",
    "recorded from vLLM 0.33.0",
    _vllm,
    _judge_vllm,
)
