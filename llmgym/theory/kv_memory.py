"""What KV memory allows: the rate at which memory, not time, runs out.

A request holds memory for its prompt while that is processed and for every output token since it was
made. Summed over iterations this is its footprint g in token-iterations; at rate lambda and with
iterations of b seconds requests hold lambda*b*E[g] tokens on average (Little's law), which cannot exceed
the memory M (arXiv:2605.04595).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from llmgym.core.checks import check_kind
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import quantiles
from llmgym.scenario.library import as_scenario
from llmgym.scenario.request_size import longest_request
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage


@dataclass(frozen=True)
class MemoryBound:
    """The rate that memory allows.

    Attributes:
        requests_per_s: mu = M/(b*E[g]); above it every policy is unstable.
        stable_per_s: mu*(1 - delta); below it work-conserving policies are stable.
        delta: longest request over memory; infinite lengths make it infinite, and stable_per_s 0.
        token_iterations: E[g], what a mean request holds, tokens times iterations.
    """

    requests_per_s: float
    stable_per_s: float
    delta: float
    token_iterations: float


def memory_bound(
    scenario: Scenario, iteration_ms: float, chunk_tokens: int | None = None
) -> MemoryBound:
    """The rate that the KV memory of an engine allows.

    Args:
        scenario: one engine with KV memory.
        iteration_ms: b, time of every iteration.
        chunk_tokens: s', most prompt tokens of a request in one iteration; None: the token budget.

    Raises LLMGymError for an engine without KV memory, a network, and bad numbers.
    """
    iteration_ms = check_number("iteration_ms", iteration_ms, above=0)
    scenario = as_scenario(scenario)
    cache = scenario.engine.kv_cache
    if scenario.is_network or cache is None:
        raise LLMGymError("The memory bound is about one engine with KV memory (kv_cache).")
    footprint = token_iterations(scenario, chunk_tokens)
    iteration_s = max(iteration_ms / 1000 * footprint, 1e-300)  # not 0 where it is as good as that
    rate = cache.tokens / iteration_s
    delta = longest_request(scenario) / cache.tokens
    return MemoryBound(rate, rate * max(1 - delta, 0.0), delta, footprint)


def token_iterations(
    scenario: Scenario, chunk_tokens: int | None = None, engine: Engine | None = None
) -> float:
    """E[g] of what a mean job brings an engine: sum over iterations of the tokens in memory.

    A prompt of s tokens takes ceil(s/s') iterations and holds s' more in each, s in the last; the
    iteration of the j-th output token holds s + j. With s a multiple of s' the sum is
    (1 + s/s')*s/2 + s*o + (1 + o)*o/2.
    Context that a call inherits counts with its mean: E[g] is then a lower bound (g is convex in s).

    Args:
        scenario: one engine, or a network.
        chunk_tokens: s', most prompt tokens of a request in one iteration; None: the token budget.
        engine: which engine of a network; None: the first.
    """
    scenario = as_scenario(scenario)
    engine = scenario.engine if engine is None else engine
    check_kind("engine", engine, Engine)
    chunk = engine.token_budget if chunk_tokens is None else chunk_tokens
    check_number("chunk_tokens", chunk, low=1, integer=True)
    totals = []
    for job in scenario.jobs:
        flow, total = job.workflow, 0.0
        for v, stage in enumerate(job.stages):
            if stage.is_delay or stage.engine != engine.name:
                continue
            inherited = float(flow.means[v, 0]) - stage.mean_prefill if stage.inherits else 0.0
            held = _mean_footprint(stage, chunk, engine.prompt_samples, inherited)
            total += float(flow.visits[v]) * held
        totals.append(total)
    return float(np.average(totals, weights=scenario.demand.weights))


def unshared(scenario: Scenario) -> Scenario:
    """The scenario with its prompts cut by what prefix caching could save at best.

    A memory that never forgets computes shared tokens once; in the long run they drop out of the mean.
    A network, and an engine without prefix caching, is returned as it is.
    """
    scenario = as_scenario(scenario)
    cache = scenario.engine.kv_cache
    if cache is None or not cache.prefix_caching or scenario.is_network:
        return scenario
    engine = replace(scenario.engine, kv_cache=replace(cache, prefix_caching=False))
    workload = scenario.demand.unshared(cache.block_size)
    return replace(scenario, engines=(engine,), workload=workload)


def _mean_footprint(stage: Stage, chunk: int, samples: bool, inherited: float) -> float:
    if stage.paired is not None:
        columns = np.asarray(stage.paired.prefill_tokens), np.asarray(stage.paired.decode_tokens)
        return float(_footprint(columns[0] + inherited, columns[1], chunk, samples).mean())
    assert stage.prefill is not None
    assert stage.decode is not None
    prompts, outputs = quantiles(stage.prefill) + inherited, quantiles(stage.decode)
    # Prompt and output are independent: E[s*o] = E[s]*E[o], and the rest has no mixed terms.
    prompt = _footprint(prompts, np.zeros_like(prompts), chunk, False).mean()
    steps = np.maximum(outputs - samples, 0)
    output = (steps * (1 + steps) / 2).mean()
    return float(prompt + prompts.mean() * steps.mean() + output)


def _footprint(prompt: np.ndarray, output: np.ndarray, chunk: int, samples: bool) -> np.ndarray:
    """g of requests; with ``samples`` the end of the prompt yields the first output token."""
    s, o = prompt.astype(float), np.maximum(output.astype(float) - samples, 0)
    full = np.ceil(s / chunk)
    return np.asarray(chunk * full * (full - 1) / 2 + s + s * o + (1 + o) * o / 2)
