"""How large requests get: the longest of a scenario, and what a replay holds in memory."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Length
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage

QUANTILES = 2**14
"""Equally likely values that stand for a distribution of lengths."""


def longest_request(scenario: Scenario) -> float:
    """Most tokens that a request of an engine ever has in memory (infinite without a bound)."""
    last = int(scenario.engine.prompt_samples)  # the last output token is then never computed
    if isinstance(scenario.workload, Replay):
        return float(held_tokens(scenario.workload, scenario.engine.prompt_samples).max())
    stages = [job.stages[0] for job in scenario.workload]
    return max(_longest(stage) for stage in stages) - last


def longest_call(scenario: Scenario, engine: Engine) -> float:
    """Most tokens that a call of one engine ever has in memory (infinite without a bound)."""
    if isinstance(scenario.workload, Replay):
        return longest_request(scenario)
    only, longest = len(scenario.engines) == 1, 0.0
    for job in scenario.workload:
        for stage, prompt in zip(job.stages, job.workflow.longest_prompts, strict=True):
            if not stage.is_delay and (only or stage.engine == engine.name):
                inherited = prompt - stage.longest_prompt if stage.inherits else 0.0
                longest = max(longest, _longest(stage) + inherited)
    return longest - int(engine.prompt_samples)


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
    return float(quantiles(stage.prefill)[-1] + quantiles(stage.decode)[-1])


def _longest(stage: Stage) -> float:
    if stage.paired is not None:
        return float(np.max(np.add(stage.paired.prefill_tokens, stage.paired.decode_tokens)))
    return stage.longest_prompt + stage.longest_output


def quantiles(length: Length) -> np.ndarray:
    """Equally likely values of a length: its quantiles in the middle of QUANTILES equal parts."""
    u = (jnp.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(length.sample(u), float)
