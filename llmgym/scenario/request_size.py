"""How large requests get: the longest of a scenario, and what those of a list hold in memory."""

from __future__ import annotations

import numpy as np

from llmgym.scenario.engine import Engine
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage


def longest_request(scenario: Scenario) -> float:
    """Most tokens that a request of an engine ever has in memory (infinite without a bound)."""
    return max(stage.longest_tokens for stage in _calls(scenario)) - _never_held(scenario)


def longest_call(scenario: Scenario, engine: Engine) -> float:
    """Most tokens that a call of one engine ever has in memory (infinite without a bound)."""
    only, longest = len(scenario.engines) == 1, 0.0
    for job in scenario.jobs:
        for stage, prompt in zip(job.stages, job.workflow.longest_prompts, strict=True):
            if not stage.is_delay and (only or stage.engine == engine.name):
                inherited = prompt - stage.longest_prompt if stage.inherits else 0.0
                longest = max(longest, stage.longest_tokens + inherited)
    return longest - int(engine.prompt_samples)


def likely_longest_request(scenario: Scenario) -> float:
    """As ``longest_request``, but of lengths without a bound their last quantile (1 - 2**-15)."""
    longest = longest_request(scenario)
    if np.isfinite(longest):
        return longest
    return max(stage.likely_longest_tokens for stage in _calls(scenario)) - _never_held(scenario)


def held_tokens(scenario: Scenario) -> np.ndarray | None:
    """Most tokens that each request of a list ever has in memory; None where they are drawn."""
    tokens = scenario.demand.listed_tokens()
    return None if tokens is None else tokens - _never_held(scenario)


def _calls(scenario: Scenario) -> list[Stage]:
    """The one call of every job."""
    return [job.stages[0] for job in scenario.jobs]


def _never_held(scenario: Scenario) -> int:
    """Tokens of a request that are never computed: the last one, where a prompt's end yields one."""
    return int(scenario.engine.prompt_samples)
