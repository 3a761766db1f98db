"""Calling functions of a user, such as policies and rewards: what goes wrong in them names their line."""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from llmgym.core.errors import LLMGymError, in_short

PACKAGE = str(Path(__file__).parents[1]) + os.sep

TRACED = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where a function asks for the value of an array that it only traces."""


def ask(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function answers; an exception in it becomes an LLMGymError with its line.

    Functions of llmgym itself are called as they are.

    Args:
        what: what the message calls the function, "Policy 'mine'".
        function: it, or an object that can be called.
        arguments: for it.
    """
    try:
        return function(*arguments)
    except LLMGymError:
        raise
    except Exception as error:
        file = source_of(function)[0]
        if file.startswith(PACKAGE):
            raise
        raise LLMGymError(f"{what} fails{_where(error, file)}: {_reason(error)}") from error


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn in the name of the user's line that led here, however many functions of llmgym lie between."""
    frame, level = sys._getframe(), 1
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def line_of(function: Any) -> str:
    """Where a user's function stands, as " (file.py, line 3)"; nothing where that is not known."""
    file, line = source_of(function)
    return f" ({Path(file).name}, line {line})" if file else ""


def source_of(function: Any) -> tuple[str, int]:
    """The file and the first line of a function, or of the call of an object; ("", 0) if unknown."""
    while isinstance(function, functools.partial) or hasattr(function, "__wrapped__"):
        partial = isinstance(function, functools.partial)
        function = function.func if partial else function.__wrapped__
    if not inspect.isroutine(function):
        function = getattr(type(function), "__call__", function)  # noqa: B004
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else ("", 0)


def _where(error: Exception, file: str) -> str:
    """The last line of the user's file on the way to the error."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if not own:
        return f" in {Path(file).name}" if file else ""
    return f" in {Path(file).name}, line {own[-1].lineno} ({in_short(own[-1].line or '', 80)})"


def _reason(error: Exception) -> str:
    if isinstance(error, TRACED):
        return (
            "it asks for the value of an array that is only traced, as if, while, int(), float() and "
            "NumPy do. Use jnp.where or jax.lax.cond in place of if, and jnp in place of np."
        )
    first = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {in_short(first, 200)}"
