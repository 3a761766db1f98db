"""Scenario files: they hold every scenario, name every fault, and the shipped ones are sound."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tomli_w
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.scenario.arrivals import ARRIVALS
from llmgym.scenario.arrivals import Poisson as PoissonArrivals
from llmgym.scenario.batch_time import BATCH_TIMES, CODELLAMA_34B_A100, Hinge
from llmgym.scenario.engine import ROUTERS, Engine
from llmgym.scenario.lengths import LENGTHS, Fixed
from llmgym.scenario.library import names, scenario
from llmgym.scenario.replay import Replay
from llmgym.scenario.request_class import Tenant
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Paired, Repeat, Stage
from llmgym.scenario.toml_reader import load, loads
from llmgym.scenario.toml_writer import dumps, save
from llmgym.scenario.workload import JobType, Workload

ROOT = Path(__file__).parents[2]
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


@settings(max_examples=60, deadline=None)
@given(networks())
def test_round_trip_of_a_network(drawn):
    text = dumps(drawn)
    assert same(loads(text), drawn)
    assert dumps(loads(text)) == text


def test_every_kind_is_drawn():
    assert KINDS.keys() == ARGUMENTS.keys()


@settings(max_examples=150, deadline=None)
@given(scenarios())
def test_round_trip(drawn):
    text = dumps(drawn)
    assert same(loads(text), drawn)
    assert dumps(loads(text)) == text


def test_a_change_is_seen():
    """The equality of the round trip can fail."""
    assert not same(PLAIN.override(slots=9), PLAIN)
    assert not same(Replay([0.0], [1], [1]), Replay([0.0], [1], [2]))


def test_lists_are_wrapped():
    text = dumps(PLAIN.override(prefill_tokens=LENGTHS["empirical"](range(100))))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 45


def test_numpy_and_jax_numbers_are_written():
    odd = PLAIN.override(token_budget=np.int64(256), batch_time=Hinge(jnp.float32(2.5), 1, 64.0))
    engine = loads(dumps(odd)).engine
    assert same(engine, Engine(Hinge(2.5, 1, 64), 256))
    assert type(engine.batch_time.free_tokens) is int


def test_unregistered_class_is_refused():
    @dataclass(frozen=True)
    class Mine(Fixed):
        pass

    with pytest.raises(LLMGymError, match=r"Mine cannot be written to TOML; .*fixed, geometric"):
        dumps(PLAIN.override(prefill_tokens=Mine(3)))


BASE = dumps(PLAIN)
REPLAY = dumps(replace(PLAIN, workload=Replay([0.0, 1.0], [1, 2], [3, 4])))
JOB = BASE[BASE.index("[[job_types]]") :]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("slots", "slot", r"s.toml: Unknown key 'slot'. Did you mean 'slots'\?"),
        ("slots = 256", "slots = 'many'", "s.toml: slots must be a number, got 'many'"),
        ("slots = 256", "slots = 2.5", "s.toml: slots must be a whole number, got 2.5"),
        ("slots = 256", "slots = 0", "s.toml: slots must be at least 1"),
        ("tick_ms = 0.01", "tick_ms = nan", "s.toml: tick_ms must be finite"),
        ("= false", "= 0", "s.toml: lengths_known must be true or false, got 0"),
        ('"custom"', "3", "s.toml: name must be a string in quotes, got 3"),
        ("slots = 256", "slots =", "s.toml: this is not valid TOML: .*line 4"),
        ("token_budget = 512", "", "table engine: the key 'token_budget' is missing"),
        (
            "token_budget = 512",
            "token_budget = true",
            "table engine: token_budget must be a number",
        ),
        (
            "token_budget = 512",
            f"token_budget = {2**63}",
            "table engine: token_budget must be a num",
        ),
        ('"batch"', '"batches"', r"table engine: Unknown seq_limit .* Did you mean 'batch'\?"),
        (
            '"staircase"',
            '"stairs"',
            r"engine.batch_time: Unknown kind .* Did you mean 'staircase'\?",
        ),
        ('kind = "staircase"', "", "engine.batch_time: this must be a table with a kind, one of"),
        ('"staircase"', "['staircase']", "engine.batch_time: kind must be a string"),
        ("tile = 128", "tiles = 128", r"batch_time: Unknown key 'tiles'. Did you mean 'tile'\?"),
        ("tile = 128", "", "batch_time: the key 'tile' is missing"),
        ("a_ms = 35.47", "a_ms = -1", "batch_time: a_ms must be greater than 0"),
        (
            "[job_types.arrivals]",
            "[job_types.arrival]",
            "table job_types.0.: Unknown key 'arrival'",
        ),
        ("[job_types.decode]", "[job_types.decodes]", "job_types.0.: Unknown key 'decodes'. Did"),
        ("rate_per_s = 2.5", "rate_per_s = 0", "job_types.0..arrivals: rate_per_s must be greater"),
        ("[[job_types]]", "[job_types]", "job_types must be an array of tables"),
        (JOB, "", r"s.toml: give the workload either as \[\[job_types\]\] or as \[replay\]"),
        (JOB, JOB + JOB, "s.toml: Job types need different names"),
        (JOB, "[[job_types]]\n", "table job_types.0.: A stage needs either prefill and decode"),
        (JOB, REPLAY[REPLAY.index("[replay]") :] + JOB, "give the workload either"),
    ],
)
def test_faults_are_named(old, new, fault):
    assert old in BASE
    with pytest.raises(LLMGymError, match=fault):
        loads(BASE.replace(old, new, 1), source="s.toml")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[0.0, 1.0]", "[1.0, 0.0]", "table replay: arrival_s.1. = 0 is before"),
        ("[0.0, 1.0]", "1.0", "table replay: arrival_s must be a list, got 1.0"),
        ("[0.0, 1.0]", "['a', 1.0]", "table replay: arrival_s.0. must be a number, got 'a'"),
        ("[1, 2]", "[1, 2.5]", "table replay: prefill_tokens.1. must be a whole number"),
        ("[1, 2]", "[1]", "table replay: arrival_s has 2 entries"),
        ("[3, 4]", "[3, -4]", "table replay: decode_tokens.1. is -4"),
        ("arrival_s", "arrivals_s", "table replay: Unknown key 'arrivals_s'. Did you"),
    ],
)
def test_faults_of_a_replay_are_named(old, new, fault):
    assert old in REPLAY
    with pytest.raises(LLMGymError, match=fault):
        loads(REPLAY.replace(old, new, 1))


NETWORK = """
[[engines]]
name = "small"
token_budget = 512
batch_time = { kind = "affine", c_ms = 1, a_ms_per_token = 0 }

[[engines]]
name = "large"
token_budget = 256
batch_time = { kind = "hinge", c_ms = 45.5, a_ms_per_token = 0.3, free_tokens = 64 }
replicas = 3

[[job_types]]
name = "agent"
arrivals = { kind = "poisson", rate_per_s = 2 }

[[job_types.stages]]
name = "think"
engine = "small"
prefill = { kind = "fixed", tokens = 30 }
decode = { kind = "geometric", mean_tokens = 80 }
inherits = true

[[job_types.stages]]
name = "tool"
delay_ms = { kind = "geometric", mean_tokens = 500 }
repeat = { to = "think", probability = 0.75 }

[[job_types.stages]]
name = "short"
after = ["tool"]
engine = "small"
probability = 0.5
prefill = { kind = "fixed", tokens = 30 }
decode = { kind = "fixed", tokens = 5 }

[[job_types.stages]]
name = "long"
after = ["tool"]
engine = "large"
probability = 0.5
priority = 2
prefill = { kind = "fixed", tokens = 30 }
decode = { kind = "fixed", tokens = 50 }

[[job_types]]
name = "chat"
arrivals = { kind = "poisson", rate_per_s = 1 }
engine = "large"
prefill = { kind = "fixed", tokens = 129 }
decode = { kind = "fixed", tokens = 112 }
"""
STAGES = "[[job_types.stages]]"


def test_a_network_is_read():
    read = loads(NETWORK)
    assert [(e.name, e.token_budget, e.replicas) for e in read.engines] == [
        ("small", 512, 1),
        ("large", 256, 3),
    ]
    agent, chat = read.workload
    think = Stage(30, LENGTHS["geometric"](80), engine="small", name="think", inherits=True)
    tool = Stage(delay_ms=LENGTHS["geometric"](500), name="tool", repeat=Repeat("think", 0.75))
    either = {"after": ("tool",), "probability": 0.5}
    short = Stage(30, 5, engine="small", name="short", **either)
    long = Stage(30, 50, engine="large", name="long", priority=2, **either)
    assert agent == JobType(PoissonArrivals(2), (think, tool, short, long), "agent")
    assert chat == JobType(PoissonArrivals(1), (Stage(129, 112, engine="large"),), "chat")
    assert same(loads(dumps(read)), read)


def test_the_calls_of_one_engine_need_not_name_it():
    head, stages = NETWORK.split(f"\n{STAGES}\n", 1)
    one = "[engine]" + head[head.index("[[engines]]") + 11 : head.rindex("[[engines]]")]
    text = one + head[head.index("[[job_types]]") :] + f"\n{STAGES}\n" + stages
    text = text.replace('engine = "small"\n', "").replace('engine = "large"\n', "")
    read = loads(text)
    assert {s.engine for j in read.workload for s in j.stages if not s.is_delay} == {"small"}
    assert "engine =" not in dumps(read)
    assert same(loads(dumps(read)), read)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('[[engines]]\nname = "small"', "[engine]", "s.toml: give either one .engine. or, for"),
        (
            "[[engines]]",
            "[[engine]]",
            "s.toml: give either one .engine. or, for a network, several",
        ),
        ("[[engines]]", "[[motors]]", "s.toml: Unknown key 'motors'"),
        ('name = "small"\n', "", "table engines.0.: the key 'name' is missing"),
        ("token_budget = 256", "", "table engines.1.: the key 'token_budget' is missing"),
        ("token_budget = 256", "budget = 256", "table engines.1.: Unknown key 'budget'. Did you"),
        ('name = "large"', 'name = "small"', "s.toml: Engines need different names"),
        ("replicas = 3", "replicas = 0", "table engines.1.: replicas must be at least 1"),
        (
            'engine = "small"',
            'engine = "smal"',
            r"s.toml: Job type 'agent', stage 'think': Unknown engine 'smal'. Did you mean 'small'\?",
        ),
        (
            'engine = "small"\n',
            "",
            r"table job_types.0..stages.0.: the key 'engine' is missing: .*\(small, large\)",
        ),
        ('engine = "large"\nprefill', "prefill", "table job_types.1.: the key 'engine' is missing"),
        ("inherits = true", "inherit = true", "stages.0.: Unknown key 'inherit'. Did you mean"),
        ("inherits = true", "inherits = 1", "stages.0.: inherits must be true or false, got 1"),
        ("priority = 2", "priority = 2.5", "stages.3.: priority must be a whole number"),
        ('["tool"]', '"tool"', "stages.2.: after must be a list, got 'tool'"),
        ('["tool"]', "[1]", "stages.2.: after.0. must be a string in quotes, got 1"),
        (
            '["tool"]',
            '["tol"]',
            "table job_types.0.: Job type 'agent', stage 'short': Unknown stage 'tol'. Did you",
        ),
        ('["tool"]', '["long"]', "table job_types.0.: Job type 'agent', stage .*probabilities"),
        (
            "inherits = true",
            'after = ["tool"]',
            "job_types.0.: .*stage 'think': it waits for itself",
        ),
        (
            "probability = 0.5",
            "probability = 0.4",
            r"job_types.0.: .*'short'.* add up to 0\.9, not 1",
        ),
        ("probability = 0.5", "probability = 1.5", "stages.2.: probability must be at most 1"),
        ('to = "think", ', "", "stages.1..repeat: the key 'to' is missing"),
        ('to = "think"', 'to = "thnk"', "job_types.0.: .*stage 'tool': Unknown stage 'thnk'"),
        ('to = "think"', 'too = "think"', "stages.1..repeat: Unknown key 'too'"),
        ("probability = 0.75", "probability = 1", "stages.1..repeat: The loop back .* never ends"),
        ("probability = 0.75", "rounds = 0", "stages.1..repeat: rounds must be at least 1"),
        (", probability = 0.75", "", "stages.1..repeat: A loop needs either the probability"),
        ('name = "tool"', 'name = "think"', "job_types.0.: .*two stages have this name"),
        (
            "delay_ms = {",
            "decode = { kind = 'fixed', tokens = 1 }\ndelay_ms = {",
            "stages.1.: Stage 'tool' has both a delay and token lengths",
        ),
        (
            "rate_per_s = 2 }",
            "rate_per_s = 2 }\nprefill = { kind = 'fixed', tokens = 1 }",
            "table job_types.0.: prefill belongs to one call: write it in ..job_types.stages..",
        ),
        (STAGES, "[job_types.stages]", "s.toml: this is not valid TOML"),
        ("replicas = 3", 'replicas = 3\nrouter = "x"', "table engines.1.: Unknown key 'router'"),
        ("[[engines]]", 'router = "fewest"\n[[engines]]', "s.toml: Unknown router 'fewest'. Did"),
    ],
)
def test_faults_of_a_network_are_named(old, new, fault):
    assert old in NETWORK
    with pytest.raises(LLMGymError, match=fault):
        loads(NETWORK.replace(old, new, 1), source="s.toml")


def test_engines_and_stages_are_arrays_of_tables():
    no_stages = NETWORK[: NETWORK.index(STAGES)]
    for text, fault in [
        (
            no_stages + "stages = 3",
            "table job_types.0.: stages must be an array of tables: write ..",
        ),
        (no_stages + "stages = []", "table job_types.0.: Job type 'agent' has no stage"),
        (no_stages + "stages = [3]", "table job_types.0..stages.0.: this must be a table, got 3"),
        ("engines = 3\n" + JOB, "s.toml: engines must be an array of tables: write ..engines.."),
        ("engines = []\n" + JOB, "table job_types.0.: the key 'engine' is missing"),
        (JOB, "s.toml: give either one .engine. or, for a network, several ..engines.."),
    ]:
        with pytest.raises(LLMGymError, match=fault):
            loads(text, "s.toml")


JUNK = [-1, 0, 2.5, 2**40, 2**63, float("nan"), float("-inf"), "x", "", True, [], {}, [1, "a"]]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([BASE, REPLAY, NETWORK]), st.data())
def test_a_damaged_file_is_read_or_refused(text, data):
    """Whatever key is dropped or gets a value of any type, nothing but LLMGymError comes out."""
    top = table = tomllib.loads(text)
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        inner = table[key][0] if isinstance(table[key], list) else table[key]
        if not isinstance(inner, dict) or data.draw(st.booleans()):
            break
        table = inner
    if data.draw(st.booleans()):
        table[key] = data.draw(st.sampled_from(JUNK))
    else:
        del table[key]
    damaged = tomli_w.dumps(top)
    try:
        loads(damaged)
    except LLMGymError:
        with pytest.raises(LLMGymError, match=r"^s\.toml"):
            loads(damaged, "s.toml")


def test_replay_of_a_trace_beside_the_file(tmp_path):
    (tmp_path / "trace.txt").write_text("arrival,prefill,decode\n1,10,3\n2,20,4\n3,30,5\n")
    path = tmp_path / "s.toml"
    head = REPLAY[: REPLAY.index("[replay]")]
    path.write_text(head + '[replay]\ntrace = "trace.txt"\nlimit = 2\nname = "x"\ntpot_ms = 7\n')
    assert same(load(path).workload, Replay([0.0, 1.0], [10, 20], [3, 4], "x", None, 7))
    for line, fault in [
        ('trace = "trace.tx"', "s.toml, table replay: .*trace.tx: No such file"),
        ('trace = "trace.txt"\nformat = "azur"', "table replay: Unknown trace format 'azur'"),
        ('trace = "trace.txt"\nlimits = 1', "table replay: Unknown key 'limits'"),
        ("trace = 1", "table replay: trace must be a string"),
    ]:
        path.write_text(f"{head}[replay]\n{line}\n")
        with pytest.raises(LLMGymError, match=fault):
            load(path)


def test_save_and_load(tmp_path):
    path = tmp_path / "s.toml"
    save(PLAIN, path)
    save(PLAIN.override(slots=99, description="naïve"), path)
    assert same(load(path), PLAIN.override(slots=99, description="naïve"))
    assert [p.name for p in tmp_path.iterdir()] == ["s.toml"]


def test_save_writes_all_or_nothing(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for target in ("folder.toml", "file/s.toml", "none/s.toml", "a\0b.toml"):
        with pytest.raises(LLMGymError, match="Cannot write"):
            save(PLAIN, tmp_path / target)
    with pytest.raises(LLMGymError, match="Cannot write"):
        save(PLAIN.override(name="\ud800"), tmp_path / "file")  # no UTF-8 for half a character
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "kept"


def test_unreadable_files(tmp_path):
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "s.toml", tmp_path / "no.toml", tmp_path):
        with pytest.raises(LLMGymError, match=f"Cannot read scenario {path}"):
            load(path)


NETWORKS = (
    "rybko-stolyar",
    "rybko-stolyar-reversed",
    "fork-join",
    "pipeline-dag",
    "diamond-dag",
    "load-balanced",
    "lu-kumar",
    "criss-cross",
    "re-entrant-line",
    "react-loop",
    "planner-workers-critic",
    "rag",
    "mixed-tenants",
)


def test_names():
    assert names() == sorted(names())
    assert {"paper-figure-1", "theorem-2", "corner-c", "md1", "llama-3-70b", "geometric"} < {
        *names()
    }
    assert {"bursty", "capped", "two-class", "azure-conversation", "azure-code"} < {*names()}
    assert {*NETWORKS} < {*names()}
    assert {name for name in names() if scenario(name).is_network} == {*NETWORKS}


@pytest.mark.parametrize("name", names())
def test_shipped_scenario(name):
    shipped = scenario(name)
    text = (ROOT / "llmgym" / "scenario" / "data" / f"{name}.toml").read_text(encoding="utf-8")
    assert dumps(shipped) == text, "not in the form that save writes"
    assert same(loads(text), shipped)
    assert shipped.name == name
    assert shipped.description.endswith(".")
    assert shipped.source.endswith(".")
    if shipped.is_network:
        return
    physics = simulator.lower(shipped)
    assert physics.slots == shipped.slots
    assert len(physics.arrivals) == len(physics.lengths) == len(shipped.class_names)


def test_shipped_numbers():
    critical = scenario("theorem-2")
    assert critical.arrival_rate_per_s == pytest.approx(512 / 0.15316 / 200, rel=1e-7)
    corner = simulator.lower(scenario("corner-c")).arrivals[0]
    assert (int(corner.whole), int(corner.fraction)) == (46750, 0)
    promised = [one.targets_ms for one in scenario("two-class").classes]
    assert promised == [(1000.0, 200.0), (60000.0, 1000.0)]
    assert scenario("md1").arrival_rate_per_s * 0.04675 == pytest.approx(0.8, rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_engine_of_a_shipped_network_is_overloaded(name):
    network = scenario(name)
    asked = dict.fromkeys((engine.name for engine in network.engines), 0.0)
    for job in network.workload:
        flow = job.workflow
        for stage, visits, (prefill, decode) in zip(
            job.stages, flow.visits, flow.means, strict=True
        ):
            if not stage.is_delay:
                asked[stage.engine] += job.rate_per_s * visits * (prefill + decode)
    for engine in network.engines:
        full_s = float(engine.batch_time.ms(np.array([engine.token_budget]))[0]) / 1000
        load = asked[engine.name] * full_s / engine.token_budget / engine.replicas
        assert 0.03 < load < 0.91, engine.name


def test_numbers_of_the_networks():
    """Section 5.4 of the paper: rho = 0.9, and the virtual station of the two exit classes."""
    for name in ("rybko-stolyar", "rybko-stolyar-reversed", "lu-kumar"):
        network = scenario(name)
        rate = network.workload[0].rate_per_s / 1000
        assert rate == pytest.approx(0.9 * 768 / 608)
        heavy = [s for job in network.workload for s in job.stages if s.mean_prefill == 512]
        assert [s.priority for s in heavy] == [int("reversed" not in name)] * 2
        assert {s.engine for s in heavy} == {"engine-1", "engine-2"}
        assert rate * sum(s.mean_prefill + s.mean_decode for s in heavy) / 768 > 1
    agent = scenario("react-loop").workload[0].workflow
    assert agent.visits == pytest.approx([1 / 0.3, 1 / 0.3, 1])
    assert scenario("load-balanced").engine.replicas == 2


def test_overrides_and_paths(tmp_path):
    changed = scenario("paper-figure-1", token_budget=1024, prefill_tokens=7, arrival_rate_per_s=3)
    assert (changed.engine.token_budget, changed.mean_prefill) == (1024, 7)
    assert changed.arrival_rate_per_s == pytest.approx(3)
    save(PLAIN, tmp_path / "mine.toml")
    assert same(scenario(tmp_path / "mine.toml", slots=9), PLAIN.override(slots=9))


def test_unknown_names():
    with pytest.raises(
        LLMGymError, match=r"Unknown scenario 'paper-fig-1'. Did you mean 'paper-figure"
    ):
        scenario("paper-fig-1")
    with pytest.raises(LLMGymError, match=r"Unknown scenario setting 'slot'. Did you mean 'slots'"):
        scenario("md1", slot=3)
    with pytest.raises(LLMGymError, match="named by a string or a path, got 3"):
        scenario(3)
    with pytest.raises(LLMGymError, match=r"Cannot read scenario md\.toml"):
        scenario("md.toml")
