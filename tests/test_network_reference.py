"""The JAX network against the plain event simulator, batch by batch and to the tick."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import reference_policies
from network_recording import Recorded, draws, jobs, record
from network_reference import NetworkSimulator
from network_workloads import (
    POLICIES,
    Structure,
    random_network,
    reference_site,
    reference_steps,
    structures,
)

from llmgym.evaluation.rollout import keys
from llmgym.network import lower_network

STEPS, ENVS, JOBS, VISITS = 128, 4, 400, 40
"""Epochs of a run; environments of a network; jobs and visits whose random numbers are at hand."""

REPEATS = 3


def compare(recorded: Recorded, simulator: NetworkSimulator, steps: int = STEPS) -> None:
    """Every batch, every time and every count must be equal."""
    for _ in range(steps):
        simulator.epoch()
    for engine, (server, batches) in enumerate(
        zip(simulator.servers, recorded.batches, strict=True)
    ):
        assert server.batches == batches, f"engine {engine}"
    assert simulator.now == recorded.end
    assert not recorded.clipped
    assert simulator.finished == recorded.finished
    for count in ("arrived", "dropped", "present", "completed", "backlog"):
        assert getattr(simulator, count) == getattr(recorded, count), count


def cases(structure: Structure, seed: int) -> Iterator[tuple[Recorded, NetworkSimulator]]:
    """A random network in ENVS environments: what JAX did, and the simulator to compare with."""
    number = seed % len(POLICIES)
    network = random_network(structure, seed)
    lowered = lower_network(network.scenario, network.burst)
    lowered = replace(lowered, fresh=structure.fresh, coming=structure.fresh)
    environments = keys(seed, ENVS)
    recorded = record(lowered, environments, number, network.token_budget, STEPS)
    name, fixed = POLICIES[number]
    policy = reference_policies.POLICIES[name](**fixed, token_budget=network.token_budget)
    site, steps = reference_site(network.scenario), reference_steps(network.scenario)
    arriving = jobs(lowered, environments, JOBS)
    numbers = draws(lowered, environments, JOBS, VISITS)
    for one, coming, random in zip(recorded, arriving, numbers, strict=True):
        assert one.arrived < JOBS
        yield one, NetworkSimulator(site, steps, policy, coming, random)
