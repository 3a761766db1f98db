"""Tables of TOML as objects: every key checked, every fault named with its place."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_origin, get_type_hints

from llmgym.core import reading
from llmgym.core.errors import LLMGymError, check_number, shown, unknown
from llmgym.scenario.arrivals import ARRIVALS, Arrivals
from llmgym.scenario.batch_time import BATCH_TIMES, BatchTime
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.lengths import LENGTHS, Length

KINDS: dict[Any, dict[str, Any]] = {BatchTime: BATCH_TIMES, Arrivals: ARRIVALS, Length: LENGTHS}
"""What comes in kinds, and the class of each kind."""

LONG_KEY = re.compile(r"(?<![\w\"'.-])(?:[\w\"'-]++[ \t]*+\.[ \t]*+){64}")


@dataclass(frozen=True)
class Place:
    """Where in which file something stands, for error messages."""

    source: str
    table: str = ""

    def inside(self, key: str) -> Place:
        return replace(self, table=f"{self.table}.{key}" if self.table else key)

    def error(self, fault: object) -> LLMGymError:
        table = f", table {self.table}" if self.table else ""
        return LLMGymError(f"{self.source}{table}: {fault}")

    def check_keys(self, table: Any, known: Iterable[str], needed: Iterable[str] = ()) -> None:
        """Raise LLMGymError for what is not a table, or has wrong keys.

        Args:
            table: what was read.
            known: the keys that it may have.
            needed: those that it must have.
        """
        if not isinstance(table, dict):
            raise self.error(f"this must be a table, got {shown(table)}.")
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


def load_batch_time(name_or_path: str | Path) -> BatchTime:
    """A batch time by its name in ``batch_time_library``, or from the ``[batch_time]`` of a TOML file.

    Raises:
        LLMGymError: an unknown name (with the nearest match); for files as ``load`` in ``toml_reader``.
    """
    name = str(name_or_path)
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".toml"):
        raise unknown("batch time", name, PRESETS)
    place = Place(name)
    top = parse(place, read_text("batch time", name))
    place.check_keys(top, ["batch_time"], ["batch_time"])
    return cast(BatchTime, _read_table(place.inside("batch_time"), BatchTime, top["batch_time"]))


def read_text(what: str, path: str | Path) -> str:
    """The text of a file. Raises LLMGymError, which says ``what`` the file holds, if it is unreadable."""
    return reading.read_text(path, what, hint="Give a TOML file.")


def parse(place: Place, text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises LLMGymError if it is not TOML."""
    if LONG_KEY.search(text):  # the time to read one grows with the square of its length
        raise place.error("a key has more than 64 parts with dots between; write tables instead.")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise place.error(f"this is not valid TOML: {error}.") from None


def rows(place: Place, key: str, tables: Any, header: str = "") -> Iterator[tuple[Place, Any]]:
    """The tables of an array, each with its place.

    Args:
        place: where the array stands.
        key: its key there.
        tables: its value. Raises LLMGymError if it is not a list.
        header: for the error, the array with the tables around it, such as ``job_types.stages``.
    """
    if not isinstance(tables, list):
        raise place.error(f"{key} must be an array of tables: write [[{header or key}]].")
    return ((place.inside(f"{key}[{i}]"), table) for i, table in enumerate(tables))


def read(place: Place, cls: Any, table: Any, **given: Any) -> Any:
    """An instance of the dataclass ``cls`` with fields from the table, except those ``given``.

    Raises LLMGymError, which names the place, for unknown or missing keys and for values that do not fit.
    """
    own = [f for f in fields(cls) if f.name not in given]
    needed = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    place.check_keys(table, [f.name for f in own], needed)
    hints = get_type_hints(cls)
    values = {key: _value_of(place, key, hints[key], value) for key, value in table.items()}
    return place.make(cls, **values, **given)


def _value_of(place: Place, key: str, hint: Any, value: Any) -> Any:
    """The value of a key as the type that its field declares; of ``X | Y`` the first, X."""
    if get_origin(hint) is UnionType:
        hint = next(option for option in get_args(hint) if option is not NoneType)
    if hint in KINDS:
        return _read_kind(place.inside(key), hint, value)
    if is_dataclass(hint):
        return read(place.inside(key), hint, value)
    if get_origin(hint) is None:
        return scalar(place, key, hint, value)
    if not isinstance(value, list):
        raise place.error(f"{key} must be a list, got {shown(value)}.")
    item = get_args(hint)[0]
    if is_dataclass(item):
        return tuple(read(inside, item, one) for inside, one in rows(place, key, value))
    return tuple(_value_of(place, f"{key}[{i}]", item, v) for i, v in enumerate(value))


def _read_kind(place: Place, base: type, value: Any) -> Any:
    """A batch time, an arrival process or a length; a batch time may also be named."""
    if base is BatchTime and isinstance(value, str):
        return place.make(load_batch_time, value)
    return _read_table(place, base, value)


def _read_table(place: Place, base: type, table: Any) -> Any:
    """An object of a class that comes in kinds: the table names the kind."""
    kinds = KINDS[base]
    if not isinstance(table, dict) or "kind" not in table:
        raise place.error(f"this must be a table with a kind, one of {', '.join(kinds)}.")
    kind = scalar(place, "kind", str, table["kind"])
    if kind not in kinds:
        raise place.error(unknown("kind", kind, kinds))
    return read(place, kinds[kind], {k: v for k, v in table.items() if k != "kind"})


def scalar(place: Place, key: str, wanted: type, value: Any) -> Any:
    """A string, boolean or finite number; a whole number may be written 128.0.

    Args:
        place: the table.
        key: whose value it is.
        wanted: ``str``, ``bool``, ``int`` or ``float``.
        value: what stands there. Raises LLMGymError if it is of another type, or not below 2**63 in size.
    """
    if wanted in (int, float):
        if not isinstance(value, (int, float)):
            raise place.error(f"{key} must be a number, got {shown(value)}.")
        if abs(value) >= 2**63:
            raise place.error(f"{key} must be a number below 2**63 in size, got {shown(value)}.")
        place.make(check_number, key, value, integer=wanted is int)
        return int(value) if wanted is int else value
    if not isinstance(value, wanted):
        what = {str: "a string in quotes", bool: "true or false"}[wanted]
        raise place.error(f"{key} must be {what}, got {shown(value)}.")
    return value
