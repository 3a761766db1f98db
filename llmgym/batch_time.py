"""How long an iteration takes: the batch time t_b as a function of the number of tokens b in the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.errors import check_number
from llmgym.pytree import register


class BatchTime:
    """Base of the batch-time models: ``ms(tokens)`` for one or many batch sizes.

    The formula is written once, against the array module ``xp``; the engine evaluates it in JAX and
    the theory in NumPy. A subclass is a frozen dataclass whose fields are its constants.
    """

    kind: ClassVar[str]

    def formula(self, tokens: Any, xp: Any) -> Any:
        """Milliseconds for a batch of ``tokens`` > 0, with array module ``xp``."""
        raise TypeError("a batch-time model must define formula(tokens, xp)")

    def ms(self, tokens: float | np.ndarray) -> np.ndarray:
        """Milliseconds that a batch of ``tokens`` > 0 tokens takes (NumPy, float64)."""
        return np.asarray(self.formula(np.asarray(tokens, float), np), float)

    def ticks(self, tokens: jax.Array, tick_ms: jax.Array) -> jax.Array:
        """The same in whole clock ticks of ``tick_ms`` (JAX, int32, at least 1)."""
        duration = self.formula(tokens.astype(jnp.float32), jnp) / tick_ms
        return jnp.maximum(jnp.round(duration).astype(jnp.int32), 1)

    @property
    def period(self) -> int:
        """Number of tokens after which the curve repeats its shape: the tile, or 1 where there is none."""
        return 1


@register
@dataclass(frozen=True)
class Staircase(BatchTime):
    """t_b = c + a * ceil(b / tile): a fixed cost and one step per tile (arXiv:2504.07347v3, section 3).

    ``c_ms`` and ``a_ms`` in milliseconds, ``tile`` (b_0) in tokens.
    """

    c_ms: float
    a_ms: float
    tile: int
    kind: ClassVar[str] = "staircase"

    def __post_init__(self) -> None:
        check_number("c_ms", self.c_ms, low=0)
        check_number("a_ms", self.a_ms, above=0)
        check_number("tile", self.tile, low=1, integer=True)

    def formula(self, tokens: Any, xp: Any) -> Any:
        # Half a token less: a compiler may divide by multiplying with 1/tile, which at whole tiles
        # comes out a little above the whole number.
        return self.c_ms + self.a_ms * xp.ceil((xp.ceil(tokens) - 0.5) / self.tile)

    @property
    def period(self) -> int:
        return self.tile


@register
@dataclass(frozen=True)
class Hinge(BatchTime):
    """t_b = c + a * max(0, b - b_0): flat up to ``free_tokens``, then linear (arXiv:2504.07347v1)."""

    c_ms: float
    a_ms_per_token: float
    free_tokens: int
    kind: ClassVar[str] = "hinge"

    def __post_init__(self) -> None:
        check_number("c_ms", self.c_ms, above=0)
        check_number("a_ms_per_token", self.a_ms_per_token, low=0)
        check_number("free_tokens", self.free_tokens, low=0, integer=True)

    def formula(self, tokens: Any, xp: Any) -> Any:
        return self.c_ms + self.a_ms_per_token * xp.maximum(tokens - self.free_tokens, 0)


@register
@dataclass(frozen=True)
class Affine(BatchTime):
    """t_b = c + a * b."""

    c_ms: float
    a_ms_per_token: float
    kind: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        check_number("c_ms", self.c_ms, low=0)
        check_number("a_ms_per_token", self.a_ms_per_token, low=0)
        if isinstance(self.c_ms, (int, float)):  # numbers, not traced arrays
            check_number("c_ms + a_ms_per_token", self.c_ms + self.a_ms_per_token, above=0)

    def formula(self, tokens: Any, xp: Any) -> Any:
        return self.c_ms + self.a_ms_per_token * tokens


BATCH_TIMES: dict[str, type[BatchTime]] = {m.kind: m for m in (Staircase, Hinge, Affine)}

CODELLAMA_34B_A100 = Staircase(c_ms=11.28, a_ms=35.47, tile=128)
"""CodeLlama-34B on one A100-80GB, TP 1, R^2 > 0.97 (arXiv:2504.07347v3, section 3)."""

LLAMA_3_70B = Hinge(c_ms=45.5, a_ms_per_token=0.30, free_tokens=64)
"""Llama-3-70B (arXiv:2504.07347v1)."""
