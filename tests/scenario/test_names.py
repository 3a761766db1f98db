"""Names of engines: any will do, and no two engines may show the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmgym import Replay, Scenario, scenario
from llmgym.core.errors import LLMGymError
from llmgym.evaluation.benchmark import Benchmark
from llmgym.evaluation.run import _names
from llmgym.traces.arrival_fits import fit_arrivals
from llmgym.traces.fits import fit_scenario

ENGINE = replace(scenario("geometric").engine, name="[/red] a\0")
TRACE = Replay(np.cumsum(np.linspace(0.1, 1, 60)), [9] * 60, [3] * 60)


def test_a_trace_is_fitted_on_an_engine_of_any_name() -> None:
    served = Scenario((ENGINE,), TRACE, slots=64)
    fitted = fit_scenario(TRACE, fit_arrivals(TRACE, "poisson"), served, "mine", points=5)
    assert fitted.engine == ENGINE and len(fitted.job_types) == 1


def test_a_trace_is_benchmarked_on_an_engine_of_any_name() -> None:
    endless = Benchmark(Scenario((ENGINE,), TRACE, slots=64), ("sarathi",), (0.5,)).endless
    assert endless.engine == ENGINE and endless.demand.end_s is None


def test_engines_may_not_look_like_replicas_of_others() -> None:
    network = scenario("load-balanced")
    (group,) = network.engines
    with pytest.raises(LLMGymError, match="replicas numbered too"):
        replace(network, engines=(group, replace(group, name=f"{group.name}-1", replicas=1)))


def test_names_in_tables_are_whole() -> None:
    assert _names(("a\0", "b"), np.array([1, 0, 0])).tolist() == ["b", "a\0", "a\0"]
