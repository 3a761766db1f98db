"""The scenarios that ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from random_scenarios import PLAIN, same

from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.scenario.library import names, scenario
from llmgym.scenario.toml_reader import loads
from llmgym.scenario.toml_writer import dumps, save

ROOT = Path(__file__).parents[2]
NETWORKS = (
    "rybko-stolyar",
    "rybko-stolyar-reversed",
    "fork-join",
    "pipeline-dag",
    "diamond-dag",
    "load-balanced",
    "lu-kumar",
    "criss-cross",
    "re-entrant-line",
    "react-loop",
    "planner-workers-critic",
    "rag",
    "mixed-tenants",
)


def test_names():
    assert names() == sorted(names())
    assert {"paper-figure-1", "theorem-2", "corner-c", "md1", "llama-3-70b", "geometric"} < {
        *names()
    }
    assert {"bursty", "capped", "two-class", "azure-conversation", "azure-code"} < {*names()}
    assert {*NETWORKS} < {*names()}
    assert {name for name in names() if scenario(name).is_network} == {*NETWORKS}


@pytest.mark.parametrize("name", names())
def test_shipped_scenario(name):
    shipped = scenario(name)
    text = (ROOT / "llmgym" / "scenario" / "data" / f"{name}.toml").read_text(encoding="utf-8")
    assert dumps(shipped) == text, "not in the form that save writes"
    assert same(loads(text), shipped)
    assert shipped.name == name
    assert shipped.description.endswith(".")
    assert shipped.source.endswith(".")
    if shipped.is_network:
        return
    physics = simulator.lower(shipped)
    assert physics.slots == shipped.slots
    assert len(physics.arrivals) == len(physics.lengths) == len(shipped.class_names)


def test_shipped_numbers():
    critical = scenario("theorem-2")
    assert critical.arrival_rate_per_s == pytest.approx(512 / 0.15316 / 200, rel=1e-7)
    corner = simulator.lower(scenario("corner-c")).arrivals[0]
    assert (int(corner.whole), int(corner.fraction)) == (46750, 0)
    promised = [one.targets_ms for one in scenario("two-class").classes]
    assert promised == [(1000.0, 200.0), (60000.0, 1000.0)]
    assert scenario("md1").arrival_rate_per_s * 0.04675 == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_engine_of_a_shipped_network_is_overloaded(name):
    network = scenario(name)
    asked = dict.fromkeys((engine.name for engine in network.engines), 0.0)
    for job in network.workload:
        flow = job.workflow
        for stage, visits, (prefill, decode) in zip(
            job.stages, flow.visits, flow.means, strict=True
        ):
            if not stage.is_delay:
                asked[stage.engine] += job.rate_per_s * visits * (prefill + decode)
    for engine in network.engines:
        full_s = float(engine.batch_time.ms(np.array([engine.token_budget]))[0]) / 1000
        load = asked[engine.name] * full_s / engine.token_budget / engine.replicas
        assert 0.03 < load < 0.91, engine.name


def test_numbers_of_the_networks():
    """Section 5.4 of the paper: rho = 0.9, and the virtual station of the two exit classes."""
    for name in ("rybko-stolyar", "rybko-stolyar-reversed", "lu-kumar"):
        network = scenario(name)
        rate = network.workload[0].rate_per_s / 1000
        assert rate == pytest.approx(0.9 * 768 / 608)
        heavy = [s for job in network.workload for s in job.stages if s.mean_prefill == 512]
        assert [s.priority for s in heavy] == [int("reversed" not in name)] * 2
        assert {s.engine for s in heavy} == {"engine-1", "engine-2"}
        assert rate * sum(s.mean_prefill + s.mean_decode for s in heavy) / 768 > 1
    agent = scenario("react-loop").workload[0].workflow
    assert agent.visits == pytest.approx([1 / 0.3, 1 / 0.3, 1])
    assert scenario("load-balanced").engine.replicas == 2


def test_overrides_and_paths(tmp_path):
    changed = scenario("paper-figure-1", token_budget=1024, prefill_tokens=7, arrival_rate_per_s=3)
    assert (changed.engine.token_budget, changed.mean_prefill) == (1024, 7)
    assert changed.arrival_rate_per_s == pytest.approx(3)
    save(PLAIN, tmp_path / "mine.toml")
    assert same(scenario(tmp_path / "mine.toml", slots=9), PLAIN.override(slots=9))


def test_unknown_names():
    with pytest.raises(
        LLMGymError, match=r"Unknown scenario 'paper-fig-1'. Did you mean 'paper-figure"
    ):
        scenario("paper-fig-1")
    with pytest.raises(LLMGymError, match=r"Unknown scenario setting 'slot'. Did you mean 'slots'"):
        scenario("md1", slot=3)
    with pytest.raises(LLMGymError, match="named by a string or a path, got 3"):
        scenario(3)
    with pytest.raises(LLMGymError, match=r"Cannot read scenario md\.toml"):
        scenario("md.toml")
