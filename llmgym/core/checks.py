"""Checks of what users give to constructors and functions; each returns the value in its plain form.

One rule holds everywhere. A number is an int, a float or a NumPy scalar; a whole number may be
written as a float, 128.0, and is an int from then on. A list is a tuple from then on. Anything else is
refused with one LLMGymError that says what was found and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llmgym.core.errors import LLMGymError, check_number, plain_number, shown, unknown

MOST_SEED = 2**32 - 1

MOST_ITEMS = 100_000
"""Most entries of a list in a setting; lists of requests are arrays and have no such limit."""


MOST_REQUESTS = 50_000_000
"""Most requests of a list."""


def keep_number(thing: Any, name: str, label: str = "", **limits: Any) -> None:
    """Check a number of a frozen dataclass, and keep it as a plain int or float.

    Args:
        thing: the dataclass, in its ``__post_init__``.
        name: of the field.
        label: what the message calls it; by default its name.
        limits: those of ``check_number``.
    """
    checked = check_number(label or name, getattr(thing, name), **limits)
    object.__setattr__(thing, name, checked)


def keep_list(thing: Any, name: str, of: Any = None, what: str = "values") -> None:
    """Check a list of a frozen dataclass, and keep it as a tuple.

    Args:
        thing: the dataclass, in its ``__post_init__``.
        name: of the field.
        of: class that every entry must have; None: any.
        what: plural of what the entries are, for the message.
    """
    object.__setattr__(thing, name, as_list(name, getattr(thing, name), of, what))


def as_list(name: str, value: Any, of: Any = None, what: str = "values") -> tuple[Any, ...]:
    """A list, tuple or array as a tuple.

    Args:
        name: what the message calls it.
        value: the list. Text, sets and tables are none.
        of: class that every entry must have; None: any.
        what: plural of what the entries are, for the message.

    Raises:
        LLMGymError: it is no list, has an entry of another class, or more than MOST_ITEMS.
    """
    wrong = isinstance(value, (str, bytes, bytearray, Set, Mapping))
    if wrong or not isinstance(value, Iterable):
        raise LLMGymError(f"{name} must be a list of {what}, got {shown(value)}.")
    try:
        found = tuple(islice(value, MOST_ITEMS + 1))
    except TypeError:  # an array without axes says that it can be iterated
        raise LLMGymError(f"{name} must be a list of {what}, got {shown(value)}.") from None
    if len(found) > MOST_ITEMS:
        raise LLMGymError(f"{name} has more than {MOST_ITEMS} entries.")
    for i, one in enumerate(found):
        if of is not None and not isinstance(one, of):
            raise LLMGymError(f"{name} must be a list of {what}, got {shown(one)} as entry {i}.")
    return found


def check_size(name: str, values: Any) -> None:
    """Refuse a list too long to be made an array of: ``range(10**9)`` would take 8 GB."""
    size = np.size(values) if isinstance(values, np.ndarray) else _length(values)
    if size > MOST_REQUESTS:
        raise LLMGymError(f"{name} has {size:,} entries; at most {MOST_REQUESTS:,}.")


def _length(values: Any) -> int:
    try:
        return len(values)
    except (TypeError, OverflowError):
        return 0


def check_flag(name: str, value: Any) -> bool:
    """True or False; anything else is refused with LLMGymError."""
    if not isinstance(value, (bool, np.bool_)):
        raise LLMGymError(f"{name} must be True or False, got {shown(value)}.")
    return bool(value)


def check_text(name: str, value: Any) -> str:
    """A string; anything else is refused with LLMGymError."""
    if not isinstance(value, str):
        raise LLMGymError(f"{name} must be a string, got {shown(value)}.")
    return value


def check_name(what: str, name: Any, known: Iterable[str]) -> str:
    """One of the known names.

    Args:
        what: the kind of thing that it names, for the message.
        name: as it was given.
        known: the names that there are.

    Raises:
        LLMGymError: it is none of them.
    """
    known = tuple(known)
    if not isinstance(name, str) or name not in known:
        raise unknown(what, name, known)
    return name


def check_seed(seed: Any, high: int = MOST_SEED) -> int:
    """A seed, from 0 to ``high``."""
    return int(check_number("seed", seed, low=0, high=high, integer=True))


def check_settings(name: str, settings: Any) -> dict[str, Any]:
    """Settings by name; None: no settings. Raises LLMGymError where it is something else."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise LLMGymError(
            f"{name} must be a dictionary of settings by name, got {shown(settings)}."
        )
    return dict(settings)


def check_callable(name: str, function: Any) -> Any:
    """A function, or None; anything else is refused with LLMGymError."""
    if function is not None and not callable(function):
        raise LLMGymError(f"{name} must be a function or None, got {shown(function)}.")
    return function


def check_kind(name: str, value: Any, kind: type) -> None:
    """Refuse what is of another class.

    Args:
        name: what the message calls it.
        value: what was given.
        kind: the class.
    """
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        raise LLMGymError(f"{name} must be {article} {kind.__name__}, got {shown(value)}.")


def check_path(name: str, path: Any) -> Path:
    """A path; only text and ``os.PathLike`` are: Python would take a number for an open file."""
    if not isinstance(path, (str, os.PathLike)):
        raise LLMGymError(f"{name} must be a string or a pathlib.Path, got {shown(path)}.")
    if path == "":
        raise LLMGymError(f"{name} is empty; name the current folder as '.'.")
    return Path(path)


def check_numbers(name: str, values: Any, axes: int | None = None) -> np.ndarray:
    """Numbers as an array of float64; NaN and infinities may be among them.

    Args:
        name: what the message calls them.
        values: a number, a list of numbers, or an array of any type of number.
        axes: that it must have; None: any.

    Raises:
        LLMGymError: it is something else, or has other axes.
    """
    check_size(name, values)
    try:
        found = np.asarray(values)
        plain = found.dtype != object or all(plain_number(one) is not None for one in found.flat)
        wrong = found.dtype.kind not in "iufO" or not plain
        numbers = found if wrong else found.astype(float)
    except (TypeError, ValueError, OverflowError):  # rows of several lengths, huge whole numbers
        raise LLMGymError(f"{name} must hold numbers, got {shown(values)}.") from None
    if wrong or (axes is not None and numbers.ndim != axes):
        of = (
            ""
            if axes is None
            else " in a flat list"
            if axes == 1
            else f" in an array of {axes} axes"
        )
        raise LLMGymError(f"{name} must hold numbers{of}, got {shown(values)}.")
    return numbers
