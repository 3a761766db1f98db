"""Random scenarios of every kind, for tests that write and read them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import ARRIVALS
from llmgym.scenario.arrivals import Poisson as PoissonArrivals
from llmgym.scenario.batch_time import BATCH_TIMES, CODELLAMA_34B_A100
from llmgym.scenario.engine import ROUTERS, Engine
from llmgym.scenario.lengths import LENGTHS
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import Tenant
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.workload import JobType, Workload

PLAIN = Scenario.single_engine(CODELLAMA_34B_A100, 512, Workload(PoissonArrivals(2.5), 129, 112))


def same(a: Any, b: Any) -> bool:
    """Equality field by field, arrays included."""
    if is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else a == b


positive = st.floats(1e-3, 1e3)
tokens = st.integers(1, 4096)
several = st.lists(tokens, min_size=1, max_size=60)
KINDS = {
    **{f"batch_time/{kind}": cls for kind, cls in BATCH_TIMES.items()},
    **{f"arrivals/{kind}": cls for kind, cls in ARRIVALS.items()},
    **{f"lengths/{kind}": cls for kind, cls in LENGTHS.items()},
}
ARGUMENTS = {
    "batch_time/staircase": {"c_ms": positive, "a_ms": positive, "tile": tokens},
    "batch_time/hinge": {"c_ms": positive, "a_ms_per_token": positive, "free_tokens": tokens},
    "batch_time/affine": {"c_ms": positive, "a_ms_per_token": positive},
    "batch_time/roofline": {
        "c_ms": positive,
        "a_ms_per_token": positive,
        "free_tokens": tokens,
        "kv_ms_per_kilotoken": positive,
        "prefill_ms_per_megapair": positive,
        "mixed_ms_per_kilotoken": st.just(0.0) | positive,
    },
    "batch_time/table": {
        "tokens": st.sets(tokens, min_size=9, max_size=9).map(sorted),
        "times_ms": st.lists(positive, min_size=9, max_size=9),
    },
    "arrivals/poisson": {"rate_per_s": positive},
    "arrivals/deterministic": {"rate_per_s": positive},
    "arrivals/gamma": {"rate_per_s": positive, "cv": st.floats(0.1, 100)},
    "arrivals/mmpp": {
        "rate_per_s": positive,
        "weights": st.tuples(positive, positive),
        "sojourn_s": st.tuples(positive, positive),
    },
    "arrivals/rate_curve": {
        "rate_per_s": positive,
        "weights": st.lists(positive, min_size=1, max_size=60).map(tuple),
        "period_s": positive,
        "burst_weights": st.tuples(positive, positive),
        "burst_sojourn_s": st.tuples(positive, positive),
    },
    "lengths/fixed": {"tokens": tokens},
    "lengths/geometric": {"mean_tokens": st.floats(1, 4096)},
    "lengths/uniform": {"low": st.integers(0, 9), "high": st.integers(9, 99)},
    "lengths/lognormal": {"mean_tokens": st.floats(1, 4096), "cv": st.floats(0.1, 3)},
    "lengths/poisson": {"mean_tokens": positive},
    "lengths/empirical": {"quantiles": st.lists(positive, min_size=2, max_size=60).map(sorted)},
}


def some(group: str) -> st.SearchStrategy[Any]:
    """Any object of a group, such as lengths."""
    kinds = [kind for kind in KINDS if kind.startswith(group)]
    return st.one_of([st.builds(KINDS[kind], **ARGUMENTS[kind]) for kind in kinds])


@st.composite
def replays(draw) -> Replay:
    prefill = draw(several)
    times = draw(st.lists(st.floats(0, 1e6), min_size=len(prefill), max_size=len(prefill)))
    replay = Replay(
        sorted(times), prefill, prefill[::-1], draw(st.text()), draw(st.none() | positive)
    )
    tenants = draw(
        st.lists(
            st.builds(Tenant, st.text(min_size=1), st.none() | positive, weight=positive),
            max_size=3,
            unique_by=lambda tenant: tenant.name,
        )
    )
    if not tenants:
        return replace(replay, weight=draw(positive))
    names = [draw(st.sampled_from(tenants)).name for _ in prefill]
    return replace(replay, ttft_ms=None, tenant=names, tenants=tuple(tenants))


def held(tick_ms: float, *fields: Any, **named: Any) -> Scenario:
    """The scenario at this tick, or at the first other one that can hold its times."""
    for tick in (tick_ms, *(10.0**-k for k in range(9))):
        try:
            return Scenario(*fields, tick_ms=tick, **named)
        except LLMGymError as error:
            assert "ticks" in str(error) or "the longest time" in str(error)  # noqa: PT017
    return reject()


@st.composite
def scenarios(draw) -> Scenario:
    engine = draw(
        st.builds(
            Engine,
            some("batch_time"),
            tokens,
            st.none() | tokens,
            st.sampled_from(["batch", "resident"]),
            st.text(),
        )
    )
    paired = several.map(lambda prefill: Stage(paired=Paired(prefill, prefill[::-1])))
    stages = st.builds(Stage, some("lengths"), some("lengths")) | paired
    job_types = st.lists(
        st.builds(
            JobType,
            some("arrivals"),
            stages.map(lambda stage: (replace(stage, engine=engine.name),)),
            st.text(),
            st.none() | positive,
            st.none() | positive,
            positive,
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda job_type: job_type.name,
    )
    return held(
        draw(positive),
        (engine,),
        draw(replays() | job_types.map(tuple)),
        draw(tokens),
        lengths_known=draw(st.booleans()),
        router=draw(st.sampled_from(ROUTERS)),
        name=draw(st.text()),
        description=draw(st.text()),
        source=draw(st.text()),
        service_weights=draw(st.none() | st.tuples(st.integers(0, 9), st.integers(1, 1024))),
    )


@st.composite
def workflows(draw, engines: list[str], name: str) -> JobType:
    """A chain or a tree of calls and delays, perhaps with a choice at its end and a loop."""
    names = draw(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True))
    stages = []
    for n, own in enumerate(names):
        after = draw(st.none() | st.sampled_from(names[:n]).map(lambda one: (one,))) if n else ()
        fields_of = {"name": own, "after": after, "priority": draw(st.integers(-9, 9))}
        if n and draw(st.booleans()):
            stages.append(Stage(delay_ms=draw(some("lengths")), **fields_of))
            continue
        lengths = [LENGTHS["fixed"](3), draw(some("lengths"))]
        call = {"engine": draw(st.sampled_from(engines)), "inherits": draw(st.booleans())}
        stages.append(Stage(*lengths, **call, **fields_of))
    repeat = draw(
        st.none()
        | st.builds(Repeat, st.just(names[0]), st.floats(0, 0.9))
        | st.builds(Repeat, st.just(names[0]), st.none(), st.integers(1, 4))
    )
    stages[0] = replace(stages[0], repeat=repeat)
    if draw(st.booleans()):
        either = {"after": (names[-1],), "engine": engines[0]}
        stages += [
            Stage(1, 1, name="left", probability=0.25, **either),
            Stage(1, 1, name="right", probability=0.75, **either),
        ]
    return JobType(draw(some("arrivals")), tuple(stages), name)


@st.composite
def networks(draw) -> Scenario:
    engines = [
        Engine(draw(some("batch_time")), draw(tokens), name=name, replicas=draw(st.integers(1, 9)))
        for name in draw(st.lists(st.text(), min_size=1, max_size=4, unique=True))
    ]
    names = [engine.name for engine in engines]
    jobs = [draw(workflows(names, name)) for name in ("a", "b")[: draw(st.integers(1, 2))]]
    plain = Stage(1, 2, engine=names[-1], priority=draw(st.integers(0, 1)))
    jobs += [JobType(PoissonArrivals(1), (plain,), "c")] * draw(st.integers(0, 1))
    return held(0.01, engines, jobs, router=draw(st.sampled_from(ROUTERS)))
