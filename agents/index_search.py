"""The tile index tuned by cross-entropy search.

``search`` draws parameter vectors of ``llmgym.baselines.Index`` from a normal distribution, simulates
all of them at once on the same requests, and moves the distribution to the best of them (Rubinstein
and Kroese, The Cross-Entropy Method, 2004).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmgym.agents.trials import Figures, measure
from llmgym.baselines.index import PARAMETERS, Index
from llmgym.core.checks import (
    as_list,
    check_callable,
    check_kind,
    check_name,
    check_path,
    check_settings,
    keep_number,
)
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.files import to_json, write
from llmgym.core.folders import alone_in
from llmgym.core.precision import in_32_bits
from llmgym.core.reading import read_json
from llmgym.evaluation.statistics import mean_interval
from llmgym.scenario import toml_writer
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load, capacity

OBJECTIVES = ("latency", "throughput")
OVERLOAD = 1.4
"""Load at which throughput is measured: soon more requests wait than a batch can take."""

SPREAD = {
    "prefill_weight": 0.2,
    "age_weight": 0.3,
    "urgency_weight": 0.1,
    "backlog_weight": 0.05,
    "decode_weight": 0.1,
    "power": 0.1,
}
"""Standard deviations of the first generation."""

START = Index()


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Attributes:
        objective: "latency": mean end-to-end latency by Little's law; "throughput": tokens served
            under overload.
        population, elites, generations: vectors of a generation, how many of them move the
            distribution, and number of generations.
        num_envs: environments for each vector and load.
        warmup_s, duration_s: simulated seconds left out and measured.
        late_weight: what each percent of requests beyond the TTFT target adds to the objective (0.01:
            as much as one percent of latency). The first percent is free: p99 may just meet the target.
        goodput_weight: what each percent of requests that miss one of the targets adds.
        smoothing: weight of the elites' mean and deviation against the old ones.
        check_envs: environments of the last measurement, on requests that the search has not seen.
        seed: of parameters and requests.
    """

    objective: str = "latency"
    population: int = 32
    elites: int = 6
    generations: int = 10
    num_envs: int = 8
    warmup_s: float = 40.0
    duration_s: float = 160.0
    late_weight: float = 0.0
    goodput_weight: float = 0.0
    smoothing: float = 0.7
    check_envs: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        check_name("objective", self.objective, OBJECTIVES)
        for name in ("population", "elites", "generations", "num_envs"):
            keep_number(self, name, low=1, high=2**20, integer=True)
        keep_number(self, "elites", high=self.population)
        keep_number(self, "check_envs", low=2, high=2**20, integer=True)
        keep_number(self, "duration_s", above=0)
        keep_number(self, "smoothing", above=0, high=1)
        for name in ("warmup_s", "late_weight", "goodput_weight"):
            keep_number(self, name, low=0)
        keep_number(self, "seed", low=0, high=2**31 - 1, integer=True)


@dataclass(frozen=True)
class SearchResult:
    """The tuned rule and what it does.

    Attributes:
        policy: the rule.
        figures: one row for each load (for throughput: of OVERLOAD alone): ``load``, and ``e2e_s``,
            ``requests_per_s``, ``late`` and ``good`` (see ``trials.Figures``) as (mean, low, high) with
            a 95 % interval over environments, on requests that the search has not seen.
        history: one row for each generation: its best objective, 1 being that of the start, and the
            mean and deviation of the parameters after it.
    """

    policy: Index
    figures: list[dict[str, Any]]
    history: list[dict[str, Any]] = field(repr=False)


@in_32_bits
def search(
    scenario: Scenario | str,
    loads: Sequence[float | None] = (None,),
    settings: Settings | None = None,
    start: Index = START,
    spread: dict[str, float] | None = None,
    path: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SearchResult:
    """Tune the tile index of one engine for all ``loads`` at once.

    The objective of a vector is the mean over the loads of its latency (or of the inverse of its
    throughput) relative to that of ``start`` on the same requests, plus the penalties. Where latency is
    the objective, a vector that lets the table overflow is discarded.

    Args:
        scenario: a Scenario or the name of one, of a single engine.
        loads: fractions of the LP capacity; None: the scenario's own rate. Throughput ignores them.
        settings: see Settings.
        start: mean of the first generation.
        spread: its standard deviations by parameter; a parameter of deviation 0 stays as it is.
        path: file that keeps the state after every generation. A search that finds it goes on from
            there and ends as if it had never stopped.
        progress: called with generations done, generations in all, and a line of text.

    Raises LLMGymError on bad arguments, for a file of another search or in a folder that another process
    writes to, and where every vector of a generation lets the table overflow.
    """
    settings = Settings() if settings is None else settings
    check_kind("settings", settings, Settings)
    check_kind("start", start, Index)
    spread = SPREAD if spread is None else check_settings("spread", spread)
    for name, width in spread.items():
        check_name("parameter", name, PARAMETERS)
        check_number(f"spread of {name}", width, low=0)
    loads = as_list("loads", loads, what="numbers")
    path = None if path is None else check_path("path", path)
    check_callable("progress", progress)
    problems = _problems(as_scenario(scenario), loads, settings)
    config = {
        "scenarios": [toml_writer.dumps(p) for p in problems],
        "settings": asdict(settings),
        "start": asdict(start),
        "spread": spread,
    }
    mean = np.array([getattr(start, name) for name in PARAMETERS], float)
    deviation = np.array([spread.get(name, 0.0) for name in PARAMETERS], float)
    with alone_in(None if path is None else Path(path).parent):
        history: list[dict[str, Any]] = _resume(path, config)
        if history:
            mean, deviation = (np.array(history[-1][k]) for k in ("mean", "deviation"))
        while len(history) < settings.generations:
            row = _generation(problems, settings, start, mean, deviation, len(history))
            mean, deviation = np.array(row["mean"]), np.array(row["deviation"])
            history.append(row)
            if path is not None:
                write(Path(path), to_json({"config": config, "history": history}))
            if progress is not None:
                progress(len(history), settings.generations, f"objective {row['best']:.4f}")
    return _checked(problems, loads, settings, start, mean, history)


def vary(base: Index, numbers: jax.Array) -> Index:
    """The rule with ``PARAMETERS`` replaced by the rows of ``numbers``."""
    return replace(base, **dict(zip(PARAMETERS, numbers, strict=True)))


def blank(rule: Index) -> Index:
    """The rule without its ``PARAMETERS``: all rules that differ in these share compiled programs."""
    none: dict[str, Any] = dict.fromkeys(PARAMETERS, 0.0)
    return replace(rule, **none)


def _problems(
    scenario: Scenario, loads: Sequence[float | None], settings: Settings
) -> list[Scenario]:
    """What is simulated: the scenario at each load, or overloaded."""
    if scenario.is_network:
        raise LLMGymError("The tile index is tuned on one engine; a network has several.")
    if settings.objective == "throughput":
        return [scenario.at_rate(OVERLOAD * capacity(scenario).requests_per_s)]
    if not loads:
        raise LLMGymError("A search needs at least one load.")
    return [at_load(scenario, load) for load in loads]


def _generation(
    problems: list[Scenario],
    settings: Settings,
    start: Index,
    mean: np.ndarray,
    deviation: np.ndarray,
    number: int,
) -> dict[str, Any]:
    """One round: draw, simulate, move towards the elites."""
    rng = np.random.default_rng([settings.seed, number])
    drawn = mean + deviation * rng.standard_normal((settings.population, mean.size))
    drawn[:, -1] = np.maximum(drawn[:, -1], 0.0)  # the power
    score = _scores(problems, settings, start, drawn, settings.num_envs, number + 1)[0]
    best = np.argsort(score, kind="stable")[: settings.elites]
    if not np.isfinite(score[best[0]]):
        raise LLMGymError(
            "Every vector of a generation let the request table overflow; give the scenario more "
            "slots, lower the loads, or start from a rule that is stable there."
        )
    elites = drawn[best[np.isfinite(score[best])]]
    keep = 1 - settings.smoothing
    mean = keep * mean + settings.smoothing * elites.mean(axis=0)
    deviation = keep * deviation + settings.smoothing * elites.std(axis=0)
    return {"best": float(score[best[0]]), "mean": mean.tolist(), "deviation": deviation.tolist()}


def _scores(
    problems: list[Scenario],
    settings: Settings,
    start: Index,
    vectors: np.ndarray,
    num_envs: int,
    seed: int,
) -> tuple[np.ndarray, list[Figures]]:
    """Objective of every vector, and the figures of the start (row 0) and of all vectors by load."""
    base = np.array([getattr(start, name) for name in PARAMETERS], float)
    rows = np.concatenate([base[None], vectors])
    saturate = settings.objective == "throughput"
    total, found = np.zeros(len(vectors)), []
    for problem in problems:
        figures = measure(
            problem, vary, blank(start), rows, num_envs, settings.warmup_s, settings.duration_s,
            seed=seed + 1000 * settings.seed,
        )  # fmt: skip
        cost = 1 / figures.requests_per_s.mean(axis=1) if saturate else figures.e2e_s.mean(axis=1)
        late, missed = figures.late.mean(axis=1), 1 - figures.good.mean(axis=1)
        score = cost / cost[0]
        score = score + 100 * settings.late_weight * np.maximum(late - 0.01, 0)
        score = score + 100 * settings.goodput_weight * missed
        if not saturate:
            score = np.where((figures.dropped > 0).any(axis=1), np.inf, score)
        total += score[1:] / len(problems)
        found.append(figures)
    return total, found


def _checked(
    problems: list[Scenario],
    loads: Sequence[float | None],
    settings: Settings,
    start: Index,
    mean: np.ndarray,
    history: list[dict[str, Any]],
) -> SearchResult:
    """The result with its figures on new requests."""
    tuned = np.round(mean, 4)
    _, found = _scores(problems, settings, start, tuned[None], settings.check_envs, 0)
    rows = []
    ran = (OVERLOAD,) if settings.objective == "throughput" else loads
    for load, figures in zip(ran, found, strict=True):
        names = ("e2e_s", "requests_per_s", "late", "good")
        columns = {n: mean_interval(getattr(figures, n)[1]) for n in names}
        rows.append({"load": load, **columns})
    policy = replace(start, **dict(zip(PARAMETERS, tuned.tolist(), strict=True)))
    return SearchResult(policy, rows, history)


def _resume(path: str | Path | None, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The generations that a file holds; none where there is no file."""
    if path is None or not os.path.exists(path):
        return []
    kept = read_json(path, "the file of a search", "Delete it or name another.")
    history = kept.get("history")
    if "config" not in kept or not isinstance(history, list):
        raise LLMGymError(f"{path} does not hold a search; delete it or name another.")
    if kept["config"] != json.loads(to_json(config)):
        raise LLMGymError(
            f"{path} holds a search with other settings; delete it or name another file."
        )
    for row in history:
        for name in ("mean", "deviation"):
            numbers = row.get(name) if isinstance(row, dict) else None
            if not isinstance(numbers, list) or len(numbers) != len(PARAMETERS):
                raise LLMGymError(f"{path} is damaged: a generation is cut. Delete it.")
            for number in numbers:
                check_number(f"{path}: {name}", number)
    return history
