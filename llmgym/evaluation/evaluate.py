"""Judging policies against a published one: latencies at many rates, with common random numbers.

They are compared with two references: Sarathi-Serve, or another policy, with the token budget of the
scenario, and the same with the best budget for each rate, chosen in hindsight. Every environment is an
evaluation seed: environment n of a rate meets the same requests under every policy. Runs start from an
empty engine (cold) and from a backlog (hot); where the two agree the runs are long enough. A result folder
holds ``config.json`` and one file for each run under ``raw/``; runs that exist are not repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmgym.core.checks import check_kind, check_text, keep_list, keep_number
from llmgym.core.errors import LLMGymError, check_number
from llmgym.evaluation import benchmark, policies
from llmgym.evaluation.benchmark import VERSIONED, Task, slug
from llmgym.evaluation.capacity import MOST_REQUESTS, estimate_capacity
from llmgym.evaluation.configuration import Settings, check_different
from llmgym.evaluation.simulate import Run, simulate
from llmgym.evaluation.stability import hot_backlog
from llmgym.scenario import toml_writer
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import capacity, mean_work

BUDGETS = (128, 256, 384, 512, 640, 768, 1024)
"""Token budgets over which the reference is tuned."""

STARTS = ("cold", "hot")
RELAXATIONS, MOST_LONGER = 20, 8
"""Least length of a run in relaxation times; most times that this may multiply the length asked for."""

TTFT_MS, TPOT_MS = 1000.0, 100.0
"""Targets of goodput where the scenario has none."""


@dataclass(frozen=True)
class Evaluation:
    """What is judged.

    Args:
        scenario: one engine and arrivals that go on.
        policies: names, checkpoint files, or folders that hold ``agent-*.npz``: one algorithm with a
            checkpoint for each training seed.
        rates: requests per second.
        budgets: over which the reference is tuned.
        seeds: evaluation seeds (environments) of each run.
        arrivals: fewest requests of each environment; the first quarter of a run is warm-up. See
            ``horizon_s``.
        seed: of the arrivals.
        reference: the baseline against which the policies are judged.
    """

    scenario: Scenario
    policies: tuple[str, ...]
    rates: tuple[float, ...]
    budgets: tuple[int, ...] = BUDGETS
    seeds: int = 8
    arrivals: int = 16_000
    seed: int = 0
    reference: str = "sarathi"

    def __post_init__(self) -> None:
        check_kind("scenario", self.scenario, Scenario)
        keep_list(self, "policies", str, "names of policies")
        keep_list(self, "rates", what="numbers")
        keep_list(self, "budgets", what="numbers")
        check_text("reference", self.reference)
        if self.scenario.is_network or self.scenario.demand.end_s is not None:
            raise LLMGymError("evaluate judges one engine whose arrivals go on.")
        if not self.policies or not self.rates or not self.budgets:
            raise LLMGymError("evaluate needs a policy, a rate and a token budget at least.")
        rates = tuple(check_number("rate", rate, above=0) for rate in self.rates)
        limits: Any = {"low": 1, "high": 2**20, "integer": True}
        budgets = tuple(check_number("budget", budget, **limits) for budget in self.budgets)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "budgets", budgets)
        check_different("rates", self.rates)
        keep_number(self, "seeds", low=2, high=2**20, integer=True)
        keep_number(self, "arrivals", low=40, high=MOST_REQUESTS, integer=True)
        keep_number(self, "seed", low=0, high=2**32 - 1, integer=True)
        for name in (*self.policies, self.reference):
            for member in members(name):
                policies.resolve(member)

    def config(self) -> dict[str, Any]:
        """Everything that the numbers depend on, as JSON."""
        everyone = tuple(member for name in self.policies for member in members(name))
        return {
            **vars(self),
            "scenario": toml_writer.dumps(self.scenario),
            "digests": policies.digests(everyone),
            "versions": {name: metadata.version(name) for name in VERSIONED},
        }

    def tuned(self, budget: int) -> str:
        """The name of the reference with a budget."""
        return f"{self.reference}-{budget}"

    def feasible(self, rate: float) -> list[int]:
        """Budgets that carry the rate if nothing but tokens is limited; LLMGymError if none does."""
        found = feasible(self.scenario, self.budgets, rate)
        if not found:
            raise LLMGymError(f"No budget of {self.budgets} carries {rate:g} requests per second.")
        return found


def carried(scenario: Scenario, budget: int) -> float:
    """Requests per second that full batches of a token budget serve."""
    return float(budget / scenario.engine.batch_time.ms(budget) * 1000 / mean_work(scenario))


def feasible(scenario: Scenario, budgets: tuple[int, ...], rate: float) -> list[int]:
    """Budgets that carry a rate if nothing but tokens is limited.

    Args:
        scenario: one engine; its own budget and rate are ignored.
        budgets: tokens per batch.
        rate: requests per second; a budget must carry a little more.
    """
    return [b for b in budgets if rate < 0.999 * carried(scenario, b)]


def horizon_s(evaluation: Evaluation, rate: float) -> float:
    """Simulated seconds of all runs at a rate: the arrivals asked for, or what relaxation needs.

    Close to its capacity a queue forgets its start only after the relaxation time 1/(sqrt(capacity) -
    sqrt(rate))^2. Runs last RELAXATIONS such times of the smallest capacity that carries the rate,
    but at most MOST_LONGER times as long as the arrivals asked for.
    """
    slowest = min(carried(evaluation.scenario, b) for b in evaluation.feasible(rate))
    relaxation = 1 / (np.sqrt(slowest) - np.sqrt(rate)) ** 2
    usual = evaluation.arrivals / rate
    return float(np.clip(RELAXATIONS * relaxation, usual, MOST_LONGER * usual))


def members(name: str) -> list[str]:
    """The policies of a row: those of a folder of checkpoints, else the name itself."""
    folder = Path(name)
    if not os.path.isdir(folder):
        return [name]
    found = sorted(folder.glob("agent-*.npz"), key=lambda p: (len(p.name), p.name))
    if not found:
        raise LLMGymError(f"There is no agent-*.npz in {folder}; train one with --out {folder}.")
    return [str(path) for path in found]


def tasks(evaluation: Evaluation) -> Iterator[Task]:
    """All runs, references first."""
    capped = evaluation.scenario.engine.max_num_seqs is not None
    yield Task("limit", "the limit that no policy exceeds", partial(_limit, evaluation))
    for budget in evaluation.budgets if capped else ():
        measure = partial(_capacity, evaluation, evaluation.reference, budget)
        name = evaluation.tuned(budget)
        yield Task(f"capacity-{name}", f"capacity of {name}", measure)
    everyone = [member for name in evaluation.policies for member in members(name)]
    for name in everyone:
        measure = partial(_capacity, evaluation, name, None)
        yield Task(f"capacity-{slug(name)}", f"capacity of {name}", measure)
    for rate in evaluation.rates:
        for start in STARTS:
            for budget in tested_budgets(evaluation, rate):
                yield _latency_task(evaluation, evaluation.reference, budget, rate, start)
            for name in everyone:
                yield _latency_task(evaluation, name, None, rate, start)


def tested_budgets(evaluation: Evaluation, rate: float) -> list[int]:
    """Budgets that carry the rate, and the scenario's own, in increasing order."""
    return sorted({*evaluation.feasible(rate), evaluation.scenario.engine.token_budget})


def latency_name(name: str, rate: float, start: str) -> str:
    """The name of a run, which is also that of its file.

    Args:
        name: the policy; of a reference, what ``Evaluation.tuned`` says.
        rate: requests per second.
        start: ``"cold"`` or ``"hot"``.
    """
    return f"latency-{slug(name)}-{rate:g}-{start}"


def _latency_task(
    evaluation: Evaluation, name: str, budget: int | None, rate: float, start: str
) -> Task:
    label = name if budget is None else evaluation.tuned(budget)
    return Task(
        latency_name(label, rate, start),
        f"{label} at {rate:g} requests/s, {start} start",
        partial(_latency, evaluation, name, budget, rate, start),
    )


def _with_budget(scenario: Scenario, budget: int | None) -> Scenario:
    return scenario if budget is None else scenario.override(token_budget=budget)


def _limit(evaluation: Evaluation) -> dict[str, Any]:
    limit = capacity(evaluation.scenario)
    return {"requests_per_s": limit.requests_per_s, "tokens_per_ms": limit.tokens_per_ms}


def _capacity(evaluation: Evaluation, name: str, budget: int | None) -> dict[str, Any]:
    scenario = _with_budget(evaluation.scenario, budget)
    # With a limit on requests an engine does not slow down with those that wait for a seat.
    method = None if scenario.engine.max_num_seqs is None else "saturation"
    policy = policies.resolve(name)
    return asdict(estimate_capacity(scenario, policy, method, seed=evaluation.seed))


def _latency(
    evaluation: Evaluation, name: str, budget: int | None, rate: float, start: str
) -> dict[str, Any]:
    scenario = _with_budget(evaluation.scenario.at_rate(rate), budget)
    duration_s = horizon_s(evaluation, rate)
    run = simulate(
        scenario,
        policies.resolve(name),
        duration_s=duration_s,
        warmup_s=duration_s / 4,
        num_envs=evaluation.seeds,
        seed=evaluation.seed,
        burst=min(hot_backlog(scenario), scenario.slots // 2) if start == "hot" else 0,
    )
    return latencies(run)


def latencies(run: Run) -> dict[str, Any]:
    """Latencies of the requests that finished after the warm-up: for each a list over the environments.

    ``pooled`` has those of all environments together. goodput: the share of the requests that met their
    targets, by the weights of their classes.
    """
    table = run.requests[run.requests.finish_ms > 1000 * run.warmup_s]
    several = table.decode_tokens > 1
    made = (table.decode_tokens - 1).where(several)
    classes = table.job_type.map(run.scenario.job_names.index)
    targets, weight = _targets(run.scenario)[classes], _weights(run.scenario)[classes]
    frame = table[["env"]].assign(
        e2e_s=(table.finish_ms - table.arrival_ms) / 1000,
        ttft_s=(table.first_token_ms - table.arrival_ms) / 1000,
        tpot_ms=(table.finish_ms - table.first_token_ms) / made,
    )
    good = (1000 * frame.ttft_s < targets[:, 0]) & ~(frame.tpot_ms >= targets[:, 1])
    kinds = ["e2e_s", "ttft_s", "tpot_ms"]
    found = {f"{k}_mean": v for k, v in frame.groupby("env")[kinds].mean().items()}
    worth = pd.DataFrame({"env": frame.env, "good": good * weight, "all": weight})
    worths = worth.groupby("env").sum()
    found["goodput"] = worths.good / worths["all"]
    found |= {f"{k}_p99": v for k, v in frame.groupby("env")[kinds].quantile(0.99).items()}
    raw = run.raw
    ticks = (raw["end_clock"] - raw["warm_clock"]).clip(1)
    return {
        **{str(k): v.reindex(range(run.num_envs)).tolist() for k, v in found.items()},
        "in_system": ((raw["end_request_ticks"] - raw["warm_request_ticks"]) / ticks).tolist(),
        "unfinished": raw["end_present"].tolist(),
        "dropped": raw["end_dropped"].tolist(),
        "pooled": {
            **{f"{k}_mean": float(frame[k].mean()) for k in kinds},
            **{f"{k}_p99": float(frame[k].quantile(0.99)) for k in kinds},
            "goodput": float(worth.good.sum() / worth["all"].sum()),
        },
    }


def _targets(scenario: Scenario) -> np.ndarray:
    """(TTFT, TPOT) targets in ms of each class; the usual ones where the scenario has none at all."""
    given = [one.targets_ms for one in scenario.classes]
    if not scenario.has_targets:
        given = [(TTFT_MS, TPOT_MS)] * len(given)
    return np.array([[np.inf if t is None else t for t in pair] for pair in given])


def _weights(scenario: Scenario) -> np.ndarray:
    """What a request of each class is worth that meets its targets."""
    return np.array([one.weight for one in scenario.classes])


def evaluate(
    evaluation: Evaluation,
    out: Path,
    progress: Callable[[int, int, str], None] | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Make all runs that are not in the result folder yet.

    Args:
        evaluation: what is judged.
        out: the result folder; it is made if it is missing.
        progress: called with the number of runs done, their number in all, and a label.
        jobs: runs made in parallel; see ``benchmark.measure``.

    Returns:
        What each run found, by the name of its task.

    Raises LLMGymError where ``out`` holds another evaluation or cannot be written.
    """
    return benchmark.measure(evaluation.config(), list(tasks(evaluation)), out, progress, jobs)


def from_config(path: Path) -> Evaluation:
    """The evaluation of a result folder. Raises LLMGymError where it holds none."""
    config = Settings(path, "an evaluation")
    lists = {"policies": str, "rates": float, "budgets": int}
    single = {"seeds": int, "arrivals": int, "seed": int, "reference": str}
    settings: dict[str, Any] = {k: config.several(k, kind) for k, kind in lists.items()}
    settings |= {k: config.one(k, kind) for k, kind in single.items()}
    return Evaluation(config.scenario(), **settings)
