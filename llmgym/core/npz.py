"""Reading npz files that anyone may have made: checked in size and kind before memory is taken, no pickle."""

from __future__ import annotations

import ast
import math
import mmap
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.core.reading import opened

MOST_BYTES = 2**30
"""Most bytes of a file, and of what it unpacks to."""

MOST_ARRAYS = 10_000
ENTRY = b"PK\x01\x02"
"""What an entry in the list of contents of a zip file begins with."""

FAULTS = (
    OSError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What ``zipfile`` and NumPy raise for files that are damaged, or made to do harm."""


class BadArraysError(LLMGymError):
    """Why a file holds no arrays that llmgym could have written."""


def read_npz(path: str | Path, most: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """The arrays of an npz file, read-only.

    Args:
        path: of the file.
        most: bytes that it may unpack to.

    Raises:
        BadArraysError: it is no such file, or is damaged, encrypted, larger, or holds objects.
        LLMGymError: it cannot be read.
    """
    with opened(path, "checkpoint", most + 2**20) as file:
        try:
            _check_entries(file)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                _check_sizes(entries, most)
                return {e.filename.removesuffix(".npy"): _array(archive, e) for e in entries}
        except LLMGymError:
            raise
        except FAULTS as error:
            why = "it asks for too much memory" if isinstance(error, MemoryError) else error
            raise BadArraysError(f"{str(why) or type(error).__name__}") from None


def _check_entries(file: BinaryIO) -> None:
    """Refuse a file that is no zip file, or whose list of contents alone would fill the memory."""
    if file.read(4) != b"PK\x03\x04":
        raise BadArraysError("it is no npz file")
    count, at = 0, -1
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while (at := data.find(ENTRY, at + 1)) >= 0:
            count += 1
            if count > MOST_ARRAYS:
                raise BadArraysError(f"it lists more than {MOST_ARRAYS:,} arrays")


def _check_sizes(entries: list[zipfile.ZipInfo], most: int) -> None:
    """Refuse what NumPy does not write, two arrays of one name, and more bytes than are allowed."""
    for entry in entries:
        if entry.flag_bits & 1:
            raise BadArraysError(f"{entry.filename[:80]!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadArraysError(f"{entry.filename[:80]!r} is packed in an unknown way")
    if len({entry.filename for entry in entries}) != len(entries):
        raise BadArraysError("two of its arrays have the same name")
    size = sum(entry.file_size for entry in entries)
    if size > most:
        raise BadArraysError(f"it unpacks to {size:,} bytes, and at most {most:,} are read")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array, whose header must promise exactly the bytes that there are."""
    with archive.open(entry) as file:
        shape, by_columns, dtype = _header(file)
        size = math.prod(shape) * dtype.itemsize
        data = file.read(size + 1) if size <= entry.file_size else b""
        if len(data) != size:
            raise BadArraysError(
                f"{entry.filename[:80]!r} promises {size:,} bytes and holds {len(data):,} of them"
            )
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis changes fastest, and type, of the array that begins here."""
    version = np.lib.format.read_magic(file)
    width = {(1, 0): 2, (2, 0): 4, (3, 0): 4}[version]
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise BadArraysError("an array has a header of unusual length")
    header = ast.literal_eval(file.read(length).decode("latin-1" if version < (3, 0) else "utf-8"))
    shape, dtype = header["shape"], np.lib.format.descr_to_dtype(header["descr"])
    whole = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    if not whole or len(shape) > 32 or dtype.kind not in "biufcSU" or not dtype.itemsize:
        raise BadArraysError(f"it holds an array of type {dtype!s:.40} that llmgym does not write")
    return shape, bool(header["fortran_order"]), dtype
