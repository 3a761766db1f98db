"""The JAX engine against the plain event simulator, batch by batch and to the tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import reference_policies
from recording import Recorded, record, requests
from reference import Engine, Request, Simulator, affine, staircase
from workloads import (
    ARRIVALS,
    BATCH_TIME_KINDS,
    CAPS,
    LENGTHS,
    POLICIES,
    Structure,
    random_workload,
    reference_engine,
    structures,
)

from llmgym.engine import simulator
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


def cases(
    structure: Structure, number: int
) -> Iterator[tuple[Recorded, Engine, reference_policies.Policy, list[Request]]]:
    """ENVS random workloads of a structure under one policy: what JAX did, and what to compare."""
    name, fixed, chosen = POLICIES[number]
    workload = random_workload(structure, number)
    lowered = simulator.lower(workload.scenario, workload.burst)
    physics = replace(lowered, fresh=structure.fresh)
    environments = keys(number, ENVS)
    recorded = record(physics, environments, number, workload.settings, STEPS)
    settings = fixed | {k: workload.settings[k] for k in chosen}
    policy = reference_policies.POLICIES[name](**settings)
    engine = reference_engine(workload.scenario)
    for one, arriving in zip(recorded, requests(physics, environments, REQUESTS), strict=True):
        assert one.arrived < REQUESTS
        yield one, engine, policy, arriving


def run_structure(structure: Structure) -> None:
    """Every policy; and the workloads must be worth comparing."""
    batches = dropped = compared = 0
    for number in range(len(POLICIES)):
        for recorded, engine, policy, arriving in cases(structure, number):
            compare(recorded, Simulator(engine, policy, arriving), arriving)
            compared += 1
            batches += len(recorded.batches)
            dropped += recorded.dropped
    assert compared == ENVS * len(POLICIES)
    assert batches > 0.5 * STEPS * compared
    assert dropped > 0


ALL = structures()
QUICK, SLOW = ALL[9:10], ALL[:9] + ALL[10:]


@pytest.mark.parametrize("structure", QUICK, ids=lambda s: s.label)
def test_random_workloads_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)


@pytest.mark.slow
@pytest.mark.parametrize("structure", SLOW, ids=lambda s: s.label)
def test_more_random_workloads_are_equal_batch_by_batch(structure: Structure) -> None:
    run_structure(structure)


def test_all_kinds_are_among_them() -> None:
    assert len(ALL) * len(POLICIES) > 270  # scenarios, each with ENVS seeds
    assert {(s.cap, s.arrivals) for s in ALL} == {(c, a) for c in CAPS for a in ARRIVALS}
    assert {s.prefill for s in ALL} == set(LENGTHS)
    assert {s.decode for s in ALL} == set(LENGTHS)
    assert {s.batch_time for s in ALL} == set(BATCH_TIME_KINDS)
    assert {s.classes for s in ALL} == {1, 2, 3}
    assert {name for name, _, _ in POLICIES} == set(reference_policies.POLICIES)


@pytest.mark.parametrize("change", ["token_budget", "max_num_seqs", "slots"])
def test_a_difference_is_noticed(change: str) -> None:
    for recorded, engine, policy, arriving in cases(ALL[10], 6):
        other = replace(engine, **{change: getattr(engine, change) - 1})
        with pytest.raises(AssertionError):
            compare(recorded, Simulator(other, policy, arriving), arriving)


def by_hand(policy: str, budget: int) -> str:
    """Figure 8 of the paper with the event simulator: t_b = 1; D, then E, arrive during batch 1."""
    lengths = ((0, 0, 2), (0, 0, 4), (0, 0, 3), (20, 1, 1), (40, 1, 1))
    arriving = [Request(0, n, *numbers) for n, numbers in enumerate(lengths)]
    engine = Engine(affine(1, 0), budget)
    batches = Simulator(engine, reference_policies.POLICIES[policy](), arriving).run()

    def names(tokens: dict[tuple[int, int], int], phase: str) -> str:
        return "".join("ABCDE"[n] for _, n in tokens) + phase if tokens else ""

    texts = [(names(ran.decode, "d"), names(ran.prefill, "p")) for ran in batches]
    return " | ".join("+".join(filter(None, text)) for text in texts)


@pytest.mark.parametrize(
    ("policy", "budget", "text"),
    [
        ("vllm", 4, "ABCd | DEp | ABCDd | BCEd | Bd"),
        ("faster_transformer", 4, "ABCd | ABCd | BCd | Bd | DEp | DEd"),
        ("sarathi", 4, "ABCd | ABCd+Dp | BCDd+Ep | BEd"),
        ("orca", 5, "ABCd | ABCd+DEp | BCDEd | Bd"),
        ("orca", 4, "ABCd | ABd+DEp | BCDEd | BCd"),
    ],
)
def test_the_reference_on_figure_8(policy: str, budget: int, text: str) -> None:
    assert by_hand(policy, budget) == text


def test_the_reference_on_the_cycle_of_faster_transformer() -> None:
    # Three prompts of 129 fit 512: each cycle is one prefill batch and 112 decode batches.
    arriving = [Request(0, n, 0, 129, 112) for n in range(12)]
    engine = Engine(staircase("11.28", "35.47", 128), 512)
    Simulator(engine, reference_policies.faster_transformer(), arriving).run()
    cycle = 15_316 + 112 * 4_675
    assert [r.finish for r in arriving] == [cycle * (1 + n // 3) for n in range(12)]
