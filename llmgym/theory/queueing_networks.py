"""What a load below 1 does not say about a network: visit rates, cyclic routing, virtual stations.

Where calls lead through the engines in one direction only (DAG and fork-join routing), every work-
conserving K-FCFS policy is stable when each engine is asked for less than its full batches serve
(arXiv:2504.07347v3, section 5). With cyclic routing it need not be: engines can starve one another
in turn (Lu and Kumar 1991; Rybko and Stolyar 1992).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from llmgym.core.checks import check_settings
from llmgym.core.errors import LLMGymError, check_number, unknown
from llmgym.core.user_code import warn
from llmgym.scenario.engine import Engine
from llmgym.scenario.library import as_scenario
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import batch_ms, capacity


class CyclicRoutingWarning(UserWarning):
    """A load below 1 at every engine does not make every work-conserving policy stable."""


@dataclass(frozen=True)
class VirtualStation:
    """Classes at two engines that strict priorities never let run at the same time.

    Attributes:
        engines: the two engines.
        classes: names of the classes, in the order of ``scenario.classes``.
        load: sum over the classes of arrival rate * tokens / (best token rate of the engine), at the
            scenario's own rate. Above 1 the policy is unstable.
        critical_per_s: rate of jobs, all types together, at which ``load`` is 1.
        critical_load: load factor of :func:`llmgym.theory.capacity` at that rate. The priorities
            cost capacity where it is below 1.
    """

    engines: tuple[str, str]
    classes: tuple[str, ...]
    load: float
    critical_per_s: float
    critical_load: float


def visit_rates(scenario: Scenario) -> np.ndarray:
    """Arrival rates alpha (classes,) of the request classes per second: rate of jobs * mean visits."""
    return np.array([one.rate_per_s for one in as_scenario(scenario).classes])


def traffic_equations(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """Routing matrix R (classes, classes) and rates lambda (classes,) of arrivals from outside.

    R[k, l] is the mean number of visits to class l that a visit to class k brings on. The visit
    rates solve alpha = lambda + R^T alpha. At a join the calls that it waits for share the visit:
    a visit to it needs all of them, and the rates still balance.
    """
    demand = as_scenario(scenario).demand
    return demand.follows, demand.entering_per_s


def is_cyclic(scenario: Scenario) -> bool:
    """Whether calls lead from an engine over another one back to it.

    The graph has an edge from engine to engine where a call at the first can be followed by one at
    the second, delays skipped, in a job of any type: two types that cross two engines in opposite
    order make a cycle. Calls that follow one another on one engine do not, nor do loops within it. A
    group of replicas counts as one engine, as in Proposition 3 of arXiv:2504.07347v3, which takes a
    router that keeps their work in balance.
    """
    return bool(_cycle(scenario))


def check_routing(scenario: Scenario) -> None:
    """Warn with CyclicRoutingWarning where the routing is cyclic."""
    engines = _cycle(scenario)
    if engines:
        warn(
            f"Calls go round between the engines {', '.join(engines)}: a load below 1 at every engine "
            "is not enough to make every work-conserving policy stable. Check priorities with "
            "llmgym.theory.virtual_station, and any policy by simulation.",
            CyclicRoutingWarning,
        )


def virtual_station(
    scenario: Scenario, priorities: Mapping[str, float] | None = None
) -> VirtualStation | None:
    """The busiest virtual station under strict priorities among the classes of each engine.

    Take sets V and W of classes at two engines such that nothing enters V but from V itself or from
    classes at W's engine of lower priority than all of W, and the same with V and W exchanged. While
    W has work its engine serves none of the classes that feed V, and the other way round: from an
    empty start at most one of the two has work, both together get no more than the time of one
    engine, and the policy is unstable where they need more. This is the virtual station of two
    priority classes at different stations (Dai and Vande Vate 2000), closed under feedback.
    With the bad priority of Rybko and Stolyar it is the two last hops, in the network of Lu and
    Kumar the second and fourth calls.

    A class shuts out those below it when its backlog fills the batch. So only engines without
    replicas, and without a limit on requests that could keep the batch from filling, are considered.

    Args:
        scenario: job types and engines; classes wait in the order of ``Stage.priority``, the larger
            first; within a class the policy is work-conserving.
        priorities: by class name (``scenario.class_names``), instead of ``Stage.priority``.

    Returns:
        The one of largest load, or None: no such sets. That alone does not prove stability: other
        virtual stations exist (push starts, and more engines), and the load must be below 1 too.

    Raises:
        LLMGymError: ``priorities`` names an unknown class or a delay, or holds no number.
    """
    scenario = as_scenario(scenario)
    rank = _priorities(scenario, priorities)
    routing, outside = _calls_only(scenario)
    owner = _class_engines(scenario)
    entered = [np.flatnonzero(routing[:, k] > 0) for k in range(len(owner))]
    found: list[tuple[float, tuple[int, int], list[int]]] = []
    work = _work(scenario)
    filling = [e for e, engine in enumerate(scenario.engines) if _fills(engine)]
    for pair in itertools.combinations(filling, 2):
        levels = [np.unique(rank[owner == e]) for e in pair]
        for least in itertools.product(*levels):
            threshold = dict(zip(pair, least, strict=True))
            sets = _excluding(owner, rank, entered, outside, threshold)
            if all(np.any(owner[sets] == e) for e in pair):
                found.append((float(work[sets].sum()), pair, sets))
    if not found:
        return None
    load, pair, sets = max(found, key=lambda f: f[0])
    critical = scenario.arrival_rate_per_s / load
    return VirtualStation(
        engines=(scenario.engines[pair[0]].name, scenario.engines[pair[1]].name),
        classes=tuple(scenario.classes[k].name for k in sets),
        load=load,
        critical_per_s=critical,
        critical_load=critical / capacity(scenario).requests_per_s,
    )


def _excluding(
    owner: np.ndarray,
    rank: np.ndarray,
    entered: list[np.ndarray],
    outside: np.ndarray,
    threshold: dict[int, float],
) -> list[int]:
    """The largest union of V and W with priorities of at least ``threshold`` at their engines.

    Begin with all classes that high and drop those that something may enter while the other set has
    work, until none is left to drop.
    """
    high = {k for k, e in enumerate(owner) if e in threshold and rank[k] >= threshold[e]}

    def shut(k: int) -> bool:
        return outside[k] == 0 and all(
            (source in high)
            if owner[source] == owner[k]
            else owner[source] in threshold and rank[source] < threshold[owner[source]]
            for source in entered[k]
        )

    while open_ := {k for k in high if not shut(k)}:
        high -= open_
    return sorted(high)


def _work(scenario: Scenario) -> np.ndarray:
    """Share (classes,) of its engine's time that each class needs at the best token rate."""
    owner, rates = _class_engines(scenario), visit_rates(scenario)
    best = []
    for engine in scenario.engines:
        size = np.arange(1, engine.token_budget + 1)
        best.append(1000.0 * float(np.max(size / batch_ms(engine, size))))
    tokens = np.array([one.mean_tokens for one in scenario.classes])
    return np.where(owner < 0, 0.0, rates * tokens / np.array(best)[owner])


def _fills(engine: Engine) -> bool:
    """Whether one backlogged class of whatever phase fills the engine's batches."""
    limit = engine.max_num_seqs
    limited = limit is not None and (engine.seq_limit == "resident" or limit <= engine.token_budget)
    return engine.replicas == 1 and not limited


def _class_engines(scenario: Scenario) -> np.ndarray:
    """Index (classes,) of the engine that serves each class; -1 for delays."""
    number: dict[str | None, int] = {e.name: n for n, e in enumerate(scenario.engines)}
    number[None] = 0  # of a class that names none, where there is only one
    return np.array([-1 if one.is_delay else number[one.engine] for one in scenario.classes])


def _calls_only(scenario: Scenario) -> tuple[np.ndarray, np.ndarray]:
    """:func:`traffic_equations` among calls: what a call brings on after any delays in between."""
    routing, outside = traffic_equations(scenario)
    delay = _class_engines(scenario) < 0
    through = np.zeros_like(routing)
    through[delay] = routing[delay]
    skipped = np.linalg.inv(np.eye(len(delay)) - through)  # delays passed in a row, any number
    routing, outside = routing @ skipped, outside @ skipped
    routing[:, delay] = routing[delay] = outside[delay] = 0
    tiny = 1e-12  # below it only rounding is left
    return np.where(routing > tiny, routing, 0), np.where(outside > tiny, outside, 0)


def _cycle(scenario: Scenario) -> tuple[str, ...]:
    """Engines of a cycle of calls over two or more engines; empty if there is none."""
    scenario = as_scenario(scenario)
    routing, owner = _calls_only(scenario)[0], _class_engines(scenario)
    before, after = np.nonzero(routing)
    count = len(scenario.engines)
    edges = csr_array((np.ones(len(before)), (owner[before], owner[after])), shape=(count, count))
    groups = connected_components(edges, connection="strong")[1]
    sizes = np.bincount(groups)
    if sizes.max() == 1:
        return ()
    largest = int(np.argmax(sizes))
    return tuple(e.name for e, g in zip(scenario.engines, groups, strict=True) if g == largest)


def _priorities(scenario: Scenario, given: Mapping[str, float] | None) -> np.ndarray:
    """Priority (classes,) of each class."""
    names = scenario.class_names
    rank = np.array([float(one.priority) for one in scenario.classes])
    for name, value in check_settings("priorities", given).items():
        if name not in names:
            raise unknown("class", name, names)
        k = names.index(name)
        if scenario.classes[k].is_delay:
            raise LLMGymError(
                f"Class {name!r} is a delay, which no priority changes; leave it out."
            )
        check_number(f"priority of {name!r}", value)
        rank[k] = value
    return rank
