"""Errors that name the fault and how to fix it."""

from __future__ import annotations

import difflib
import inspect
import math
import reprlib
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from llmgym.core.foreign_names import here

P = ParamSpec("P")
T = TypeVar("T")

MOST_CHARACTERS = 500
"""Longest message of an error."""

LARGEST = 2**63
"""Numbers must be below it in size: no setting is, and a whole number may have any number of digits."""


class LLMGymError(ValueError):
    """Bad input to llmgym. The message names the fault and how to fix it, in one line.

    It has at most MOST_CHARACTERS characters, however long what was given is: of a longer one the
    beginning, which says what is wrong, and the end, which says what to do, are kept.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(in_short(" ".join(str(message).splitlines())))


class TableFullError(LLMGymError):
    """Requests found no room in the request table of a simulation."""


class UnservableWarning(UserWarning):
    """The policy can never serve some of the requests (say, a prompt above a whole-prompt budget)."""


class TableFullWarning(UserWarning):
    """Requests found no room in the request table of an environment, at a load that can be served."""


def in_short(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text, cut in the middle where it has more than ``most`` characters."""
    if len(text) <= most:
        return text
    head = (most - 5) * 2 // 3
    return f"{text[:head]} ... {text[len(text) - (most - 5 - head) :]}"


class _Short(reprlib.Repr):
    """A repr that looks at the beginning of long values only, and of whole numbers at their size."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**40:
            return repr(x)
        return f"a whole number of about {int(x.bit_length() * math.log10(2)) + 1} digits"


def shown(value: object) -> str:
    """A value as messages show it: its repr, in short, whatever the value is."""
    try:
        return in_short(_Short().repr(value), 120)
    except Exception:  # a repr may fail like any other function of a stranger
        return f"a {type(value).__name__}"


def unknown(what: str, name: object, known: Iterable[str]) -> LLMGymError:
    """The error for a name that is not in ``known``, with the nearest match.

    Of a setting that vLLM or another server calls so, it gives the name here.

    Args:
        what: the kind of thing it should name, as the message says it: "policy", "reward".
        name: as it was given.
        known: the names that there are.
    """
    known = sorted(known)
    given = name[:100] if isinstance(name, str) else shown(name)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if any(word in what for word in ("setting", "key", "option")) and here(given):
        hint = f" Here that is {here(given)}."
    listed = in_short(", ".join(known), 320)
    return LLMGymError(f"Unknown {what} {shown(name)}.{hint} Known: {listed}.")


def plain_number(value: Any) -> int | float | None:
    """A host number as int or float; None for all else.

    That is an int, a float, a NumPy scalar, or an array without axes; not a bool, text, Fraction or
    Decimal.
    """
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value)
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        try:
            held = value.item()
        except Exception:  # traced
            return None
        return plain_number(held) if type(held) in (int, float) else None
    return None


def answers_other_names(function: Callable[P, T]) -> Callable[P, T]:
    """A function, or a class, that answers an argument named as in vLLM or SGLang with the name here.

    Without it Python would only say that there is no such argument.
    """
    known = inspect.signature(function).parameters
    made: Any = vars(function)["__init__"] if isinstance(function, type) else function

    @wraps(made)
    def checked(*values: Any, **named: Any) -> Any:
        for name in named:
            if name not in known and here(name):
                raise LLMGymError(
                    f"{function.__name__} has no argument {name!r}. Here that is {here(name)}."
                )
        return made(*values, **named)

    if not isinstance(function, type):
        return checked
    function.__init__ = checked  # type: ignore[misc]
    return function


def check_number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    integer: bool = False,
    arrays: bool = False,
) -> Any:
    """The value as a plain int or float; refused unless it is a finite number in range.

    A number is what ``plain_number`` takes for one. Whole numbers may be written as floats, 128.0.

    Args:
        name: what the message calls it.
        value: the number.
        low, high: smallest and largest value allowed.
        above: the value must be greater than this.
        integer: whether it must be whole.
        arrays: whether arrays, traced ones above all, pass as they are: for what JAX carries.

    Raises:
        LLMGymError: the number is refused, or it is none.
    """
    if arrays and _may_be_traced(value):
        return value
    number = plain_number(value)
    if number is None:
        raise LLMGymError(f"{name} must be a number, got {shown(value)}.")
    if isinstance(number, float) and not math.isfinite(number):
        raise LLMGymError(f"{name} must be finite, got {shown(value)}.")
    if integer and number != int(number):
        raise LLMGymError(f"{name} must be a whole number, got {shown(value)}.")
    if low is not None and number < low:
        raise LLMGymError(f"{name} must be at least {_limit(low)}, got {shown(value)}.")
    if above is not None and number <= above:
        raise LLMGymError(f"{name} must be greater than {_limit(above)}, got {shown(value)}.")
    if high is not None and number > high:
        raise LLMGymError(f"{name} must be at most {_limit(high)}, got {shown(value)}.")
    if abs(number) >= LARGEST:
        raise LLMGymError(f"{name} must be below 2**63 in size, got {shown(value)}.")
    return int(number) if integer else number


def _limit(number: float) -> str:
    """A limit as it may be typed: all digits of a whole number."""
    return str(int(number)) if number == int(number) and abs(number) < 1e16 else f"{number:g}"


def _may_be_traced(value: object) -> bool:
    """Whether JAX may have put it there: an array, or one of its placeholders (plain ``object()``)."""
    if isinstance(value, np.generic):
        return False
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return type(value) is object or (hasattr(value, "dtype") and kind not in tuple("USOMmc"))
