"""How long an iteration takes: the batch time t_b as a function of the number of tokens b in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import as_list, keep_number
from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.pytree import register


@register
@dataclass(frozen=True)
class Attention:
    """What attention reads in a batch: numbers, or arrays of the shape of the batch sizes.

    ``decode_context``: tokens in the KV cache of the requests that decode, summed over them.
    ``prefill_pairs``: query-key pairs of the prefill chunks, the sum of chunk * (prefix + chunk / 2),
    where prefix is the number of the request's tokens that its cache holds before the chunk.
    """

    decode_context: Any = 0.0
    prefill_pairs: Any = 0.0


NO_ATTENTION = Attention()
"""Attention left out: that of a batch whose requests have no context."""


class BatchTime:
    """Base of the batch-time models: ``ms(tokens)`` for one or many batch sizes.

    The formula is written once, against the array module ``xp``; the engine evaluates it in JAX and
    the theory in NumPy. A subclass is a frozen dataclass whose fields are its constants. Only models
    with ``needs_attention`` look at ``attention``.
    """

    kind: ClassVar[str]
    needs_attention: ClassVar[bool] = False

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        """Milliseconds that batches take.

        Args:
            tokens: tokens in each batch, above 0: a number, or floats of any shape.
            xp: array module that computes it, ``numpy`` or ``jax.numpy``.
            attention: what attention reads, numbers or arrays of the shape of ``tokens``.

        Returns:
            Milliseconds in the shape of ``tokens``.
        """
        raise TypeError("a batch-time model must define formula(tokens, xp, attention)")

    def ms(self, tokens: float | np.ndarray, attention: Attention = NO_ATTENTION) -> np.ndarray:
        """Milliseconds that a batch of ``tokens`` > 0 tokens takes (NumPy, float64)."""
        return np.asarray(self.formula(np.asarray(tokens, float), np, attention), float)

    def ticks(
        self, tokens: jax.Array, tick_ms: jax.Array, attention: Attention = NO_ATTENTION
    ) -> jax.Array:
        """The same in whole clock ticks, int32 in the shape of ``tokens``: rounded, at least 1.

        Args:
            tokens: tokens in each batch, above 0, of any shape.
            tick_ms: milliseconds of a tick, (), or in a shape that broadcasts to ``tokens``.
            attention: what attention reads, as in ``formula``.
        """
        duration = self.formula(tokens.astype(jnp.float32), jnp, attention) / tick_ms
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
        keep_number(self, "c_ms", low=0, arrays=True)
        keep_number(self, "a_ms", above=0, arrays=True)
        keep_number(self, "tile", low=1, integer=True, arrays=True)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
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
        keep_number(self, "c_ms", above=0, arrays=True)
        keep_number(self, "a_ms_per_token", low=0, arrays=True)
        keep_number(self, "free_tokens", low=0, integer=True, arrays=True)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        return self.c_ms + self.a_ms_per_token * xp.maximum(tokens - self.free_tokens, 0)


@register
@dataclass(frozen=True)
class Affine(BatchTime):
    """t_b = c + a * b."""

    c_ms: float
    a_ms_per_token: float
    kind: ClassVar[str] = "affine"

    def __post_init__(self) -> None:
        keep_number(self, "c_ms", low=0, arrays=True)
        keep_number(self, "a_ms_per_token", low=0, arrays=True)
        plain = (int, float)
        if isinstance(self.c_ms, plain) and isinstance(self.a_ms_per_token, plain):  # not traced
            check_number("c_ms + a_ms_per_token", self.c_ms + self.a_ms_per_token, above=0)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        return self.c_ms + self.a_ms_per_token * tokens


@register
@dataclass(frozen=True)
class Roofline(BatchTime):
    """t_b = c + a * max(0, b - b_k) + k * KV / 1000 + p * PP / 10^6 [+ k_mix * KV / 1000].

    Up to ``free_tokens`` (b_k) a batch takes the time of reading the weights, above it the time of
    computing. Attention comes on top: KV and PP are its ``decode_context`` and ``prefill_pairs``.
    Attention of decodes costs ``mixed_ms_per_kilotoken`` (k_mix) more where the batch holds prefill
    as well.
    The form is that of the fits in ``batch_time_library``; the name is the roofline model's (Williams,
    Waterman and Patterson, 2009).
    """

    c_ms: float
    a_ms_per_token: float
    free_tokens: int
    kv_ms_per_kilotoken: float = 0.0
    prefill_ms_per_megapair: float = 0.0
    mixed_ms_per_kilotoken: float = 0.0
    kind: ClassVar[str] = "roofline"
    needs_attention: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep_number(self, "c_ms", above=0, arrays=True)
        keep_number(self, "a_ms_per_token", low=0, arrays=True)
        keep_number(self, "free_tokens", low=0, integer=True, arrays=True)
        keep_number(self, "kv_ms_per_kilotoken", low=0, arrays=True)
        keep_number(self, "prefill_ms_per_megapair", low=0, arrays=True)
        keep_number(self, "mixed_ms_per_kilotoken", low=0, arrays=True)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        mixed = xp.where(attention.prefill_pairs > 0, self.mixed_ms_per_kilotoken, 0.0)
        return (
            self.c_ms
            + self.a_ms_per_token * xp.maximum(tokens - self.free_tokens, 0)
            + (self.kv_ms_per_kilotoken + mixed) * (attention.decode_context / 1e3)
            + self.prefill_ms_per_megapair * (attention.prefill_pairs / 1e6)
        )


MOST_POINTS = 64
"""Most points of a table: the engine evaluates each of its pieces for every batch."""


@register
@dataclass(frozen=True)
class MeasuredTable(BatchTime):
    """Straight lines between measured points: ``times_ms[i]`` for ``tokens[i]``, 2 to 64 of them.

    Below the first point it is level. Beyond the last it goes on with the last slope, or level where
    that slope is negative, so that times stay positive.
    """

    tokens: tuple[int, ...]
    times_ms: tuple[float, ...]
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for name, kind in (("tokens", int), ("times_ms", float)):
            values = as_list(name, getattr(self, name), what="numbers")
            limits: Any = {"above": 0, "integer": kind is int, "arrays": True}
            values = tuple(check_number(f"{name}[{i}]", v, **limits) for i, v in enumerate(values))
            if all(isinstance(v, (int, float)) for v in values):  # not when lowered to arrays
                values = tuple(map(kind, values))
            object.__setattr__(self, name, values)
        if len(self.tokens) != len(self.times_ms):
            raise LLMGymError(
                f"tokens has {len(self.tokens)} entries and times_ms has {len(self.times_ms)}; "
                "give one time for each batch size."
            )
        if not 2 <= len(self.tokens) <= MOST_POINTS:
            raise LLMGymError(
                f"A table needs 2 to {MOST_POINTS} points, got {len(self.tokens)}; "
                "leave out those on a straight line between others."
            )
        for i, (here, after) in enumerate(pairwise(self.tokens)):
            if isinstance(here, int) and isinstance(after, int) and after <= here:
                raise LLMGymError(
                    f"tokens[{i + 1}] = {after} does not exceed the one before, {here}; "
                    "sort the points by tokens and give each batch size once."
                )

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        # Each piece adds its rise, as far as the batch has come along it. So constants may be arrays
        # to which the engine has added an axis of engines or environments.
        found = self.times_ms[0] + 0.0 * tokens
        for start, end, low, high in self._pieces():
            found = found + (high - low) * xp.clip((tokens - start) / (end - start), 0, 1)
        beyond = xp.maximum(tokens - end, 0) / (end - start)
        return found + xp.maximum(high - low, 0) * beyond

    def _pieces(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        points = zip(self.tokens, self.times_ms, strict=True)
        return ((x, y, low, high) for (x, low), (y, high) in pairwise(points))


BATCH_TIMES: dict[str, type[BatchTime]] = {
    model.kind: model for model in (Staircase, Hinge, Affine, Roofline, MeasuredTable)
}

CODELLAMA_34B_A100 = Staircase(c_ms=11.28, a_ms=35.47, tile=128)
"""CodeLlama-34B on one A100-80GB, TP 1, R^2 > 0.97 (arXiv:2504.07347v3, section 3)."""

LLAMA_3_70B = Hinge(c_ms=45.5, a_ms_per_token=0.30, free_tokens=64)
"""Llama-3-70B (arXiv:2504.07347v1)."""
