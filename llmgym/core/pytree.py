"""Frozen dataclasses that JAX carries through jit, scan and vmap."""

from __future__ import annotations

from typing import TypeVar

import jax

T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Make a frozen dataclass a pytree; fields with metadata ``static`` are part of its structure."""
    return jax.tree_util.register_dataclass(cls)
