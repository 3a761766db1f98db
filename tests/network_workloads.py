"""Random networks of many structures: compiling is what costs time in JAX.

A ``Structure`` holds what is static: engines, router, workflows (grown at random from a seed of its own),
kinds of laws, kinds of KV memory and sizes of tables. A seed chooses every number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from network_workflows import grow
from workloads import _length, _pairs, _replay

from llmgym.scenario import arrivals
from llmgym.scenario.batch_time import Affine, BatchTime, Hinge, Roofline, Staircase
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.prefixes import SharedPrefix
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Stage
from llmgym.scenario.workload import JobType

TILE = 8
ROUTERS = (
    "fewest_tokens", "fewest_requests", "power_of_two", "least_kv", "round_robin", "random",
)  # fmt: skip
BATCH_TIME_KINDS = ("staircase", "hinge", "affine", "mixed")
MEMORIES = ("none", "recompute", "swap", "prefix")
POLICIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sarathi", {}),
    ("orca", {}),
    ("vllm", {"prompts": "split"}),
    ("faster_transformer", {"prompts": "split"}),
    ("always_full", {}),
    ("vllm_v1", {}),
)
"""Name, and settings that are static; each has a token budget of its own besides."""


@dataclass(frozen=True)
class Structure:
    """What is static in a compiled run; ``seed`` grows the workflows.

    ``memories``: what KV memory the engines of each group have, of MEMORIES. ``rooflines``: of which
    groups the batch time depends on the context.
    """

    seed: int
    form: str
    engines: tuple[int, ...]  # replicas of each group
    router: str
    cap: str | None
    batch_time: str
    types: int
    slots: int
    fresh: int
    memories: tuple[str, ...]
    first_token: str = "decode"
    rooflines: tuple[int, ...] = ()

    @property
    def featured(self) -> bool:
        """Whether an engine has anything that depends on what its requests have in memory."""
        return self != self.plain

    @property
    def plain(self) -> Structure:
        """The same without any of it."""
        none = ("none",) * len(self.engines)
        return replace(self, memories=none, first_token="decode", rooflines=())

    @property
    def label(self) -> str:
        """Name of the test."""
        replicas = "+".join(map(str, self.engines))
        label = f"{self.seed}-{self.form}_{self.types}-{replicas}-{self.router}-{self.cap}"
        if not self.featured:
            return label
        rooflines = "-roofline" * bool(self.rooflines)
        return f"{label}-{'+'.join(self.memories)}-{self.first_token}{rooflines}"


PLAIN = ("", "decode", "")
"""No KV memory."""

TABLE: tuple[tuple[int, str, tuple[int, ...], int, tuple[str, str, str]], ...] = (
    (0, "cycle", (1, 1), 2, ("rr", "prefill", "")),
    (3, "dag", (2, 1), 2, ("pp", "decode", "1")),
    (120, "any", (3,), 1, ("s", "decode", "")),
    (7, "loop", (1, 2, 1), 1, ("r-r", "prefill", "0")),
    (2, "choice", (2, 1), 2, ("pp", "prefill", "")),
    (140, "tools", (2, 2), 1, ("--", "prefill", "01")),
    (6, "waits", (2, 1), 3, ("r-", "decode", "")),
    (7, "replay", (3,), 1, ("r", "prefill", "0")),
    (52, "any", (1, 2, 1), 2, PLAIN),
    (137, "rounds", (2, 1), 1, ("ss", "prefill", "1")),
    (56, "any", (2, 2), 1, ("pp", "prefill", "1")),
    (46, "tools", (3,), 2, ("r", "prefill", "")),
    (12, "cycle", (2, 2), 1, PLAIN),
    (56, "any", (1, 2, 1), 2, ("sr-", "decode", "02")),
)
"""Seed, form, replicas, job types; then of each group the initial of its memory (-: none), when the
first token comes, and the groups with a roofline."""


def structures(plain: bool = False) -> list[Structure]:
    """Every form and every router, with all caps, batch times and memories; ``plain``: without those."""
    initials = {"-": "none"} | {name[0]: name for name in MEMORIES[1:]}
    found = [
        Structure(
            seed=seed,
            form=form,
            engines=engines,
            router=ROUTERS[(n + n // 6) % 6],
            cap=(None, "batch", "resident")[(n + n // 3) % 3],
            batch_time=BATCH_TIME_KINDS[(n + n // 4) % 4],
            types=types,
            slots=(12, 7, 16, 4, 9)[n % 5],
            fresh=(40, 24, 33)[n % 3],
            memories=tuple(initials[k] for k in memories or "-" * len(engines)),
            first_token=first_token,
            rooflines=tuple(map(int, rooflines)),
        )
        for n, (seed, form, engines, types, (memories, first_token, rooflines)) in enumerate(TABLE)
    ]
    return [s.plain for s in found] if plain else found


def workflows(structure: Structure) -> list[list[dict[str, Any]]]:
    """The stages of every job type, without lengths."""
    rng, size = np.random.default_rng([structure.seed, 77]), (8, 5, 3)[structure.types - 1]
    return [grow(rng, structure.form, len(structure.engines), size) for _ in range(structure.types)]


@dataclass(frozen=True)
class RandomNetwork:
    """A scenario, a number of jobs that are there at the start, and the policies' own token budget."""

    scenario: Scenario
    burst: int
    token_budget: int


def random_network(structure: Structure, seed: int) -> RandomNetwork:
    """The network that a seed chooses in a structure. Half of them have coarse time: much at one instant."""
    rng = np.random.default_rng([seed, structure.seed])
    coarse = bool(rng.uniform() < 0.5)
    tick = 1.0 if coarse else float(rng.choice([0.01, 0.1]))
    if "swap" in structure.memories:  # powers of two, by which 32 bits divide without rounding
        tick = {0.01: 1 / 128, 0.1: 1 / 8}.get(tick, tick)
    engines = tuple(
        _engine(structure, group, tick, coarse, rng) for group in range(len(structure.engines))
    )
    mean = float(rng.uniform(0.3, 2.5)) * (
        1 if structure.memories == structure.plain.memories else 2
    )
    if structure.form == "replay":
        workload: Any = _replay(1.0, mean, rng)
    else:
        # Prefix caching would lose a block at every request whose prompt is empty and yields a token.
        prompted = "prefix" in structure.memories and structure.first_token == "prefill"
        stages = [
            tuple(_stage(draft, mean, tick, coarse, rng, prompted) for draft in drafts)
            for drafts in workflows(structure)
        ]
        if "prefix" in structure.memories:
            stages = [tuple(_shared(stage, mean, rng) for stage in list_) for list_ in stages]
        workload = tuple(_job_type(structure, n, list_, rng) for n, list_ in enumerate(stages))
    scenario = Scenario(
        engines, workload, slots=structure.slots, router=structure.router, tick_ms=tick
    )
    scenario = scenario.at_rate(_capacity(scenario) * float(rng.uniform(0.5, 1.4)))
    scenario = replace(scenario, engines=_with_memory(structure, scenario, tick, coarse, rng))
    burst = int(rng.integers(1, structure.slots)) if rng.uniform() < 0.25 else 0
    return RandomNetwork(scenario, burst, int(rng.integers(4, 60)))


def _engine(
    structure: Structure, group: int, tick: float, coarse: bool, rng: np.random.Generator
) -> Engine:
    kind = structure.batch_time
    if kind == "mixed":
        kind = BATCH_TIME_KINDS[(group + structure.seed) % 3]
    seats = int(rng.integers(1, 8)) if group == 0 or rng.uniform() < 0.7 else None
    return Engine(
        _batch_time(kind, tick, coarse, rng),
        int(rng.integers(4, 5 * TILE)),
        max_num_seqs=None if structure.cap is None else seats,
        seq_limit=structure.cap or "batch",
        name=f"e{group}",
        replicas=structure.engines[group],
    )


def _batch_time(kind: str, tick: float, coarse: bool, rng: np.random.Generator) -> BatchTime:
    """Random constants, whole numbers of ticks."""
    most = (4, 3) if coarse else (900, 200)
    c, a = (round(float(t), 9) for t in rng.integers((1, 1), most) * tick)
    if kind == "staircase":
        return Staircase(c, a, int(rng.integers(3, 12)))
    return Hinge(c, a, int(rng.integers(0, 12))) if kind == "hinge" else Affine(c, a)


def _with_memory(
    structure: Structure, scenario: Scenario, tick: float, coarse: bool, rng: np.random.Generator
) -> tuple[Engine, ...]:
    """The engines with what the structure says of memory and rooflines; block sizes are static, too.

    Memory is for about one of the largest calls, as means go: some must be refused, many preempted.
    """
    largest = _largest_means(scenario)
    engines = []
    for group, (engine, memory) in enumerate(
        zip(scenario.engines, structure.memories, strict=True)
    ):
        size = 1 + structure.seed % 4
        tokens = largest[engine.name] * float(rng.uniform(0.4, 1.6)) + 3
        cache = KVCache(
            int(np.ceil(tokens / size)),
            size,
            prefix_caching=memory == "prefix",
            swap_tokens_per_ms=float(2.0 ** rng.integers(-2, 3)) / tick
            if memory == "swap"
            else None,
        )
        batch_time = engine.batch_time
        if group in structure.rooflines:
            # Per token of context, or half a pair, an odd fraction of a tick: no sum ends in a half.
            parts = rng.integers(0, 12 if coarse else 300, 3) / 45 * tick
            constants = (parts * (1e3, 2e6, 1e3)).tolist()
            hinge = _batch_time("hinge", tick, coarse, rng)
            batch_time = Roofline(*vars(hinge).values(), *constants)
        engines.append(
            replace(
                engine,
                kv_cache=None if memory == "none" else cache,
                batch_time=batch_time,
                first_token=structure.first_token,
            )
        )
    return tuple(engines)


def _largest_means(scenario: Scenario) -> dict[str, float]:
    """Of each engine: mean tokens of the stage with the most of them."""
    found = dict.fromkeys((e.name for e in scenario.engines), 0.0)
    for job in scenario.job_types:
        for stage, means in zip(job.stages, job.workflow.means, strict=True):
            if not stage.is_delay:
                found[stage.engine] = max(found[stage.engine], float(sum(means)))
    if not scenario.job_types:
        found[scenario.engine.name] = scenario.mean_prefill + scenario.mean_decode
    return found


def without_memory(scenario: Scenario) -> Scenario:
    """The same jobs at engines without anything that depends on what requests have in memory."""
    engines = tuple(
        replace(engine, batch_time=Affine(1, 0), kv_cache=None, first_token="decode")
        for engine in scenario.engines
    )
    return replace(scenario, engines=engines)


def _shared(stage: Stage, mean: float, rng: np.random.Generator) -> Stage:
    """The stage, mostly with a beginning that its prompts share."""
    tokens, variants = int(rng.integers(1, 4 * mean + 4)), int(rng.integers(1, 4))
    if stage.is_delay or rng.uniform() < 0.2:
        return stage
    return replace(stage, shared_prefix=SharedPrefix(tokens, variants))


def _stage(
    draft: dict[str, Any],
    mean: float,
    tick: float,
    coarse: bool,
    rng: np.random.Generator,
    prompted: bool,
) -> Stage:
    """The stage with lengths; ``prompted``: without empty prompts."""
    fixed = {k: v for k, v in draft.items() if k not in ("kinds", "delay", "engine")}
    prefill, decode = draft["kinds"]
    if draft["delay"]:
        ms = _length(prefill, float(rng.uniform(0.5, 8 if coarse else 4000 * tick)), True, rng)
        return Stage(delay_ms=ms, **fixed | {"inherits": False})
    if prefill == "paired":
        prompts, outputs = _pairs(12, mean, rng)
        return Stage(paired=Paired(prompts + prompted, outputs), engine=draft["engine"], **fixed)
    zero = str(rng.choice(["none", "prefill", "decode"]))
    if prompted and prefill == "poisson":
        prefill = "geometric"
    return Stage(
        _length(prefill, mean, zero == "prefill" and not prompted, rng),
        _length(decode, mean, zero == "decode", rng),
        engine=draft["engine"],
        **fixed,
    )


def _job_type(
    structure: Structure, job: int, stages: tuple[Stage, ...], rng: np.random.Generator
) -> JobType:
    share = float(rng.uniform(0.5, 2))
    processes = (
        lambda: arrivals.Poisson(share),
        lambda: arrivals.Deterministic(share),
        lambda: arrivals.GammaRenewal(share, float(rng.uniform(0.3, 3))),
        lambda: arrivals.MMPP(share, tuple(rng.uniform(0, 5, 2)), tuple(rng.uniform(1, 9, 2))),
        lambda: arrivals.RateCurve(share, tuple(rng.uniform(0, 5, 4)), float(rng.uniform(3, 9))),
    )
    return JobType(processes[(structure.seed + job) % 5](), stages, name=f"job-{job}")


def _capacity(scenario: Scenario) -> float:
    """Jobs a second that the busiest group could serve with full batches, about."""
    tokens = dict.fromkeys((e.name for e in scenario.engines), 0.0)
    for job in scenario.job_types:
        for stage, visits, means in zip(
            job.stages, job.workflow.visits, job.workflow.means, strict=True
        ):
            if not stage.is_delay:
                share = job.rate_per_s / scenario.arrival_rate_per_s
                tokens[stage.engine] += share * visits * sum(means)
    if not scenario.job_types:
        tokens[scenario.engine.name] = scenario.mean_prefill + scenario.mean_decode
    rates = {
        e.name: e.replicas * e.token_budget / float(e.batch_time.ms(e.token_budget)) * 1000
        for e in scenario.engines
    }
    return min(rates[name] / tokens[name] for name in tokens if tokens[name] > 0)
