"""The capacity of an engine or a network of engines: the static planning LP over batch compositions.

In the long run an engine divides its time among batch compositions (x prefill, y decode tokens).
The largest rate of jobs whose tokens such a division can serve bounds the throughput of every
policy; the LP finds it (Harrison 2000; Dai and Lin 2005; here with the batch times and limits of
arXiv:2504.07347v3). A single engine is a network of one; its requests are jobs of one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from llmgym.core.checks import check_kind
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.precision import in_32_bits
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import quantiles
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.workload import JobType
from llmgym.theory.kv_memory import token_iterations, unshared

MOST_LOAD = 100
"""Largest load: far above it nothing is left to learn, and a step takes as long as its arrivals."""


class TimeShare(NamedTuple):
    """A batch composition and the share of time that the engine spends on it."""

    prefill_tokens: int
    decode_tokens: int
    share: float


@dataclass(frozen=True)
class EngineLoad:
    """What jobs ask of an engine, or of a group of equal replicas, and what it can sustain.

    Attributes:
        name: the engine's.
        load: the scenario's own arrival rate over ``jobs_per_s``; 1 is critical, 0 unused.
        jobs_per_s: the largest rate of the scenario's mix of jobs that it can serve, were it the
            only limit; infinite where no job calls it.
        prefill_tokens, decode_tokens: mean tokens that a job brings it, over all visits.
    """

    name: str
    load: float
    jobs_per_s: float
    prefill_tokens: float
    decode_tokens: float

    @property
    def slack(self) -> float:
        """1 - load: the share of its capacity that is left, negative under overload."""
        return 1.0 - self.load


@dataclass(frozen=True)
class Capacity:
    """What a scenario can sustain, and how.

    Attributes:
        requests_per_s: lambda*, the largest rate of the scenario's mix of requests; in a network,
            of jobs.
        load_factor: the scenario's own arrival rate over lambda*. 1 is critical; infinite for a
            replay whose requests all come at once.
        bottleneck: name of the engine that binds, the first listed of several.
        tokens_per_ms: prefill and decode tokens served at that rate, by all engines.
        compositions: batches of one optimal plan of the bottleneck (of each replica alike) with
            their shares of time. A plan is seldom unique: batches of equal size can be mixed token
            by token.
        engines: the load of every engine, as listed in the scenario.
    """

    requests_per_s: float
    load_factor: float
    bottleneck: str
    tokens_per_ms: float
    compositions: tuple[TimeShare, ...]
    engines: tuple[EngineLoad, ...]


@in_32_bits
def capacity(scenario: Scenario | str) -> Capacity:
    """Capacity of a scenario by the static planning LP.

    Maximise theta over the shares of time s >= 0 of all batches (x, y), b = x + y <= b_max, of each
    engine::

        sum s <= 1,    sum s*x/t_b >= theta*m_p,    sum s*y/t_b >= theta*m_d

    with m_p, m_d the mean tokens that a job brings the engine: over all arrivals, the sum over its
    classes of visits*(prompt, output). Batch times and limits count tokens and requests whatever
    their class, so classes need no rows of their own; joins and delays add waiting, no work. Without
    a cap on requests theta*(m_p + m_d) is the maximum of b/t_b over b <= b_max: the limit of
    Theorem 2 where filling the budget is best.

    Engines share no row, only theta: the LP of the network splits into one for each engine, and its
    value is the smallest of theirs. n replicas serve n times what one does: a plan that treats them
    differently can be replaced by its mean, because the rates that a replica can serve are a convex set.

    ``max_num_seqs`` = k_max limits the batches: y <= k_max - 1 beside prefill (one request may
    bring all of it), else y <= k_max. Where it counts *resident* requests (A = k_max), a request
    holds a seat for m_d iterations of decoding and at least one of prefill, and Little's law adds
    the row theta*(m_d + 1) <= A*sum s/t_b, the seats times the iterations per millisecond, summed
    over the visits of a job. Prefill takes its seat in this average only; a request without a
    prompt needs no iteration for it.

    KV memory of M tokens adds the row theta*E[g] <= M*sum s/t_b in the same way, with g the
    token-iterations of a request whose prompt goes in as few chunks as the budget allows
    (:mod:`llmgym.theory.kv_memory`): the token bound and the memory bound, solved together. Preemption
    wastes work, which the row leaves out. With prefix caching prompts count without the tokens that
    others had before: the limit is that of a memory that never forgets. Where a prompt's end yields the first
    output token, one decode token less is demanded. A batch time that depends on the context counts
    as without any, so the limit is optimistic for such an engine.

    Below this rate *some* policy is stable; see :mod:`llmgym.theory.queueing_networks` for whether all
    work-conserving ones are.

    Raises:
        LLMGymError: an unknown name, or a batch-time model whose times are not positive and finite.
    """
    return _solved(unshared(as_scenario(scenario)))


@lru_cache(maxsize=256)
def _solved(scenario: Scenario) -> Capacity:
    """The solution, kept: an environment, its slots and its observations all ask for it."""
    plans = [_engine_plan(scenario, engine) for engine in scenario.engines]
    loads = tuple(load for load, _, _ in plans)
    first = int(np.argmin([load.jobs_per_s for load in loads]))
    bottleneck, tokens_per_ms, shares = plans[first]
    tokens = bottleneck.prefill_tokens + bottleneck.decode_tokens
    return Capacity(
        requests_per_s=bottleneck.jobs_per_s,
        load_factor=bottleneck.load,
        bottleneck=bottleneck.name,
        tokens_per_ms=tokens_per_ms * ((scenario.mean_prefill + scenario.mean_decode) / tokens),
        compositions=shares,
        engines=loads,
    )


def at_load(scenario: Scenario | str, load: float | None) -> Scenario:
    """The scenario with arrivals at a fraction ``load`` of its capacity; unchanged where it is None."""
    scenario = as_scenario(scenario)
    if load is None:
        return scenario
    load, limit = check_number("load", load, above=0), capacity(scenario).requests_per_s
    if load > MOST_LOAD:
        raise LLMGymError(
            f"load = {load:g} offers {load:g} times what the engines can serve, {load * limit:.3g} requests "
            f"per second: tables of any size fill at once, and each step has to drop thousands. Use at "
            f"most {MOST_LOAD}."
        )
    return scenario.at_rate(load * limit)


def mean_work(scenario: Scenario) -> float:
    """Tokens that a mean job asks of all engines: prompts and outputs.

    One less for each call whose prompt yields the first output token.
    """
    scenario = as_scenario(scenario)
    return sum(sum(_demand(scenario, engine)[:2]) for engine in scenario.engines)


def _engine_plan(
    scenario: Scenario, engine: Engine
) -> tuple[EngineLoad, float, tuple[TimeShare, ...]]:
    """Load of an engine, the tokens per millisecond that it can serve, and a plan that does."""
    mean_prefill, mean_decode, prompts = _demand(scenario, engine)
    mean_tokens = mean_prefill + mean_decode
    if mean_tokens == 0:
        return EngineLoad(engine.name, 0.0, float("inf"), 0.0, 0.0), 0.0, ()
    prefill, decode = compositions(engine)
    ms = batch_ms(engine, prefill + decode)
    supply, demand = [prefill / ms, decode / ms], [mean_prefill, mean_decode]
    if engine.max_num_seqs is not None and engine.seq_limit == "resident":
        supply.append(engine.max_num_seqs / ms)
        demand.append(mean_decode + prompts)
    if engine.kv_cache is not None:
        supply.append(engine.kv_cache.tokens / ms)
        demand.append(token_iterations(scenario, engine=engine))
    one, shares = _plan(np.array(supply), np.array(demand) / mean_tokens)
    tokens_per_ms = engine.replicas * one
    jobs_per_s = 1000.0 * tokens_per_ms / mean_tokens
    load = scenario.arrival_rate_per_s / jobs_per_s
    return (
        EngineLoad(engine.name, load, jobs_per_s, mean_prefill, mean_decode),
        tokens_per_ms,
        tuple(TimeShare(int(prefill[i]), int(decode[i]), share) for i, share in shares.items()),
    )


def _demand(scenario: Scenario, engine: Engine) -> tuple[float, float, float]:
    """Prefill tokens, decode tokens, and calls with a prompt that a mean job brings an engine."""
    total, weights = np.zeros(3), scenario.demand.weights
    for job, weight in zip(scenario.jobs, weights, strict=True):
        mine = [v for v, s in enumerate(job.stages) if not s.is_delay and s.engine == engine.name]
        visits, means = job.workflow.visits[mine], job.workflow.means[mine]
        shares = [_shares(job, v) for v in mine]
        prompts, sampled = np.array(shares).reshape(-1, 2).T
        decodes = means[:, 1] - sampled if engine.prompt_samples else means[:, 1]
        total += weight * np.array([visits @ means[:, 0], visits @ decodes, visits @ prompts])
    prefill, decode, prompts = total / sum(weights)
    return float(prefill), float(decode), float(prompts)


def _shares(job: JobType, v: int) -> tuple[float, float]:
    """Shares of the visits to a stage with a prompt to process, and with output tokens as well."""
    stage = job.stages[v]
    inherits = stage.inherits and job.workflow.depth[v] > 0
    if stage.paired is not None:
        prompts = np.asarray(stage.paired.prefill_tokens) > 0
        outputs = np.asarray(stage.paired.decode_tokens) > 0
        if inherits:
            prompts = np.ones_like(prompts)
        return float(np.mean(prompts)), float(np.mean(prompts & outputs))
    assert stage.decode is not None
    # Where some call came before it left its context, and there always is a prompt.
    share = 1.0 if inherits else float(stage.mean_prefill > 0)
    return share, share * float(np.mean(quantiles(stage.decode) > 0))


def compositions(engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """The batches that an optimal plan needs, as arrays of prefill tokens x and decode tokens y.

    All batches of b tokens take the same time, so what one of them serves is linear in y, and a
    batch between the fewest and the most decode tokens is a mix of these two extremes: 2*b_max
    batches suffice, whatever the batch-time model.
    """
    check_kind("engine", engine, Engine)
    size = np.arange(1, engine.token_budget + 1)
    cap = engine.max_num_seqs
    if cap is None:
        most = size
    elif engine.seq_limit == "resident":
        most = np.minimum(size, cap)
    else:
        most = np.where(size <= cap, size, cap - 1)
    return np.concatenate([size, size - most]), np.concatenate([0 * size, most])


def batch_ms(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    """t_b in milliseconds for batches of ``tokens``; LLMGymError unless positive and finite."""
    ms = engine.batch_time.ms(tokens)
    bad = np.flatnonzero(~np.isfinite(ms) | (ms <= 0))
    if bad.size:
        raise LLMGymError(
            f"{shown(engine.batch_time)} gives {ms[bad[0]]} ms for a batch of {tokens[bad[0]]} tokens; "
            "batch times must be positive and finite up to the token budget."
        )
    return ms


def _plan(supply: np.ndarray, demand: np.ndarray) -> tuple[float, dict[int, float]]:
    """Largest theta with supply @ shares >= theta*demand, sum(shares) <= 1; and the shares above 0.

    ``supply`` (resources, batches) is what a millisecond of each batch provides, ``demand``
    (resources,) what a token takes. Column generation: solve for a few batches, price all of them
    with the dual variables, add the one that gains most, until none does.
    """
    total = supply.sum(axis=0)
    columns = [int(np.argmax(total))]
    while True:
        rows = np.column_stack([-supply[:, columns], demand])
        time = np.append(np.ones(len(columns)), 0.0)
        result = linprog(
            c=np.append(np.zeros(len(columns)), -1.0),
            A_ub=np.vstack([time, rows]),
            b_ub=np.append(1.0, np.zeros(len(demand))),
            options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
        )
        if not result.success:
            raise LLMGymError(f"The planning LP found no solution ({result.message}).")
        time_price, *prices = -result.ineqlin.marginals
        gain = prices @ supply - time_price
        best = int(np.argmax(gain))
        if gain[best] <= 1e-12 * abs(result.fun) or best in columns:
            break
        columns.append(best)
    shares = {column: float(s) for column, s in zip(columns, result.x, strict=False) if s > 1e-12}
    return float(result.x[-1]), dict(sorted(shares.items()))
