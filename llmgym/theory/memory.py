"""What KV memory allows: the rate at which memory, not time, runs out.

A request holds memory for its prompt while that is processed and for every output token since it was
made. Summed over iterations this is its footprint g in token-iterations; at rate lambda and with
iterations of b seconds requests hold lambda*b*E[g] tokens on average (Little's law), which cannot exceed
the memory M (arXiv:2605.04595).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmgym.errors import LLMGymError, check_number
from llmgym.lengths import Empirical, Length
from llmgym.precision import in_32_bits
from llmgym.prefixes import known_tokens
from llmgym.scenario import Scenario
from llmgym.workload import Paired, Replay, Stage

QUANTILES = 2**14
"""Equally likely values that stand for a distribution of lengths."""


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


@in_32_bits
def memory_bound(
    scenario: Scenario, iteration_ms: float, chunk_tokens: int | None = None
) -> MemoryBound:
    """The rate that the KV memory of an engine allows, where an iteration takes ``iteration_ms``.

    Args:
        chunk_tokens: s', most prompt tokens of a request in one iteration; None: the token budget.

    Raises LLMGymError for an engine without KV memory, a network, and bad numbers.
    """
    check_number("iteration_ms", iteration_ms, above=0)
    cache = scenario.engine.kv_cache
    if scenario.is_network or cache is None:
        raise LLMGymError("The memory bound is about one engine with KV memory (kv_cache).")
    footprint = token_iterations(scenario, chunk_tokens)
    rate = cache.tokens / (iteration_ms / 1000 * footprint)
    delta = longest_request(scenario) / cache.tokens
    return MemoryBound(rate, rate * max(1 - delta, 0.0), delta, footprint)


def longest_request(scenario: Scenario) -> float:
    """Most tokens that a request of an engine ever has in memory (infinite without a bound)."""
    last = int(scenario.engine.prompt_samples)  # the last output token is then never computed
    if isinstance(scenario.workload, Replay):
        return float(held_tokens(scenario.workload, scenario.engine.prompt_samples).max())
    stages = [job.stages[0] for job in scenario.workload]
    return max(_longest(stage) for stage in stages) - last


def held_tokens(replay: Replay, prompt_samples: bool) -> np.ndarray:
    """Most tokens that each request of a replay ever has in memory."""
    return np.add(replay.prefill_tokens, replay.decode_tokens) - int(prompt_samples)


def likely_longest_request(scenario: Scenario) -> float:
    """As ``longest_request``, but of lengths without a bound their last quantile (1 - 2**-15)."""
    longest = longest_request(scenario)
    if np.isfinite(longest):
        return longest
    last = int(scenario.engine.prompt_samples)
    return max(_likely(job.stages[0]) for job in scenario.job_types) - last


def _likely(stage: Stage) -> float:
    if stage.paired is not None:
        return _longest(stage)
    assert stage.prefill is not None
    assert stage.decode is not None
    return float(_values(stage.prefill)[-1] + _values(stage.decode)[-1])


def _longest(stage: Stage) -> float:
    if stage.paired is not None:
        return float(np.max(np.add(stage.paired.prefill_tokens, stage.paired.decode_tokens)))
    return stage.longest_prompt + stage.longest_output


def token_iterations(scenario: Scenario, chunk_tokens: int | None = None) -> float:
    """E[g] of a mean request of an engine: sum over its iterations of the tokens it has in memory.

    A prompt of s tokens takes n = ceil(s/s') iterations and holds s' more in each, s at last; the
    j-th output token s + j. With s a multiple of s' that is (1 + s/s')*s/2 + s*o + (1 + o)*o/2.
    """
    chunk = scenario.engine.token_budget if chunk_tokens is None else chunk_tokens
    check_number("chunk_tokens", chunk, low=1, integer=True)
    samples = scenario.engine.prompt_samples
    if isinstance(scenario.workload, Replay):
        replay = scenario.workload
        columns = np.asarray(replay.prefill_tokens), np.asarray(replay.decode_tokens)
        return float(_footprint(*columns, chunk, samples).mean())
    rates = [job.rate_per_s for job in scenario.workload]
    means = [_mean_footprint(job.stages[0], chunk, samples) for job in scenario.workload]
    return float(np.average(means, weights=rates))


def unshared(scenario: Scenario) -> Scenario:
    """The scenario with its prompts cut by what prefix caching could save at best; else as it is.

    A memory that never forgets computes shared tokens once; they leave the mean in the long run.
    """
    cache = scenario.engine.kv_cache
    if cache is None or not cache.prefix_caching or scenario.is_network:
        return scenario
    engine = replace(scenario.engine, kv_cache=replace(cache, prefix_caching=False))
    size = cache.block_size
    if isinstance(scenario.workload, Replay):
        replay = scenario.workload
        if replay.prefix_ids is None:
            return replace(scenario, engines=(engine,))
        prompts, ids = np.asarray(replay.prefill_tokens), np.asarray(replay.prefix_ids)
        left = prompts - known_tokens(ids, replay.prefix_tokens, prompts, size)
        workload: Any = replace(replay, prefill_tokens=left, prefix_ids=None)
    else:
        workload = tuple(
            replace(j, stages=(_unshared(j.stages[0], size),)) for j in scenario.workload
        )
    return replace(scenario, engines=(engine,), workload=workload)


def _unshared(stage: Stage, block_size: int) -> Stage:
    if stage.shared_prefix is None:
        return stage
    shared = stage.shared_prefix.tokens // block_size * block_size

    def cut(prompts: np.ndarray) -> np.ndarray:
        """All but whole blocks of the prefix, and at least one token, are computed anew."""
        most = np.maximum(prompts - 1, 0) // block_size * block_size
        return np.asarray(prompts - np.minimum(shared, most))

    if stage.paired is not None:
        rows = cut(np.asarray(stage.paired.prefill_tokens)), stage.paired.decode_tokens
        return replace(stage, paired=Paired(*rows), shared_prefix=None)
    assert stage.prefill is not None
    left = Empirical.from_samples(cut(_values(stage.prefill)), points=4097)
    return replace(stage, prefill=left, shared_prefix=None)


def _mean_footprint(stage: Stage, chunk: int, samples: bool) -> float:
    if stage.paired is not None:
        columns = np.asarray(stage.paired.prefill_tokens), np.asarray(stage.paired.decode_tokens)
        return float(_footprint(*columns, chunk, samples).mean())
    assert stage.prefill is not None
    assert stage.decode is not None
    prompts, outputs = _values(stage.prefill), _values(stage.decode)
    # Prompt and output are independent: E[s*o] = E[s]*E[o], and the rest has no mixed terms.
    prompt = _footprint(prompts, np.zeros_like(prompts), chunk, False).mean()
    steps = np.maximum(outputs - samples, 0)
    output = (steps * (1 + steps) / 2).mean()
    return float(prompt + prompts.mean() * steps.mean() + output)


def share_with_output(stage: Stage) -> float:
    """Share of the requests of a stage that have output tokens at all."""
    if stage.paired is not None:
        return float(np.mean(np.asarray(stage.paired.decode_tokens) > 0))
    assert stage.decode is not None
    return float(np.mean(_values(stage.decode) > 0))


def _footprint(prompt: np.ndarray, output: np.ndarray, chunk: int, samples: bool) -> np.ndarray:
    """g of requests; with ``samples`` the end of the prompt yields the first output token."""
    s, o = prompt.astype(float), np.maximum(output.astype(float) - samples, 0)
    full = np.ceil(s / chunk)
    return np.asarray(chunk * full * (full - 1) / 2 + s + s * o + (1 + o) * o / 2)


@in_32_bits
def _values(length: Length) -> np.ndarray:
    """Equally likely values of a length: its quantiles in the middle of QUANTILES equal parts."""
    u = (jnp.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(length.sample(u), float)
