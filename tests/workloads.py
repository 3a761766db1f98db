"""Random workloads of many structures: compiling is what costs time in JAX.

A ``Structure`` holds what is static (policy, kind of cap, of arrivals and lengths, table size); a seed
chooses every number.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from reference import BATCH_TIMES, Engine

from llmgym.scenario import arrivals, lengths
from llmgym.scenario.batch_time import CODELLAMA_34B_A100, Affine, BatchTime, Hinge, Staircase
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired
from llmgym.scenario.workload import JobType, Workload

CAPS = (None, "batch", "resident")
ARRIVALS = ("poisson", "deterministic", "gamma", "mmpp", "replay")
LENGTHS = ("fixed", "geometric", "uniform", "lognormal", "poisson", "empirical", "paired")
BATCH_TIME_KINDS = ("staircase", "published", "hinge", "affine")
REPLAYED = 400
"""Requests of a replay."""

POLICIES: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("faster_transformer", {"prompts": "whole"}, ()),
    ("faster_transformer", {"prompts": "split"}, ("token_budget",)),
    ("vllm", {"prompts": "whole"}, ("token_budget",)),
    ("vllm", {"prompts": "split"}, ()),
    ("orca", {}, ()),
    ("orca", {}, ("token_budget",)),
    ("sarathi", {}, ()),
    ("sarathi", {}, ("token_budget",)),
    ("always_full", {}, ()),
    ("greedy_rate", {}, ()),
    ("greedy_rate", {"tile": 8}, ("token_budget",)),
    ("tile_align", {}, ()),
    ("tile_align", {"tile": 8}, ("token_budget",)),
    ("flush", {}, ("threshold",)),
    ("k_fcfs", {"order": "arrival"}, ()),
    ("k_fcfs", {"order": "arrival"}, ("token_budget", "k")),
    ("k_fcfs", {"order": "decode"}, ("k",)),
    ("k_fcfs", {"order": "prefill"}, ("k",)),
    ("vllm_v1", {}, ("token_budget",)),
    ("idle", {}, ()),
)
"""Every policy: name, settings that are static, and settings that the seed chooses."""


@dataclass(frozen=True)
class Structure:
    """What is static in a compiled run; the policy is chosen by its number in POLICIES."""

    cap: str | None
    arrivals: str
    prefill: str
    decode: str
    classes: int
    batch_time: str
    slots: int
    fresh: int

    @property
    def label(self) -> str:
        """Name of the test."""
        lengths_label = (
            self.prefill if self.prefill == "paired" else f"{self.prefill}_{self.decode}"
        )
        return f"{self.cap}-{self.arrivals}_{self.classes}-{lengths_label}-{self.batch_time}"


def structures() -> list[Structure]:
    """Every kind of arrivals with every kind of cap; the other choices rotate against one another."""
    found = []
    for n in range(len(ARRIVALS) * len(CAPS)):
        kind, prefill = ARRIVALS[n % 5], LENGTHS[n % 7]
        structure = Structure(
            cap=CAPS[n % 3],
            arrivals=kind,
            prefill=prefill,
            decode=prefill if prefill == "paired" else LENGTHS[(n + n // 7 + 1) % 6],
            classes=1 if kind == "replay" else (1, 2, 1, 3)[n % 4],
            batch_time=BATCH_TIME_KINDS[(n + n // 4) % 4],
            slots=(24, 13, 40, 64)[n % 4],
            fresh=(16, 19, 40)[(n + n // 3) % 3],
        )
        found.append(structure)
    return found


MIXED = Structure(
    cap=None,
    arrivals="poisson",
    prefill="geometric",
    decode="uniform",
    classes=2,
    batch_time="staircase",
    slots=13,
    fresh=19,
)
"""The structure of property tests: two job types, in a small table."""


@dataclass(frozen=True)
class RandomWorkload:
    """A scenario, a number of requests that are there at the start, and settings for policies."""

    scenario: Scenario
    burst: int
    settings: dict[str, int]


def random_workload(structure: Structure, seed: int) -> RandomWorkload:
    """The workload that a seed chooses in a structure."""
    rng = np.random.default_rng([seed, *structure.label.encode()])
    tick = float(rng.choice([0.01, 0.1, 1.0])) if structure.batch_time != "published" else 0.01
    batch_time = _batch_time(structure.batch_time, tick, rng)
    tile = 128 if structure.batch_time == "published" else 8
    budget = int(rng.integers(max(tile // 2, 6), 5 * tile))
    mean = float(rng.uniform(0.1, 1.0)) * tile
    per_batch = min(rng.uniform(0.6, 1.5) * budget / (2 * mean), 6)  # requests
    rate = per_batch / float(batch_time.ms(budget)) * 1000
    seats = int(rng.integers(1, 2 + min(structure.slots, budget) // 2))  # few enough to be felt
    zero = str(rng.choice(["none", "prefill", "decode", "both"]))
    if structure.arrivals == "replay":
        workload: Any = _replay(rate, mean, rng)
    else:
        workload = tuple(
            _job_type(structure, i, rate / structure.classes, mean, zero, rng)
            for i in range(structure.classes)
        )
    scenario = Scenario.single_engine(
        batch_time,
        budget,
        workload,
        max_num_seqs=None if structure.cap is None else seats,
        seq_limit=structure.cap or "batch",
        slots=structure.slots,
        tick_ms=tick,
    )
    values = {
        "token_budget": int(rng.integers(max(budget // 2, 1), 2 * budget)),
        "k": int(rng.integers(1, structure.slots)),
        "threshold": int(rng.integers(0, 4 * tile)),
    }
    burst = int(rng.integers(1, structure.slots)) if rng.uniform() < 0.25 else 0
    return RandomWorkload(scenario, burst, values)


def _batch_time(kind: str, tick: float, rng: np.random.Generator) -> BatchTime:
    """Random constants, whole numbers of ticks."""
    ticks = [round(float(t), 4) for t in rng.integers((1, 1), (1200, 400)) * tick]
    if kind == "published":
        return CODELLAMA_34B_A100
    if kind == "staircase":
        return Staircase(ticks[0], ticks[1], int(rng.integers(3, 12)))
    if kind == "hinge":
        return Hinge(ticks[0], ticks[1], int(rng.integers(0, 12)))
    return Affine(ticks[0], ticks[1])


def _length(kind: str, mean: float, zero: bool, rng: np.random.Generator) -> lengths.Length:
    if kind == "fixed":
        return lengths.Fixed(0 if zero else int(np.ceil(mean)))
    if kind == "geometric":
        return lengths.Geometric(1 + mean)
    if kind == "uniform":
        return lengths.Uniform(0 if zero else 1, int(2 * mean) + 1)
    if kind == "lognormal":
        return lengths.LogNormal(1 + mean, float(rng.uniform(0.2, 3.0)))
    if kind == "poisson":  # the size of its table depends on the mean, so that is the same for all
        return lengths.Poisson(7.0)
    quantiles = np.sort(rng.uniform(0 if zero else 1, 1 + 2 * mean, 9))
    return lengths.Empirical(quantiles.tolist())


def _pairs(count: int, mean: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and outputs, of which a few are 0 but never both."""
    prefill, decode = rng.integers(0, int(2 * mean) + 3, (2, count))
    return prefill, np.where(prefill + decode == 0, 1, decode)


def _replay(rate: float, mean: float, rng: np.random.Generator) -> Replay:
    """Gaps of all sizes: many requests at one instant, lulls in which the engine runs dry."""
    gaps = rng.exponential(1 / rate, REPLAYED) * rng.choice([0, 0.5, 1, 5], REPLAYED)
    gaps[rng.integers(0, REPLAYED, 4)] += 40 / rate
    return Replay(np.cumsum(gaps), *_pairs(REPLAYED, mean, rng))


def _job_type(
    structure: Structure, job: int, rate: float, mean: float, zero: str, rng: np.random.Generator
) -> JobType:
    kind = ARRIVALS[(ARRIVALS.index(structure.arrivals) + job) % 4]
    process: dict[str, Any] = {
        "poisson": lambda: arrivals.Poisson(rate),
        "deterministic": lambda: arrivals.Deterministic(rate),
        "gamma": lambda: arrivals.GammaRenewal(rate, float(rng.uniform(0.3, 4))),
        "mmpp": lambda: arrivals.MMPP(
            rate, tuple(rng.uniform(0, 5, 2)), tuple(rng.uniform(2, 30, 2) / rate)
        ),
    }
    if structure.prefill == "paired":
        length: dict[str, Any] = {"paired": Paired(*_pairs(12, mean, rng))}
    else:
        kinds = {"prefill": structure.prefill, "decode": structure.decode}
        if "fixed" in kinds.values() and zero == "both":
            zero = "none"  # nothing to serve at all
        length = {k: _length(v, mean, zero in (k, "both"), rng) for k, v in kinds.items()}
    return Workload(process[kind](), **length, name=f"class_{job}")


def reference_engine(scenario: Scenario) -> Engine:
    """The engine of a scenario for the event simulator."""
    engine, kind = scenario.engine, scenario.engine.batch_time.kind
    constants = vars(engine.batch_time).values()  # fields in their order
    return Engine(
        BATCH_TIMES[kind](*constants),
        engine.token_budget,
        engine.max_num_seqs,
        engine.seq_limit,
        scenario.slots,
        tile=getattr(engine.batch_time, "tile", 128),
        tick_ms=Fraction(str(scenario.tick_ms)),
    )
