"""Scenarios as TOML text: the writer. ``llmgym.scenario.toml_reader`` reads it and describes the form."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from llmgym.core.checks import check_kind, check_path
from llmgym.core.errors import LLMGymError
from llmgym.core.files import write
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.stage import Stage
from llmgym.scenario.toml_tables import KINDS
from llmgym.scenario.workload import JobType

FIRST = ("name", "description", "source", "engine", "after")
SELDOM = (
    "replicas",
    "inherits",
    "priority",
    "first_token",
    "weight",
    "tenants",
    "prefix_caching",
    "prefix_tokens",
)
"""Fields that are left out at their default; so is a router that has nothing to choose from."""

ONLY_CALL = "call-1"
"""Name of the one call of a job type that has no table of stages."""


def save(scenario: Scenario, path: str | Path) -> None:
    """Write the scenario to a TOML file, all of it or nothing.

    Raises:
        LLMGymError: the file cannot be written, or see ``dumps``.
    """
    check_kind("scenario", scenario, Scenario)
    text = dumps(scenario)
    target = check_path("path", path)
    try:
        data = text.encode()
    except ValueError as error:  # half a character in a name
        raise LLMGymError(f"Cannot write {target}: {error}. Give another name.") from None
    if not os.path.isdir(target.parent):
        raise LLMGymError(
            f"Cannot write {target}: there is no folder {target.parent}. Make it first."
        )
    write(target, data)


def dumps(scenario: Scenario) -> str:
    """The scenario as TOML text, every setting written out; ``loads`` gives an equal scenario back.

    Raises:
        LLMGymError: a batch time, arrival process or length whose class is not a registered kind.
    """
    several = len(scenario.engines) > 1
    routed = scenario.router != Scenario.router or any(e.replicas > 1 for e in scenario.engines)
    table = _table(scenario, leave_out=("engines", "workload", *([] if routed else ["router"])))
    if several:
        table["engines"] = [_table(engine) for engine in scenario.engines]
    else:
        table["engine"] = _table(scenario.engine)
    if isinstance(scenario.workload, Replay):
        table["replay"] = _table(scenario.workload)
    else:
        table["job_types"] = [_job_type(job, several) for job in scenario.job_types]
    staged = any("stages" in job for job in table.get("job_types", ()))
    return "".join(_lines(table, compact=several or staged))


def dumps_batch_time(batch_time: BatchTime) -> str:
    """The TOML table ``[batch_time]``, as ``load_batch_time`` of ``llmgym.scenario.toml_tables`` reads it.

    Raises:
        LLMGymError: its class is not a registered kind.
    """
    return "".join(_lines({"batch_time": _table(batch_time)}, compact=False)).lstrip()


def _job_type(job: JobType, several_engines: bool) -> dict[str, Any]:
    """A job type with its stages, or with the fields of its one call in the same table."""
    table = _table(job, leave_out=("stages",))
    stages = [_stage(stage, several_engines) for stage in job.stages]
    if len(stages) == 1 and stages[0]["name"] == ONLY_CALL:
        return table | {key: value for key, value in stages[0].items() if key != "name"}
    return table | {"stages": stages}


def _stage(stage: Stage, several_engines: bool) -> dict[str, Any]:
    needless = stage.engine == Stage.engine if stage.is_delay else not several_engines
    return _table(stage, leave_out=("engine",) if needless else ())


def _table(thing: Any, leave_out: Iterable[str] = ()) -> dict[str, Any]:
    """A dataclass as a TOML table: its kind, where there are kinds, and its fields that are set."""
    table: dict[str, Any] = {}
    for base, kinds in KINDS.items():
        if isinstance(thing, base):
            if kinds.get(thing.kind) is not type(thing):
                raise LLMGymError(
                    f"{type(thing).__name__} cannot be written to TOML; the kinds of "
                    f"{base.__name__} that can: {', '.join(kinds)}."
                )
            table["kind"] = thing.kind
    default: dict[str, Any] = {f.name: f.default for f in fields(thing) if f.name not in leave_out}
    for name in sorted(default, key=lambda name: (*FIRST, name).index(name)):
        value = getattr(thing, name)
        if value is None or (name in SELDOM and np.array_equal(value, default[name])):
            continue
        if is_dataclass(value):
            table[name] = _table(value)
        elif name == "tenants":
            table[name] = [_table(tenant) for tenant in value]
        elif name == "after":
            table[name] = list(value)
        else:
            table[name] = value if isinstance(value, str) else np.asarray(value).tolist()
    return table


def _lines(table: dict[str, Any], compact: bool, path: str = "") -> Iterator[str]:
    """The lines of a table, its inner tables last; ``compact``: those of plain values on one line."""
    inner = {}
    for key, value in table.items():
        if isinstance(value, dict):
            if compact and not any(isinstance(v, (dict, list)) for v in value.values()):
                pairs = ", ".join(f"{k} = {_literal(v)}" for k, v in value.items())
                yield f"{key} = {{ {pairs} }}\n"
            else:
                inner[key] = [value]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            inner[key] = value
        else:
            yield f"{key} = {_literal(value)}\n"
    for key, tables in inner.items():
        header = f"[{path}{key}]" if isinstance(table[key], dict) else f"[[{path}{key}]]"
        for one in tables:
            yield f"\n{header}\n"
            yield from _lines(one, compact, f"{path}{key}.")


def _literal(value: Any) -> str:
    """A value in TOML; a long list of numbers in lines of up to 100 characters."""
    if not isinstance(value, list):
        return tomli_w.dumps({"x": value})[len("x = ") : -1]
    items = ", ".join(map(_literal, value))
    if len(items) <= 72 or any(isinstance(item, str) for item in value):
        return f"[{items}]"
    return "[\n" + textwrap.indent(textwrap.fill(items, 96), "    ") + ",\n]"
