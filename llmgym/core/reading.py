"""Reading files that anyone may have made: ordinary files alone, and no more of them than is asked for.

Every reader of llmgym opens its files here. What is no ordinary file (a folder, a device, a pipe; also
behind a link) is refused before it is opened, and what is too large before any memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

from llmgym.core.checks import check_path
from llmgym.core.errors import LLMGymError, shown

MOST_TEXT = 2**24
"""Most bytes of a text that is read whole, such as a scenario."""

MOST_JSON = 2**26
"""Most bytes of a file of JSON; as Python objects it may take some twenty times as much."""

MOST_DEPTH = 64
"""Most levels of a JSON file."""

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def opened(
    path: str | os.PathLike[str], what: str, most: int | None, hint: str = ""
) -> Iterator[BufferedReader]:
    """An ordinary file, open to read its bytes; LLMGymError for whatever else the path leads to.

    Args:
        path: of the file.
        what: the kind of thing it should hold, for the error: "scenario".
        most: bytes that it may have; None: any number, as its reader stops by itself.
        hint: a sentence that says what to give instead.
    """
    check_path(f"The path of the {what}", path)
    hint = f" {hint}" if hint else ""
    try:
        if (mode := stat.S_IFMT(os.stat(path).st_mode)) != stat.S_IFREG:
            kind = KINDS.get(mode, "something else")
            raise LLMGymError(f"Cannot read {what} {path}: it is {kind}, not a file.{hint}")
        # Without waiting: a pipe may have taken its place meanwhile.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if most is not None and size > most:
                raise LLMGymError(
                    f"Cannot read {what} {path}: it has {size:,} bytes, and at most {most:,} are read.{hint}"
                )
            yield file
    except LLMGymError:
        raise
    except UnicodeDecodeError:
        raise LLMGymError(f"Cannot read {what} {path}: it is not UTF-8 text.{hint}") from None
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LLMGymError(f"Cannot read {what} {path}: {reason}.{hint}") from None


def read_bytes(
    path: str | os.PathLike[str], what: str, most: int = MOST_TEXT, hint: str = ""
) -> bytes:
    """All of an ordinary file.

    Args:
        path, what, most, hint: see ``opened``.
    """
    with opened(path, what, most, hint) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(
    path: str | os.PathLike[str], what: str, most: int = MOST_TEXT, hint: str = ""
) -> str:
    """All of a file of UTF-8 text, its lines ended by line feeds.

    Args:
        path, what, most, hint: see ``opened``.
    """
    data = read_bytes(path, what, most, hint)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise LLMGymError(
            f"Cannot read {what} {path}: it is not UTF-8 text. {hint}".rstrip()
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], what: str, hint: str = "") -> dict[str, Any]:
    """The object that a file of JSON holds. Raises LLMGymError for any other file.

    Args:
        path: of the file.
        what: what it should be, for the error: "the configuration of a run".
        hint: a sentence that says what to do where it is not.
    """
    try:
        return parse_json(read_bytes(path, "file", MOST_JSON))
    except BadJSONError as error:
        raise LLMGymError(
            f"{path} is damaged, or not {what}: {error}.{f' {hint}' if hint else ''}"
        ) from None


class BadJSONError(ValueError):
    """Why a text is no JSON object that llmgym wrote."""


def parse_json(data: bytes | str) -> dict[str, Any]:
    """The object that a JSON text holds. Raises BadJSONError for anything else, NaN among it."""
    try:
        found = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise BadJSONError(str(why)) from None
    if not isinstance(found, dict):
        raise BadJSONError(f"it holds {shown(found)}, not an object")
    level: list[Any] = [found]
    for _ in range(MOST_DEPTH):
        inner = (x.values() if isinstance(x, dict) else x for x in level)
        level = [x for values in inner for x in values if isinstance(x, (dict, list))]
        if not level:
            return found
    raise BadJSONError("nested too deeply")


@contextmanager
def as_written(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Where tables and pictures are made from a result folder: its files may hold anything.

    What goes wrong inside is said in one LLMGymError; the first error stays its cause.
    """
    try:
        yield
    except LLMGymError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise LLMGymError(
            f"The files in {folder} do not hold what this command writes there "
            f"({type(error).__name__}: {error!s:.100}). Delete the damaged ones and run it again."
        ) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def digest(path: str | os.PathLike[str], what: str, most: int) -> str:
    """SHA-256 of a file in hexadecimal digits.

    Args:
        path, what, most: see ``opened``.
    """
    with opened(path, what, most) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
