"""Errors that name the fault and how to fix it."""

from __future__ import annotations

import difflib
import inspect
import numbers
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from llmgym.core.foreign_names import here

P = ParamSpec("P")
T = TypeVar("T")


class LLMGymError(ValueError):
    """Bad input to llmgym. The message names the fault and how to fix it."""


class TableFullError(LLMGymError):
    """Requests found no room in the request table of a simulation."""


class UnservableWarning(UserWarning):
    """The policy can never serve some of the requests (say, a prompt above a whole-prompt budget)."""


def unknown(what: str, name: object, known: Iterable[str]) -> LLMGymError:
    """The error for a name that is not in ``known``, with the nearest match.

    Of a setting that vLLM or another server calls so, it gives the name here.

    Args:
        what: the kind of thing it should name, as the message says it: "policy", "reward".
        name: as it was given.
        known: the names that there are.
    """
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if any(word in what for word in ("setting", "key", "option")) and here(name):
        hint = f" Here that is {here(name)}."
    return LLMGymError(f"Unknown {what} {name!r}.{hint} Known: {', '.join(known)}.")


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
) -> None:
    """Refuse a host number that is not finite or out of range; anything else (a traced array) passes.

    Args:
        name: what the message calls it.
        value: the number.
        low, high: smallest and largest value allowed.
        above: the value must be greater than this.
        integer: whether it must be whole.

    Raises:
        LLMGymError: the number is refused, or the value is text, bool or None.
    """
    if isinstance(value, (str, bytes, bool, type(None))):
        raise LLMGymError(f"{name} must be a number, got {value!r}.")
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, numbers.Real):
        return
    number = float(value)
    if not np.isfinite(number):
        raise LLMGymError(f"{name} must be finite, got {value!r}.")
    if integer and number != int(number):
        raise LLMGymError(f"{name} must be a whole number, got {value!r}.")
    if low is not None and number < low:
        raise LLMGymError(f"{name} must be at least {low:g}, got {value!r}.")
    if above is not None and number <= above:
        raise LLMGymError(f"{name} must be greater than {above:g}, got {value!r}.")
    if high is not None and number > high:
        raise LLMGymError(f"{name} must be at most {high:g}, got {value!r}.")
