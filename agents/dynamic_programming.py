"""The optimum of the decode-first problem by dynamic programming: a yardstick for every policy.

``solve`` gives the least mean latency that any decode-first policy can reach, with bounds, and the
policy that reaches it. ``llmgym.agents.optimality`` compares other policies with it.

What is assumed: one engine, one class, Poisson arrivals, a staircase batch time, no limit on requests
and no KV limit; the policy opens k of the K tiles, decodes go first, prompts fill the rest FCFS;
prompts have a fixed length and outputs a geometric one that is not known in advance. Where a scenario
has exactly this, the bounds hold for it. Where its lengths have other distributions, the problem with the
same means takes its place: ``low`` is then the optimum of that problem, not a proven bound for the scenario.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from llmgym.agents.decode_first import DecodeFirst
from llmgym.agents.optimum import Optimum, policy_of
from llmgym.core.checks import check_callable
from llmgym.core.errors import LLMGymError, check_number
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import Staircase
from llmgym.scenario.lengths import Fixed, Geometric
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load, capacity

LEVELS = (1, 4, 16)
"""Residues of the coarse problems whose solutions start the next finer one."""

MOST_ROUNDS = 100
MOST_STATES = 4_000_000
NEGLIGIBLE_SHARE = 5e-5
"""Most of the average cost that either limit of the table may cause."""


def solve(
    scenario: Scenario | str,
    load: float | None = None,
    residues: int | None = 16,
    tolerance: float = 1e-3,
    most_waiting: int | None = None,
    most_decoding: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Optimum:
    """The least mean latency of the decode-first class on a scenario, and the policy that has it.

    Relative value iteration for the average cost of a semi-Markov problem: after each sweep over all
    choices the greedy policy is evaluated by BiCGSTAB, until the bounds of MacQueen on
    Schweitzer's equivalent problem in discrete time meet. Coarse problems come first.

    Args:
        scenario: a Scenario or the name of one.
        load: fraction of the LP capacity; None: the scenario's own rate.
        residues: states between two whole prompts, see DecodeFirst; None: the tokens of a prompt, for
            which the model is exact.
        tolerance: relative distance at which the bounds have met.
        most_waiting, most_decoding: size of the table; None: as large as needed for arrivals turned
            away to cost less than 1e-4 of the whole.
        progress: called with a line of text after every sweep.

    Raises LLMGymError for a scenario outside the assumptions above, at or above its capacity, or where
    the table would need too many states.
    """
    tolerance = check_number("tolerance", tolerance, above=0, high=1)
    residues = _size("residues", residues)
    given: dict[str, Any] = {
        "most_waiting": _size("most_waiting", most_waiting),
        "most_decoding": _size("most_decoding", most_decoding),
    }
    check_callable("progress", progress)
    scenario = at_load(scenario, load)
    problem = _problem(scenario, residues)
    finest = problem.residues
    problem = replace(
        problem,
        residues=min(LEVELS[0], finest),
        **{name: size for name, size in given.items() if size is not None},
    )
    while True:
        solved = _iterate(problem, None, tolerance, progress)
        shares = _truncation(problem, *solved)
        short = [name for name, n in given.items() if n is None and shares[name] > NEGLIGIBLE_SHARE]
        if not short:
            break
        problem = replace(problem, **{name: 4 * getattr(problem, name) // 3 for name in short})
        _check_size(problem)
    for level in (*[n for n in LEVELS if problem.residues < n < finest], finest):
        if level == problem.residues:
            continue
        coarse, problem = problem, replace(problem, residues=level)
        _check_size(problem)
        start = problem.refine(solved[0], coarse), solved[1]
        solved = _iterate(problem, start, tolerance, progress)
    return _optimum(scenario, problem, *solved)


def _size(name: str, size: int | None) -> int | None:
    """A number of states, or None."""
    return None if size is None else check_number(name, size, low=1, high=2**20, integer=True)


def _problem(scenario: Scenario, residues: int | None) -> DecodeFirst:
    """The problem with a first guess of its size."""
    fault = _outside(scenario)
    if fault:
        raise LLMGymError(f"The decode-first problem is solved for one engine with {fault}.")
    engine, rate = scenario.engine, scenario.arrival_rate_per_s
    tile = engine.batch_time.period
    sizes = tuple(range(tile, engine.token_budget + 1, tile))
    if not sizes or sizes[-1] < engine.token_budget:
        sizes = (*sizes, engine.token_budget)
    times = tuple(float(t) / 1000 for t in engine.batch_time.ms(np.array(sizes, float)))
    demand = rate * (scenario.mean_prefill + scenario.mean_decode)
    speeds = np.array(sizes) / np.array(times)
    if demand >= speeds.max():
        raise LLMGymError(
            f"{rate:g} requests/s are at or above the capacity, {capacity(scenario).requests_per_s:.3f}: "
            "no policy has a finite mean latency. Lower the load."
        )
    prompt = max(1, round(scenario.mean_prefill))
    # As many decodes as the smallest batch that carries the load leads to, and as many again.
    busy = times[int(np.argmax(speeds > demand))]
    return DecodeFirst(
        rate=rate,
        sizes=sizes,
        times=times,
        prompt_tokens=prompt,
        output_tokens=scenario.mean_decode,
        residues=min(residues or prompt, prompt),
        most_waiting=max(8, 3 * sizes[-1] // prompt),
        most_decoding=max(16, round(2 * rate * scenario.mean_decode * busy), sizes[0] + 16),
    )


def _outside(scenario: Scenario) -> str | None:
    """What the problem requires and the scenario lacks; None if it lacks nothing."""
    if scenario.is_network:
        return "no network around it"
    engine = scenario.engine
    if not isinstance(engine.batch_time, Staircase):
        return "a staircase batch time"
    if engine.max_num_seqs is not None or engine.kv_cache is not None or engine.prompt_samples:
        return "no limit on requests, no KV limit and the first token from a decode"
    if len(scenario.job_types) != 1 or not isinstance(scenario.job_types[0].arrivals, Poisson):
        return "one class of requests that arrive in a Poisson process"
    if scenario.mean_prefill < 1 or scenario.mean_decode < 1:
        return "prompts and outputs of at least one token"
    return None


def _check_size(problem: DecodeFirst) -> None:
    states = problem.shape[0] * problem.shape[1]
    if states > MOST_STATES:
        raise LLMGymError(
            f"The table needs {states:,} states, above {MOST_STATES:,}; use fewer residues or a lower load."
        )


def _iterate(
    problem: DecodeFirst,
    start: tuple[np.ndarray, float] | None,
    tolerance: float,
    progress: Callable[[str], None] | None,
) -> tuple[np.ndarray, float, np.ndarray, float, float]:
    """Relative values, average cost, best choices and the bounds, once these have met."""
    if start is None:  # all tiles carry every load below capacity
        none = np.zeros(problem.shape[0] * problem.shape[1])
        most = np.maximum(problem.valid.sum(axis=0), 1) - 1
        start = problem.evaluate(most, none, 0.0)
    h, g = start
    for _ in range(MOST_ROUNDS):
        value = problem.choices(h, g)
        low, high = problem.bounds(value, h, g)
        best = value.argmin(axis=0)
        if progress is not None:
            bounds = f"{low / problem.rate:.4f} .. {high / problem.rate:.4f} s"
            progress(f"{h.size:,} states: {bounds}")
        if high - low <= tolerance * abs(high):
            return h, g, best, low, high
        h, g = problem.evaluate(best, h, g)
    raise LLMGymError(
        f"The bounds did not meet within {MOST_ROUNDS} rounds; they are at {low / problem.rate:.4f} and "
        f"{high / problem.rate:.4f} s. Use a larger tolerance or a lower load."
    )


def _truncation(
    problem: DecodeFirst, h: np.ndarray, g: float, best: np.ndarray, *_: float
) -> dict[str, float]:
    """Shares of the average cost of the choices ``best`` that requests turned away cause.

    They are keyed by the limit that turns them away: ``most_waiting`` or ``most_decoding``.
    """
    shares = {}
    for name, away in zip(("most_waiting", "most_decoding"), problem.away, strict=True):
        cost = np.take_along_axis(away, best[None], axis=0)[0]
        shares[name] = problem.evaluate(best, np.zeros_like(h), 0.0, cost=cost)[1] / g
    return shares


def _optimum(
    scenario: Scenario,
    problem: DecodeFirst,
    h: np.ndarray,
    g: float,
    best: np.ndarray,
    low: float,
    high: float,
) -> Optimum:
    stage = scenario.job_types[0].stages[0]
    exact = (
        isinstance(stage.prefill, Fixed)
        and (isinstance(stage.decode, Geometric) or scenario.mean_decode == 1)
        and problem.residues == problem.prompt_tokens
    )
    return Optimum(
        policy=policy_of(problem, best + 1),
        low=low / problem.rate,
        high=high / problem.rate,
        exact=exact,
        truncation=sum(_truncation(problem, h, g, best).values()),
        problem=replace(problem),  # a copy, without the matrices
    )
