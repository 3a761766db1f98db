"""Scenarios of networks as the plain event simulator takes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jax
import reference_policies
from network_memory import KV
from network_recording import draws, jobs
from network_reference import Loop, NetworkSimulator, Site, Step
from network_workloads import POLICIES, RandomNetwork, without_memory
from reference import BATCH_TIMES, attention, hinge
from reference import Engine as PlainEngine

from llmgym.engine.simulator import lower as lower_network
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.scenario import Scenario

JOBS, VISITS = 500, 48
"""Jobs, and visits to their stages, whose random numbers are at hand."""


def simulators(
    network: RandomNetwork, keys: jax.Array, number: int, **other: Any
) -> Iterator[NetworkSimulator]:
    """A random network under policy ``number`` of POLICIES, one simulator for each of the keys.

    ``other`` are changes to the site, or the token budget of the policy.
    """
    name, fixed = POLICIES[number]
    budget = other.pop("token_budget", network.token_budget)
    policy = reference_policies.POLICIES[name](**fixed, token_budget=budget)
    site = replace(reference_site(network.scenario), **other)
    steps = reference_steps(network.scenario)
    # What arrives, and how long it is, depends on nothing that engines are. (Sizes: to compile once.)
    lowered = lower_network(without_memory(network.scenario), network.burst)
    drawn = replace(lowered, fresh=64, coming=64)
    arriving, numbers = jobs(drawn, keys, JOBS), draws(drawn, keys, JOBS, VISITS)
    for coming, random in zip(arriving, numbers, strict=True):
        yield NetworkSimulator(site, steps, policy, coming, random)


def reference_site(scenario: Scenario) -> Site:
    """The engines of a scenario for the event simulator."""
    tick_ms = Fraction(str(scenario.tick_ms))
    groups = []
    for engine in scenario.engines:
        groups.append((plain_engine(engine, tick_ms),) * engine.replicas)
    return Site(tuple(groups), scenario.router, scenario.slots, tick_ms)


def plain_engine(engine: Engine, tick_ms: Fraction) -> PlainEngine:
    """One engine for the event simulator."""
    constants = tuple(vars(engine.batch_time).values())  # fields in their order
    roofline = engine.batch_time.kind == "roofline"
    kind = hinge if roofline else BATCH_TIMES[engine.batch_time.kind]
    plain = PlainEngine(
        kind(*constants[:3] if roofline else constants),
        engine.token_budget,
        engine.max_num_seqs,
        engine.seq_limit,
        tick_ms=tick_ms,
        attention_ms=attention(*constants[3:]) if roofline else None,
        samples=engine.first_token == "prefill",
        kv=None if engine.kv_cache is None else _kv(engine.kv_cache),
    )
    return replace(plain, tile=getattr(engine.batch_time, "tile", plain.tile))


def _kv(cache: KVCache) -> KV:
    swap = cache.swap_tokens_per_ms
    return KV(
        cache.blocks,
        cache.block_size,
        cache.prefix_caching,
        None if swap is None else Fraction(swap),
    )


def reference_steps(scenario: Scenario) -> list[list[Step]]:
    """The workflows of a scenario for the event simulator."""
    if not scenario.job_types:
        return [[Step(0, ())]]
    groups = [e.name for e in scenario.engines]
    found = []
    for job in scenario.job_types:
        names = [s.name for s in job.stages]
        steps = []
        for n, stage in enumerate(job.stages):
            after = names[max(n - 1, 0) : n] if stage.after is None else stage.after
            again = stage.repeat
            steps.append(
                Step(
                    None if stage.is_delay else groups.index(stage.engine),
                    tuple(names.index(name) for name in after),
                    stage.probability,
                    again and Loop(names.index(again.to), again.probability, again.rounds),
                    stage.inherits,
                    (0, 1)
                    if stage.shared_prefix is None
                    else (stage.shared_prefix.tokens, stage.shared_prefix.variants),
                )
            )
        found.append(steps)
    return found
