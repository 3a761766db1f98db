"""Small networks of engines, for tests of their theory."""

from typing import Any

from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.batch_time import Affine, BatchTime
from llmgym.scenario.engine import Engine
from llmgym.scenario.lengths import Poisson as PoissonLength
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage
from llmgym.scenario.workload import JobType

UNIT = Affine(1.0, 0.0)
"""Every batch takes a millisecond."""


def engines(*budgets: int, time: BatchTime = UNIT, **limits: Any) -> tuple[Engine, ...]:
    """Engines "1", "2", ... with these token budgets."""
    return tuple(Engine(time, b, name=str(n + 1), **limits) for n, b in enumerate(budgets))


def call(engine: int, prefill: Any, decode: Any, **stage: Any) -> Stage:
    return Stage(prefill, decode, engine=str(engine), **stage)


def job(*stages: Stage, rate: float = 1.0, name: str = "job") -> JobType:
    return JobType(Poisson(rate), stages, name=name)


def hop(engine: int, prefill: int, **stage: Any) -> Stage:
    return call(engine, PoissonLength(prefill), PoissonLength(32), **stage)


def rybko_stolyar(rho: float, last_hops_first: bool = True) -> Scenario:
    rate = 1000 * rho * 768 / 608
    ranks = {"first": int(not last_hops_first), "last": int(last_hops_first)}
    jobs = tuple(
        job(
            hop(start, 32, name="first", priority=ranks["first"]),
            hop(end, 512, name="last", priority=ranks["last"]),
            rate=rate,
            name=name,
        )
        for name, start, end in (("A", 1, 2), ("B", 2, 1))
    )
    return Scenario(engines(768, 768), jobs)


def lu_kumar(priorities: tuple[int, int, int, int], rate: float = 400.0) -> Scenario:
    """Calls at engines 1, 2, 2, 1 that need 0.1, 0.7, 0.1, 0.6 ms each."""
    plan = zip((1, 2, 2, 1), (10, 70, 10, 60), priorities, strict=True)
    stages = [call(e, tokens, 0, priority=p) for e, tokens, p in plan]
    return Scenario(engines(100, 100), job(*stages, rate=rate))
