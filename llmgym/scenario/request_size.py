"""How large requests get: the longest of a scenario, and what those of a list hold in memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llmgym.scenario.engine import Engine
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage


def longest_request(scenario: Scenario) -> float:
    """Most tokens that a request of one engine ever has in memory (infinite without a bound)."""
    return longest_call(scenario, scenario.engine)


def longest_call(scenario: Scenario, engine: Engine) -> float:
    """Most tokens that a call of an engine ever has in memory (infinite without a bound)."""
    return _longest(scenario, engine, lambda stage: stage.longest_tokens)


def likely_longest_call(scenario: Scenario, engine: Engine) -> float:
    """As ``longest_call``, with the last quantile (1 - 2**-15) of lengths that have no bound."""
    longest = longest_call(scenario, engine)
    if np.isfinite(longest):
        return longest
    likely = _longest(scenario, engine, lambda stage: stage.likely_longest_tokens)
    return likely if np.isfinite(likely) else 0.0  # a context that may grow for ever


def _longest(scenario: Scenario, engine: Engine, own: Callable[[Stage], float]) -> float:
    """The largest of the calls' ``own`` tokens with the context that they inherit."""
    only, longest = len(scenario.engines) == 1, 0.0
    for job in scenario.jobs:
        for stage, prompt in zip(job.stages, job.workflow.longest_prompts, strict=True):
            if not stage.is_delay and (only or stage.engine == engine.name):
                inherited = 0.0
                if stage.inherits:
                    inherited = prompt - stage.longest_prompt if np.isfinite(prompt) else np.inf
                longest = max(longest, own(stage) + inherited)
    return longest - int(engine.prompt_samples)  # the last token is then never computed


def held_tokens(scenario: Scenario) -> np.ndarray | None:
    """Most tokens that each request of a list ever has in memory; None where they are drawn."""
    tokens = scenario.demand.listed_tokens()
    return None if tokens is None else tokens - int(scenario.engine.prompt_samples)
