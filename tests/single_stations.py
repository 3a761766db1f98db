"""Random scenarios of one engine and jobs of one call, with every kind of KV memory and with rooflines."""

from __future__ import annotations

from dataclasses import replace

from network_workloads import RandomNetwork, Structure, random_network

SINGLE = Structure(0, "cycle", (1,), "round_robin", None, "hinge", 2, 120, 40, ("none",))
SINGLES = [
    replace(SINGLE, seed=seed, memories=(memory,), first_token=token, cap=cap, rooflines=rooflines)
    for seed, memory, token, cap, rooflines in (
        (0, "prefix", "prefill", None, (0,)),
        (1, "recompute", "prefill", "resident", ()),
        (2, "recompute", "decode", "batch", (0,)),
        (7, "swap", "prefill", "batch", (0,)),
        (4, "swap", "decode", "resident", ()),
        (5, "prefix", "decode", "resident", ()),
        (6, "none", "prefill", "resident", (0,)),
    )
]
"""One engine each: its memory, when the first token comes, what its seats count, and rooflines."""


def single(structure: Structure, seed: int) -> RandomNetwork:
    """The network of a seed with jobs of one call, all of the first stages.

    Few enough that slots last: what finds them taken is dropped at another time than in a network.
    """
    network = random_network(structure, seed)
    scenario = network.scenario
    one = tuple(replace(job, stages=job.stages[:1]) for job in scenario.job_types)
    slow = 0.1 if "swap" in structure.memories else 0.4
    usual = 0.5 if "recompute" in structure.memories else 1
    rate = scenario.arrival_rate_per_s * (slow if structure.rooflines else usual)
    if structure.cap == "batch":  # requests take turns, a batch for each output token
        engine = scenario.engine
        batch_ms = float(engine.batch_time.ms(engine.max_num_seqs or 1))
        together = (engine.max_num_seqs or 1) / (1 + replace(scenario, workload=one).mean_decode)
        rate = min(rate, 400 * together / batch_ms)
    one_call = replace(scenario, workload=one).at_rate(rate)
    if "swap" in structure.memories:
        one_call = replace(one_call, slots=64)
    return replace(network, scenario=one_call, burst=0)
