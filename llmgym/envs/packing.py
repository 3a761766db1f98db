"""Pytrees as a few arrays of 32-bit words.

Calling a compiled program costs about a microsecond for each array that goes in and each that comes out, and
a single step takes four. So what an environment keeps and what it gives back travel packed: inside the
program as words, one row for each number, with the environments, if there are several, along the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError

SMALL = 16
"""Most numbers of an environment that a leaf may have to travel packed where there are several
environments. Their large tables are left in place: packing would copy them twice a step."""

_KINDS = ("f", "i", "u", "b")
_WIDE: dict[str, Any] = {"f": np.float32, "i": np.int32, "u": np.uint32, "b": np.uint32}


@dataclass(frozen=True)
class Leaf:
    """Where an array lies among the words.

    Attributes:
        shape: without the axis of the environments.
        dtype: that it has in the pytree.
        row: the first of its rows.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    row: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.row, self.row + prod(self.shape))


class Packing:
    """How a pytree is packed: some leaves as rows of words, the others as they are.

    Args:
        tree: arrays, or their shapes and dtypes, the environments last.
        batched: whether there is an axis of environments.
        most: largest leaf to pack, in numbers of one environment; None: all that can be.

    Attributes:
        words: number of rows.
        apart: numbers of the leaves that are not packed.
        key: equal for packings of equal leaves.
    """

    def __init__(self, tree: Any, batched: bool, most: int | None = None) -> None:
        leaves, structure = jax.tree.flatten(tree)
        self.structure: Any = structure
        self.batched = batched
        self.packed: dict[int, Leaf] = {}
        self.words = 0
        for kind in _KINDS:  # numbers of one kind stand together, so that NumPy reads them at once
            for number, leaf in enumerate(leaves):
                shape = tuple(leaf.shape[:-1] if batched else leaf.shape)
                fits = most is None or prod(shape) <= most
                if getattr(leaf.dtype, "kind", "") == kind and fits and leaf.dtype.itemsize <= 4:
                    self.packed[number] = Leaf(shape, np.dtype(leaf.dtype), self.words)
                    self.words += prod(shape)
        self.key = (self.structure, batched, tuple(self.packed.items()))
        order = {number: place for place, number in enumerate(self.packed)}
        self._order = [order[n] for n in range(len(leaves)) if n in order]
        self.apart = [n for n in range(len(leaves)) if n not in self.packed]

    def pack(self, tree: Any) -> tuple[jax.Array, list[jax.Array]]:
        """The words (rows, ...), and the leaves that are not packed. Inside a compiled program."""
        leaves = self.structure.flatten_up_to(tree)
        rows = [_to_words(jnp.asarray(leaves[n]), self.batched) for n in self.packed]
        none = jnp.zeros((0, *leaves[0].shape[-1:]) if self.batched else (0,), jnp.uint32)
        words = jnp.concatenate(rows) if rows else none
        return words, [leaves[n] for n in self.apart]

    def unpack(self, words: jax.Array, apart: list[jax.Array]) -> Any:
        """The pytree. Inside a compiled program."""
        leaves: dict[int, Any] = dict(zip(self.apart, apart, strict=True))
        for number, leaf in self.packed.items():
            part = words[leaf.rows].reshape((*leaf.shape, *words.shape[1:]))
            leaves[number] = _from_words(part, leaf.dtype)
        return self.structure.unflatten([leaves[n] for n in range(len(leaves))])

    def write(self, tree: Any) -> np.ndarray:
        """The words of a pytree of which all is packed, outside of compiled programs."""
        leaves = self.structure.flatten_up_to(tree)
        words = np.zeros(self.words, np.uint32)
        for number, leaf in self.packed.items():
            found = np.asarray(leaves[number])
            if found.shape != leaf.shape or found.dtype != leaf.dtype:
                raise LLMGymError(
                    f"Parameters must keep their shapes and types: {leaf.dtype} of shape {leaf.shape} "
                    f"became {found.dtype} of shape {found.shape}. Make a new environment."
                )
            wide = _WIDE[leaf.dtype.kind]
            words[leaf.rows] = found.astype(wide).reshape(-1).view(np.uint32)
        return words

    def read_state(self, words: np.ndarray, apart: list[np.ndarray]) -> Any:
        """The pytree in NumPy, as ``unpack`` gives it: the environments stay last."""
        leaves: dict[int, Any] = dict(zip(self.apart, apart, strict=True))
        for number, leaf in self.packed.items():
            part = words[leaf.rows].view(_WIDE[leaf.dtype.kind])
            leaves[number] = part.astype(leaf.dtype).reshape((*leaf.shape, *words.shape[1:]))
        return self.structure.unflatten([leaves[n] for n in range(len(leaves))])

    def read(self, words: np.ndarray) -> Any:
        """The pytree in NumPy: of words (rows,), or (rows, num_envs), that nothing else writes to.

        Arrays are views of the words where their numbers have 32 bits; single numbers become scalars of
        Python. Of several environments every leaf has them first.
        """
        if self.batched:
            typed = {kind: words.view(wide) for kind, wide in _WIDE.items()}
            leaves = [_environments_first(typed[x.dtype.kind], x) for x in self.packed.values()]
        else:
            leaves = self._read_one(words)
        return self.structure.unflatten([leaves[n] for n in self._order])

    def _read_one(self, words: np.ndarray) -> list[Any]:
        floats, ints = words.view(np.float32), words.view(np.int32)
        typed = {"f": floats, "i": ints, "u": words, "b": words}
        numbers = {"f": floats.tolist(), "i": ints.tolist(), "u": words.tolist()}
        leaves: list[Any] = []
        for leaf in self.packed.values():
            kind = leaf.dtype.kind
            if not leaf.shape:
                leaves.append(
                    bool(numbers["u"][leaf.row]) if kind == "b" else numbers[kind][leaf.row]
                )
                continue
            part = typed[kind][leaf.rows]
            part = part if part.dtype == leaf.dtype else part.astype(leaf.dtype)
            leaves.append(part if len(leaf.shape) == 1 else part.reshape(leaf.shape))
        return leaves


def _environments_first(typed: np.ndarray, leaf: Leaf) -> np.ndarray:
    part = typed[leaf.rows] if leaf.shape else typed[leaf.row]
    part = part if part.dtype == leaf.dtype else part.astype(leaf.dtype)
    return np.ascontiguousarray(part.T).reshape(-1, *leaf.shape) if leaf.shape else part


def _to_words(leaf: jax.Array, batched: bool) -> jax.Array:
    """Rows of words of a leaf, to the bit."""
    words = leaf.astype(_WIDE[leaf.dtype.kind])
    if words.dtype != jnp.uint32:
        words = jax.lax.bitcast_convert_type(words, jnp.uint32)
    return words.reshape(-1, leaf.shape[-1]) if batched else words.reshape(-1)


def _from_words(words: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    if dtype.kind in "fi":
        words = jax.lax.bitcast_convert_type(words, _WIDE[dtype.kind])
    return words.astype(dtype)
