"""Scenarios as TOML files, and the named ones that ship with llmgym.

A file has the fields of Scenario at the top, ``[engine]`` or several ``[[engines]]``, and either
``[[job_types]]`` or ``[replay]``. Batch times, arrivals and lengths come in kinds, and each says
which ::

    name = "example"
    slots = 256

    [engine]
    token_budget = 512
    batch_time = { kind = "staircase", c_ms = 11.28, a_ms = 35.47, tile = 128 }

    [[job_types]]
    ttft_ms = 1000.0
    arrivals = { kind = "poisson", rate_per_s = 8.0 }
    prefill = { kind = "fixed", tokens = 129 }
    decode = { kind = "geometric", mean_tokens = 112 }

The keys of a table are the fields of its class; those without a default must be there. A batch time
may also be a string: the name of one in ``batch_time_library``, or a TOML file with a ``[batch_time]``,
such as ``llmgym calibrate`` writes, relative to the current folder. In place of prefill and decode a
call may have ``[job_types.paired]``. A job of several calls lists its stages; where there are several
engines each has a name, and each call says which engine serves it ::

    [[engines]]
    name = "large"
    token_budget = 512
    replicas = 2
    batch_time = { kind = "hinge", c_ms = 45.5, a_ms_per_token = 0.3, free_tokens = 64 }

    [[job_types]]
    name = "agent"
    arrivals = { kind = "poisson", rate_per_s = 0.5 }

    [[job_types.stages]]
    name = "think"
    engine = "large"
    inherits = true
    prefill = { kind = "geometric", mean_tokens = 300 }
    decode = { kind = "geometric", mean_tokens = 80 }

    [[job_types.stages]]
    name = "tool"
    after = ["think"]
    delay_ms = { kind = "geometric", mean_tokens = 500 }
    repeat = { to = "think", probability = 0.7 }

A delay is written as a length, in milliseconds instead of tokens. A ``[replay]`` lists the fields of
Replay or has ``trace = "file"``, relative to the folder of the TOML file, with ``format`` and ``limit``
as in ``read_trace``; ``name``, the targets, ``weight`` and the tenants go with both ::

    [replay]
    trace = "requests.csv"

    [[replay.tenants]]
    name = "chat"
    ttft_ms = 1000.0
    priority = 1
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from llmgym.core.checks import check_text
from llmgym.scenario.engine import Engine
from llmgym.scenario.replay import Replay
from llmgym.scenario.replay_files import read_replay
from llmgym.scenario.request_class import TARGETS
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage
from llmgym.scenario.toml_tables import Place, parse, read, read_text, rows, scalar
from llmgym.scenario.workload import JobType

WORKLOADS = ("job_types", "replay")


def loads(text: str, source: str = "TOML text") -> Scenario:
    """The scenario that a TOML text describes; ``source`` is what error messages call the text.

    Raises:
        LLMGymError: invalid TOML, an unknown or missing key, a value of the wrong type or out of range;
            the message names source, table and key.
    """
    return _parse(check_text("text", text), check_text("source", source), Path())


def load(path: str | Path) -> Scenario:
    """The scenario in a TOML file. Raises LLMGymError as ``loads`` does, or if it is unreadable."""
    return _parse(read_text("scenario", path), str(path), Path(path).parent)


def _parse(text: str, source: str, folder: Path) -> Scenario:
    place = Place(source)
    top = parse(place, text)
    own = {f.name for f in fields(Scenario)} - {"engines", "workload"}
    place.check_keys(top, own | {"engine", "engines", *WORKLOADS})
    engines = _read_engines(place, top)
    if ("job_types" in top) == ("replay" in top):
        raise place.error("give the workload either as [[job_types]] or as [replay].")
    workload: Any
    if "replay" in top:
        workload = _read_replay(place.inside("replay"), top["replay"], folder)
    else:
        tables = rows(place, "job_types", top["job_types"])
        workload = tuple(_read_job_type(inside, table, engines) for inside, table in tables)
    settings = {key: top[key] for key in top if key in own}
    return read(place, Scenario, settings, engines=engines, workload=workload)


def _read_engines(place: Place, top: dict[str, Any]) -> tuple[Engine, ...]:
    if ("engine" in top) == ("engines" in top):
        raise place.error("give either one [engine] or, for a network, several [[engines]].")
    if "engine" in top:
        return (read(place.inside("engine"), Engine, top["engine"]),)
    engines = []
    for inside, table in rows(place, "engines", top["engines"]):
        inside.check_keys(table, [f.name for f in fields(Engine)], ["name"])
        engines.append(read(inside, Engine, table))
    return tuple(engines)


def _read_job_type(place: Place, table: Any, engines: tuple[Engine, ...]) -> JobType:
    """A job type with its stages, or one whose only call has its lengths in the same table."""
    own = {f.name for f in fields(JobType)} - {"stages"}
    call = {f.name for f in fields(Stage)} - {"name"}
    place.check_keys(table, own | call | {"stages"})
    in_call = {key: table[key] for key in table if key in call}
    stages: tuple[Stage, ...]
    if "stages" not in table:
        stages = (_read_stage(place, in_call, engines),)
    elif in_call:
        raise place.error(
            f"{next(iter(in_call))} belongs to one call: write it in [[job_types.stages]], "
            "or leave out the stages."
        )
    else:
        tables = rows(place, "stages", table["stages"], "job_types.stages")
        stages = tuple(_read_stage(inside, stage, engines) for inside, stage in tables)
    return read(place, JobType, {k: table[k] for k in table if k in own}, stages=stages)


def _read_stage(place: Place, table: Any, engines: tuple[Engine, ...]) -> Stage:
    """A stage; where there is one engine, its calls need not name it."""
    place.check_keys(table, [f.name for f in fields(Stage)])
    if "engine" not in table and "delay_ms" not in table:
        if len(engines) != 1:
            known = ", ".join(engine.name for engine in engines)
            raise place.error(
                f"the key 'engine' is missing: name the one that serves it ({known})."
            )
        table = table | {"engine": engines[0].name}
    return read(place, Stage, table)


def _read_replay(place: Place, table: Any, folder: Path) -> Replay:
    """A replay, listed in the table or read from the trace that it names."""
    labels = ("name", *TARGETS, "weight", "tenants")
    if not isinstance(table, dict) or "trace" not in table:
        return read(place, Replay, table)
    place.check_keys(table, ("trace", "format", "limit", *labels))
    trace = folder / scalar(place, "trace", str, table["trace"])
    replay = place.make(read_replay, trace, table.get("format"), table.get("limit"))
    listed = {f.name: getattr(replay, f.name) for f in fields(Replay) if f.name not in labels}
    return read(place, Replay, {k: table[k] for k in labels if k in table}, **listed)
