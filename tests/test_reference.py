"""The JAX engine against the plain event simulator, batch by batch and to the tick."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference_policies
from recording import Recorded, record, requests
from reference import Request, Simulator
from workloads import POLICIES, Structure, random_workload, reference_engine, structures

from llmgym import dynamics
from llmgym.evaluation.rollout import keys

STEPS, REQUESTS, ENVS = 128, 1500, 4
"""A structure has ENVS random workloads for every policy."""


def compare(recorded: Recorded, simulator: Simulator, arriving: list[Request]) -> None:
    """Every batch, every time and every count must be equal."""
    while len(simulator.batches) < len(recorded.batches) or simulator.now < recorded.end:
        assert simulator.step(), "the reference has nothing left to do"
    assert simulator.batches == recorded.batches
    assert simulator.now == recorded.end
    assert not recorded.clipped
    finished = {r.name: (r.first_token, r.finish) for r in arriving if r.finish is not None}
    assert finished == recorded.finished
    assert simulator.arrived == recorded.arrived
    assert simulator.dropped == recorded.dropped
    assert len(simulator.present) == recorded.present
    left = sum(r.prefill_left + r.decode_left for r in simulator.present)
    assert left == recorded.backlog


def run(structure: Structure, number: int) -> list[Recorded]:
    """ENVS random workloads of a structure under one policy, compared."""
    name, fixed, chosen = POLICIES[number]
    workload = random_workload(structure, number)
    lowered = dynamics.lower(workload.scenario, workload.burst)
    physics = replace(lowered, fresh=structure.fresh)
    environments = keys(number, ENVS)
    recorded = record(physics, environments, number, workload.settings, STEPS)
    settings = fixed | {k: workload.settings[k] for k in chosen}
    policy = reference_policies.POLICIES[name](**settings)
    engine = reference_engine(workload.scenario)
    for one, arriving in zip(recorded, requests(physics, environments, REQUESTS), strict=True):
        assert one.arrived < REQUESTS
        compare(one, Simulator(engine, policy, arriving), arriving)
    return recorded


def run_structure(structure: Structure) -> None:
    """Every policy; and the workloads must be worth comparing."""
    recorded = [one for number in range(len(POLICIES)) for one in run(structure, number)]
    assert sum(len(one.batches) for one in recorded) > 0.5 * STEPS * len(recorded)
    assert any(one.dropped for one in recorded)


ALL = structures()
QUICK, SLOW = ALL[8:11], ALL[:8] + ALL[11:]


@pytest.mark.parametrize("structure", QUICK, ids=lambda s: s.label)
def test_random_workloads_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)


@pytest.mark.slow
@pytest.mark.parametrize("structure", SLOW, ids=lambda s: s.label)
def test_more_random_workloads_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)
