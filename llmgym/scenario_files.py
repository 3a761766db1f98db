"""Scenarios as TOML files, and the named ones that ship with llmgym.

A file has the fields of Scenario at the top, ``[engine]`` or several ``[[engines]]``, and either
``[[job_types]]`` or ``[replay]``. Everything that comes in kinds says which: a batch time,
arrivals, lengths ::

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
may also be a string: the name of one in ``llmgym.presets``, or a TOML file with a ``[batch_time]``,
such as ``llmgym calibrate`` writes, seen from the current folder. In place of prefill and decode a
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

A delay takes its kind from the lengths, with a millisecond for a token. A ``[replay]`` lists the
fields of Replay or has ``trace = "file"``, seen from the folder of the TOML file, with ``format``
and ``limit`` as in ``read_trace``; ``name``, ``ttft_ms``, ``tpot_ms``, ``weight`` and the tenants go
with both ::

    [replay]
    trace = "requests.csv"

    [[replay.tenants]]
    name = "chat"
    ttft_ms = 1000.0
    priority = 1
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from llmgym.batch_time import BatchTime
from llmgym.errors import LLMGymError, check_number, unknown
from llmgym.presets import PRESETS
from llmgym.scenario import Engine, Scenario
from llmgym.scenario_toml import KINDS, dumps
from llmgym.traces import read_trace
from llmgym.workload import JobType, Replay, Stage

WORKLOADS = ("job_types", "replay")


def save(scenario: Scenario, path: str | Path) -> None:
    """Write the scenario to a TOML file, all of it or nothing.

    Raises:
        LLMGymError: the file cannot be written, or see ``dumps``.
    """
    text = dumps(scenario)
    temporary = Path(f"{path}.{os.getpid()}.part")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except (OSError, TypeError, ValueError) as error:
        with suppress(OSError, ValueError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or error
        raise LLMGymError(
            f"Cannot write {path}: {reason}. Give a file name in a folder that you may write to."
        ) from None


@dataclass(frozen=True)
class _Place:
    """Where in which file something stands, for error messages."""

    source: str
    table: str = ""

    def inside(self, key: str) -> _Place:
        return replace(self, table=f"{self.table}.{key}" if self.table else key)

    def error(self, fault: object) -> LLMGymError:
        table = f", table {self.table}" if self.table else ""
        return LLMGymError(f"{self.source}{table}: {fault}")

    def check_keys(self, table: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
        if not isinstance(table, dict):
            raise self.error(f"this must be a table, got {table!r}.")
        for key in table:
            if key not in known:
                raise self.error(unknown("key", key, known))
        for key in needed:
            if key not in table:
                raise self.error(f"the key {key!r} is missing.")

    def make(self, build: Callable[..., Any], *values: Any, **settings: Any) -> Any:
        """Call ``build``; its error then says where."""
        try:
            return build(*values, **settings)
        except LLMGymError as error:
            raise self.error(error) from None


def loads(text: str, source: str = "TOML text") -> Scenario:
    """The scenario that a TOML text describes; ``source`` is what error messages call the text.

    Raises:
        LLMGymError: no TOML, an unknown or missing key, a value of the wrong type or out of range;
            the message names source, table and key.
    """
    return _parse(text, source, Path())


def load(path: str | Path) -> Scenario:
    """The scenario in a TOML file. Raises LLMGymError as ``loads`` does, or if it is unreadable."""
    return _parse(_text("scenario", path), str(path), Path(path).parent)


def load_batch_time(name_or_path: str | Path) -> BatchTime:
    """A batch time by its name in ``llmgym.presets``, or from the ``[batch_time]`` of a TOML file.

    Raises:
        LLMGymError: an unknown name (with the nearest match); for files see ``load``.
    """
    name = str(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".toml"):
        raise unknown("batch time", name, PRESETS)
    place = _Place(name)
    top = _tables(place, _text("batch time", name))
    place.check_keys(top, ["batch_time"], ["batch_time"])
    return cast(BatchTime, _read_table(place.inside("batch_time"), BatchTime, top["batch_time"]))


def _text(what: str, path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LLMGymError(f"Cannot read {what} {path}: {reason}. Give a TOML file.") from None


def _tables(place: _Place, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise place.error(f"this is not valid TOML: {error}.") from None


def _parse(text: str, source: str, folder: Path) -> Scenario:
    place = _Place(source)
    top = _tables(place, text)
    own = {f.name for f in fields(Scenario)} - {"engines", "workload"}
    place.check_keys(top, own | {"engine", "engines", *WORKLOADS})
    engines = _read_engines(place, top)
    if ("job_types" in top) == ("replay" in top):
        raise place.error("give the workload either as [[job_types]] or as [replay].")
    workload: Any
    if "replay" in top:
        workload = _read_replay(place.inside("replay"), top["replay"], folder)
    else:
        rows = _rows(place, "job_types", top["job_types"])
        workload = tuple(_read_job_type(inside, table, engines) for inside, table in rows)
    settings = {key: top[key] for key in top if key in own}
    return _read(place, Scenario, settings, engines=engines, workload=workload)


def _rows(place: _Place, key: str, tables: Any, header: str = "") -> Iterator[tuple[_Place, Any]]:
    """The tables of an array, each with its place."""
    if not isinstance(tables, list):
        raise place.error(f"{key} must be an array of tables: write [[{header or key}]].")
    return ((place.inside(f"{key}[{i}]"), table) for i, table in enumerate(tables))


def _read_engines(place: _Place, top: dict[str, Any]) -> tuple[Engine, ...]:
    if ("engine" in top) == ("engines" in top):
        raise place.error("give either one [engine] or, for a network, several [[engines]].")
    if "engine" in top:
        return (_read(place.inside("engine"), Engine, top["engine"]),)
    engines = []
    for inside, table in _rows(place, "engines", top["engines"]):
        inside.check_keys(table, [f.name for f in fields(Engine)], ["name"])
        engines.append(_read(inside, Engine, table))
    return tuple(engines)


def _read_job_type(place: _Place, table: Any, engines: tuple[Engine, ...]) -> JobType:
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
        rows = _rows(place, "stages", table["stages"], "job_types.stages")
        stages = tuple(_read_stage(inside, stage, engines) for inside, stage in rows)
    return _read(place, JobType, {k: table[k] for k in table if k in own}, stages=stages)


def _read_stage(place: _Place, table: Any, engines: tuple[Engine, ...]) -> Stage:
    """A stage; where there is one engine, its calls need not name it."""
    place.check_keys(table, [f.name for f in fields(Stage)])
    if "engine" not in table and "delay_ms" not in table:
        if len(engines) != 1:
            known = ", ".join(engine.name for engine in engines)
            raise place.error(
                f"the key 'engine' is missing: name the one that serves it ({known})."
            )
        table = table | {"engine": engines[0].name}
    return _read(place, Stage, table)


def _read_replay(place: _Place, table: Any, folder: Path) -> Replay:
    """A replay, listed in the table or read from the trace that it names."""
    labels = ("name", "ttft_ms", "tpot_ms", "weight", "tenants")
    if not isinstance(table, dict) or "trace" not in table:
        return _read(place, Replay, table)
    place.check_keys(table, ("trace", "format", "limit", *labels))
    trace = folder / _scalar(place, "trace", str, table["trace"])
    replay = place.make(read_trace, trace, table.get("format"), table.get("limit"))
    listed = {f.name: getattr(replay, f.name) for f in fields(Replay) if f.name not in labels}
    return _read(place, Replay, {k: table[k] for k in labels if k in table}, **listed)


def _read(place: _Place, cls: Any, table: Any, **given: Any) -> Any:
    """An instance of the dataclass ``cls``, its fields from the table save for those ``given``."""
    own = [f for f in fields(cls) if f.name not in given]
    needed = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    place.check_keys(table, [f.name for f in own], needed)
    hints = get_type_hints(cls)
    values = {key: _value(place, key, hints[key], value) for key, value in table.items()}
    return place.make(cls, **values, **given)


def _value(place: _Place, key: str, hint: Any, value: Any) -> Any:
    """The value of a key as the type that its field declares; of ``X | Y`` the first, X."""
    if get_origin(hint) is UnionType:
        hint = next(option for option in get_args(hint) if option is not NoneType)
    if hint in KINDS:
        return _read_kind(place.inside(key), hint, value)
    if is_dataclass(hint):
        return _read(place.inside(key), hint, value)
    if get_origin(hint) is None:
        return _scalar(place, key, hint, value)
    if not isinstance(value, list):
        raise place.error(f"{key} must be a list, got {value!r}.")
    item = get_args(hint)[0]
    if is_dataclass(item):
        return tuple(_read(inside, item, one) for inside, one in _rows(place, key, value))
    return tuple(_value(place, f"{key}[{i}]", item, v) for i, v in enumerate(value))


def _read_kind(place: _Place, base: type, value: Any) -> Any:
    """A batch time, an arrival process or a length; a batch time may also be named."""
    if base is BatchTime and isinstance(value, str):
        return place.make(load_batch_time, value)
    return _read_table(place, base, value)


def _read_table(place: _Place, base: type, table: Any) -> Any:
    """An object of a class that comes in kinds: the table names the kind."""
    kinds = KINDS[base]
    if not isinstance(table, dict) or "kind" not in table:
        raise place.error(f"this must be a table with a kind, one of {', '.join(kinds)}.")
    kind = _scalar(place, "kind", str, table["kind"])
    if kind not in kinds:
        raise place.error(unknown("kind", kind, kinds))
    return _read(place, kinds[kind], {k: v for k, v in table.items() if k != "kind"})


def _scalar(place: _Place, key: str, wanted: type, value: Any) -> Any:
    """A string, boolean or finite number; a whole number may be written 128.0."""
    if wanted in (int, float):
        if not isinstance(value, (int, float)):
            raise place.error(f"{key} must be a number, got {value!r}.")
        if abs(value) >= 2**63:
            raise place.error(f"{key} must be a number below 2**63 in size, got {value!r:.40}.")
        place.make(check_number, key, value, integer=wanted is int)
        return int(value) if wanted is int else value
    if not isinstance(value, wanted):
        what = {str: "a string in quotes", bool: "true or false"}[wanted]
        raise place.error(f"{key} must be {what}, got {value!r}.")
    return value


def _shipped() -> dict[str, Any]:
    files = (resources.files("llmgym") / "scenarios").iterdir()
    return {file.name[:-5]: file for file in files if file.name.endswith(".toml")}


def names() -> list[str]:
    """Names of the scenarios that ship with llmgym."""
    return sorted(_shipped())


def scenario(name_or_path: str | Path, **overrides: Any) -> Scenario:
    """A shipped scenario by name, or one from a TOML file, with settings changed.

    Args:
        name_or_path: a name in ``names()``, or the path of a ``.toml`` file.
        overrides: settings for ``Scenario.override``, such as token_budget or slots.

    Raises:
        LLMGymError: an unknown name (with the nearest match) or setting; see ``load`` for files.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise LLMGymError(f"A scenario is named by a string or a path, got {name_or_path!r}.")
    name, shipped = str(name_or_path), _shipped()
    if name in shipped:
        found = loads(shipped[name].read_text(encoding="utf-8"), source=str(shipped[name]))
    elif name.endswith(".toml"):
        found = load(name)
    else:
        raise unknown("scenario", name, shipped)
    return found.override(**overrides) if overrides else found
