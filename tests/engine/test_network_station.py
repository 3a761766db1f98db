"""Stations of the plain network simulator: one against the plain model of vLLM, and several by hand."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import reference_policies
from network_memory import KV
from network_reference import Draws, NetworkSimulator, Site, Step
from reference import Engine, affine
from vllm_reference import random_case, schedule


class Listed(Draws):
    """Requests of one call each, by number: their lengths, and where their prefix stands in [0, 1)."""

    def __init__(self, lengths: list[tuple[int, int]], prefixes: list[float]) -> None:
        self.given, self.prefixes = lengths, prefixes

    def lengths(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int]:
        return self.given[job[1]]

    def uniform(self, what: str, job: tuple[int, int], stage: int, visit: int) -> float:
        return self.prefixes[job[1]] if what == "prefix" else 0.5


VARIANTS = 2


def vllm_case(seed: int, caching: bool) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    """A workload and a configuration for the plain model of vLLM, and the station that is the same.

    With ``caching`` prompts begin with the same tokens, one of VARIANTS.
    """
    rows, config = random_case(seed)
    longest = max(row["prompt_len"] + row["output_len"] for row in rows) - 1
    rng = random.Random(seed + 1000)
    blocks = -(-longest // config["block_size"]) + rng.randint(0, 4)
    config |= {
        "max_num_batched_tokens": rng.choice((3, 8, 16, 64)),
        "num_blocks_incl_null": 1 + blocks,
        "enable_chunked_prefill": True,
        "long_prefill_token_threshold": 0,
        "policy": "fcfs",
        "enable_prefix_caching": caching,
        "scheduler_reserve_full_isl": True,
        "watermark": 0.0,
        "prefill_schedule_interval": 1,
        "max_model_len": 8192,
    }
    common = rng.randint(1, 30)
    variants = [rng.randrange(VARIANTS) for _ in rows]
    for row, variant in zip(rows, variants, strict=True):
        own = [(row["id"], n) for n in range(row["prompt_len"])]
        row["prompt_token_ids"] = [(variant, n) for n in range(common)][: len(own)] + own[common:]
    engine = Engine(
        affine(1, 0),
        config["max_num_batched_tokens"],
        config["max_num_seqs"],
        "resident",
        tick_ms=Fraction(1),
        samples=True,
        kv=KV(blocks, config["block_size"], caching),
    )
    simulator = NetworkSimulator(
        Site(((engine,),), "round_robin", len(rows), Fraction(1)),
        [[Step(0, (), shared=(common, VARIANTS) if caching else (0, 1))]],
        reference_policies.vllm_v1(),
        [(row["arrival_step"], 0, n) for n, row in enumerate(rows)],
        Listed(
            [(row["prompt_len"], row["output_len"]) for row in rows],
            [(variant + 0.5) / VARIANTS for variant in variants],
        ),
    )
    return rows, config, simulator


@pytest.mark.parametrize("caching", [False, True])
def test_one_station_is_the_plain_model_of_vllm(caching: bool) -> None:
    seen: Counter[str] = Counter()
    for seed in range(200):
        rows, config, simulator = vllm_case(seed, caching)
        while simulator.step():
            pass
        (server,) = simulator.servers
        batches = {
            ran.start: {str(name[1]): n for name, n in (ran.prefill | ran.decode).items()}
            for ran in server.batches
        }
        expected = schedule(rows, config)
        scheduled = [(step["step"], step["scheduled"]) for step in expected]
        assert batches == {
            now: {entry["id"]: entry["tokens"] for entry in entries}
            for now, entries in scheduled
            if entries
        }
        assert simulator.completed == len(rows)
        assert simulator.count("preempted") == sum(len(step["preempted"]) for step in expected)
        assert (
            len(server.engine.memory.pool.free if caching else [])
            == caching * server.engine.kv.blocks
        )
        seen.update({what: simulator.count(what) for what in ("preempted", "found")})
    assert seen["preempted"] > 200
    assert (seen["found"] > 1000) == caching


def by_hand(
    groups: tuple[tuple[Engine, ...], ...],
    steps: list[Step],
    numbers: Draws,
    arriving: list[int],
    router: str = "fewest_requests",
) -> NetworkSimulator:
    """Sarathi-Serve until all is done."""
    site = Site(groups, router, 8, Fraction(1))
    coming = [(arrival, 0, n) for n, arrival in enumerate(arriving)]
    simulator = NetworkSimulator(site, [steps], reference_policies.sarathi(), coming, numbers)
    while simulator.step():
        pass
    return simulator


class Stages(Draws):
    """Lengths of each stage of the only job type."""

    def __init__(self, *lengths: tuple[int, int]) -> None:
        self.given = lengths

    def lengths(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int]:
        return self.given[stage]

    def uniform(self, what: str, job: tuple[int, int], stage: int, visit: int) -> float:
        return 0.5


def engine(blocks: int | None, **settings: Any) -> Engine:
    """t_b = 2 ticks and a budget of 4; KV memory in blocks of two tokens."""
    kv = None if blocks is None else KV(blocks, 2)
    return Engine(affine(2, 0), 4, tick_ms=Fraction(1), kv=kv, **settings)


def test_a_call_that_never_fits_takes_its_job_along() -> None:
    # Stage 1 (5 + 2 tokens) never fits into 3 blocks. Stage 2 is on its way: it ends, and 3 never starts.
    steps = [Step(0, ()), Step(1, (0,)), Step(0, (0,)), Step(0, (1, 2))]
    simulator = by_hand(
        ((engine(None),), (engine(3),)), steps, Stages((1, 0), (5, 2), (1, 2), (1, 0)), [0, 1]
    )
    assert {name[1:3] for name in simulator.finished} == {(0, 0), (0, 2), (1, 0), (1, 2)}
    counts = simulator.arrived, simulator.dropped, simulator.refused, simulator.present
    assert counts == (2, 2, 2, 0)
    assert (simulator.completed, simulator.backlog) == (0, 0)
    # With the prompt the last output token needs no memory: it fits.
    fits = ((engine(None, samples=True),), (engine(3, samples=True),))
    assert by_hand(fits, steps, Stages((1, 0), (5, 2), (1, 2), (1, 0)), [0, 1]).completed == 2


def test_who_is_preempted_computes_again_or_waits_outside() -> None:
    # Prompts of 4 and outputs of 5 in 5 blocks. At tick 6 both decode: the first has 6 tokens and wants
    # a fourth block, the second has 4 and wants a third. It goes until the first is done.
    arriving, lengths = [0, 0], Stages((4, 5))
    steps, settings = [Step(0, ())], {"samples": True}
    again = by_hand(((engine(5, **settings),),), steps, lengths, arriving)
    swap = KV(5, 2, swap_per_ms=Fraction(2))
    outside = by_hand(((replace(engine(None, **settings), kv=swap),),), steps, lengths, arriving)
    first = [(ran.start, ran.tokens) for ran in again.servers[0].batches]
    # The prompt and the first output, 5 tokens, in chunks of 4 and 1 as the budget says.
    assert first[:3] == [(0, 4), (2, 4), (4, 2)]
    assert first[3:] == [(6, 1), (8, 1), (10, 4), (12, 1), (14, 1), (16, 1), (18, 1)]
    second = [(ran.start, ran.duration, ran.tokens) for ran in outside.servers[0].batches]
    # 4 tokens take 2 ms on their way out, and the same when they come back.
    assert second[:3] == [(0, 2, 4), (2, 2, 4), (4, 2, 2)]
    assert second[3:6] == [(6, 4, 1), (10, 2, 1), (12, 4, 1)]
    assert second[6:] == [(16, 2, 1), (18, 2, 1), (20, 2, 1)]
    assert (again.count("lost"), outside.count("swapped")) == (4, 8)


def test_routers_see_what_is_in_memory() -> None:
    # Three calls at once; a fourth later. In memory are 4 + 2 and 4 tokens: it goes to the second.
    both = (engine(9), engine(9))
    simulator = by_hand((both,), [Step(0, ())], Stages((4, 4)), [0, 1, 3], router="least_kv")
    homes = [{name[1] for ran in s.batches for name in ran.prefill} for s in simulator.servers]
    assert homes == [{0, 1}, {2}]
