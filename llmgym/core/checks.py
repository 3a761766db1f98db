"""Checks of what users give to constructors and functions; each returns the value in its plain form.

One rule holds everywhere. A number is an int, a float or a NumPy scalar; a whole number may be
written as a float, 128.0, and is an int from then on. A list is a tuple from then on. Anything else is
refused with one LLMGymError that says what was found and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any

import numpy as np

from llmgym.core.errors import LLMGymError, check_number, shown, unknown

MOST_SEED = 2**32 - 1

MOST_ITEMS = 100_000
"""Most entries of a list in a setting; lists of requests are arrays and have no such limit."""


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
