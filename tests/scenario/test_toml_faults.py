"""Faults of scenario files are named, and damaged files are read or refused."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st
from random_scenarios import PLAIN, same

from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import Poisson as PoissonArrivals
from llmgym.scenario.lengths import LENGTHS
from llmgym.scenario.replay import Replay
from llmgym.scenario.stage import Repeat, Stage
from llmgym.scenario.toml_reader import load, loads
from llmgym.scenario.toml_writer import dumps
from llmgym.scenario.workload import JobType

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
