"""The info of one environment among many, put together only when somebody looks at it.

A thousand dictionaries of a dozen numbers take longer to make than the environments take to step, and
learners look at hardly any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

Columns = Mapping[str, tuple[Any, Any]]
"""By key: values of all environments, arrays or dictionaries of them; and for which they hold, None: all."""


class LazyInfo(MutableMapping[str, Any]):
    """Row ``row`` of ``columns``, with Python numbers: a mapping that can be changed, as a dict.

    It is no dict: what reads the memory of one directly would find it empty. ``copy()`` is one.
    """

    __slots__ = ("_columns", "_found", "_row")

    def __init__(self, columns: Columns, row: int) -> None:
        self._columns, self._row = columns, row
        self._found: dict[str, Any] | None = None

    def _filled(self) -> dict[str, Any]:
        if self._found is None:
            self._found = row_of(self._columns, self._row)
        return self._found

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; one that no column has is answered without looking further."""
        if self._found is None and key not in self._columns:
            return default
        return self._filled().get(key, default)

    def copy(self) -> dict[str, Any]:
        """A dict."""
        return dict(self._filled())

    def __getitem__(self, key: str) -> Any:
        return self._filled()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._filled()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._filled()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._filled())

    def __len__(self) -> int:
        return len(self._filled())

    def __or__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return self._filled() | dict(other)

    def __ror__(self, other: Mapping[str, Any]) -> dict[str, Any]:
        return dict(other) | self._filled()

    def __repr__(self) -> str:
        return repr(self._filled())

    def __reduce__(self) -> Any:
        return _whole, (self.copy(),)

    def __deepcopy__(self, memo: Any) -> LazyInfo:
        return _whole(self.copy())


def _whole(found: dict[str, Any]) -> LazyInfo:
    """An info that is filled already."""
    made = LazyInfo({}, 0)
    made.update(found)
    return made


def row_of(columns: Columns, row: int) -> dict[str, Any]:
    """The keys that hold for an environment, with their values."""
    found = {}
    for key, (values, mask) in columns.items():
        if mask is None or mask[row]:
            found[key] = _entry(values, row)
    return found


def _entry(values: Any, row: int) -> Any:
    if isinstance(values, dict):
        return row_of(columns_of(values), row)
    one = values[row]
    return one.item() if isinstance(one, np.generic) else one


def columns_of(info: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The info of a vector environment by key, each with its mask ``_key``."""
    masks = {key: info.get(f"_{key}") for key in info if not key.startswith("_")}
    return {
        key: (info[key], None if mask is None or mask.all() else mask)
        for key, mask in masks.items()
    }
