"""Token-length distributions of prompts (prefill) and outputs (decode).

Every distribution maps one uniform number to one length by its inverse distribution function, so a
request's length depends on its index alone and two policies see the very same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from llmgym.core.checks import MOST_ITEMS, as_list, keep_number
from llmgym.core.errors import LLMGymError, check_number, plain_number, shown
from llmgym.core.pytree import register

MAX_TOKENS = 2**20
"""Longest prompt or output of one request: keeps every sum over a request table inside 32 bits."""

QUANTILES = 2**14
"""Number of equally likely values that stand for a distribution of lengths."""


class Length:
    """Base of the length distributions: ``mean``, ``maximum`` and the device form ``sampler()``."""

    kind: ClassVar[str]

    @property
    def mean(self) -> float:
        """Mean number of tokens."""
        raise TypeError("a length distribution must define mean")

    @property
    def maximum(self) -> float:
        """Largest possible number of tokens; infinite where there is no bound."""
        return float("inf")

    def sampler(self) -> Any:
        """The distribution as a pytree of arrays with ``sample(u)``, u uniform in (0, 1)."""
        return self

    def sample(self, u: jax.Array) -> jax.Array:
        """Lengths (int32) at the uniform numbers ``u``."""
        raise TypeError("a length distribution must define sample(u)")

    def draw(self, count: int, seed: int = 0) -> np.ndarray:
        """``count`` independent lengths on the host, for looking at a distribution."""
        u = np.random.default_rng(seed).uniform(2.0**-25, 1 - 2.0**-25, count)
        return np.asarray(self.sampler().sample(jnp.asarray(u, jnp.float32)))


def _whole(x: jax.Array, low: int = 1) -> jax.Array:
    return jnp.clip(x, low, MAX_TOKENS).astype(jnp.int32)


def as_length(name: str, value: Any) -> Length:
    """A length distribution, or a whole number as one. Raises LLMGymError for anything else."""
    if isinstance(value, Length):
        return value
    if plain_number(value) is None:
        given = shown(value)
        raise LLMGymError(f"{name} must be a length distribution or a whole number, got {given}.")
    return Fixed(check_number(name, value, low=0, high=MAX_TOKENS, integer=True))


def quantiles(length: Length) -> np.ndarray:
    """Equally likely values of a length: its quantiles in the middle of QUANTILES equal parts."""
    u = (jnp.arange(QUANTILES) + 0.5) / QUANTILES
    return np.asarray(length.sample(u), float)


@register
@dataclass(frozen=True)
class Fixed(Length):
    """Always ``tokens``; 0 is allowed (a request whose prompt is already processed, or with no output)."""

    tokens: int
    kind: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        keep_number(self, "tokens", low=0, high=MAX_TOKENS, integer=True, arrays=True)

    @property
    def mean(self) -> float:
        return float(self.tokens)

    @property
    def maximum(self) -> float:
        return float(self.tokens)

    def sample(self, u: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(self.tokens, jnp.int32), u.shape)


@register
@dataclass(frozen=True)
class Geometric(Length):
    """Geometric on 1, 2, ... with the given ``mean_tokens`` >= 1 (memoryless, like exponential service)."""

    mean_tokens: float
    kind: ClassVar[str] = "geometric"

    def __post_init__(self) -> None:
        keep_number(self, "mean_tokens", low=1, high=MAX_TOKENS / 32, arrays=True)

    @property
    def mean(self) -> float:
        return float(self.mean_tokens)

    def sample(self, u: jax.Array) -> jax.Array:
        # log1p(-1/mean) is -inf at mean 1, and the quotient is then 0: always one token.
        return _whole(1 + jnp.floor(jnp.log(u) / jnp.log1p(-1.0 / self.mean_tokens)))


@register
@dataclass(frozen=True)
class Uniform(Length):
    """Uniform on the whole numbers ``low`` .. ``high``, both included."""

    low: int
    high: int
    kind: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        keep_number(self, "low", low=0, high=MAX_TOKENS, integer=True, arrays=True)
        keep_number(self, "high", low=0, high=MAX_TOKENS, integer=True, arrays=True)
        if isinstance(self.low, int) and isinstance(self.high, int) and self.low > self.high:
            raise LLMGymError(f"Uniform lengths need low <= high, got {self.low} > {self.high}.")

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def maximum(self) -> float:
        return float(self.high)

    def sample(self, u: jax.Array) -> jax.Array:
        drawn = self.low + jnp.floor(u * (self.high - self.low + 1)).astype(jnp.int32)
        return jnp.minimum(drawn, self.high)


@register
@dataclass(frozen=True)
class LogNormal(Length):
    """Lognormal with the given mean and coefficient of variation before rounding to whole tokens >= 1.

    ``mean`` is the mean after rounding, computed by quadrature.
    """

    mean_tokens: float
    cv: float
    kind: ClassVar[str] = "lognormal"

    def __post_init__(self) -> None:
        keep_number(self, "mean_tokens", low=1, high=MAX_TOKENS / 32, arrays=True)
        keep_number(self, "cv", above=0, high=20, arrays=True)

    def _law(self) -> Any:
        sigma = np.sqrt(np.log1p(self.cv**2))
        return stats.lognorm(s=sigma, scale=self.mean_tokens * np.exp(-(sigma**2) / 2))

    @property
    def mean(self) -> float:
        # E[max(1, round(X))] = 1 + sum over n >= 1 of P(X > n + 1/2), up to MAX_TOKENS. From `top` on
        # the sum is the integral of the tail, E[(X - top)+] - E[(X - MAX_TOKENS)+].
        top = 2**16
        rest = self._excess(top) - self._excess(MAX_TOKENS)
        return float(1 + self._law().sf(np.arange(1, top) + 0.5).sum() + rest)

    def _excess(self, level: float) -> float:
        """E[(X - level)+], which a lognormal law has in closed form."""
        sigma = np.sqrt(np.log1p(self.cv**2))
        depth = (np.log(self.mean_tokens / level) + np.array([1, -1]) * sigma**2 / 2) / sigma
        above, beyond = stats.norm.cdf(depth)
        return float(self.mean_tokens * above - level * beyond)

    def sample(self, u: jax.Array) -> jax.Array:
        sigma = jnp.sqrt(jnp.log1p(jnp.square(self.cv)))
        scale = self.mean_tokens * jnp.exp(-jnp.square(sigma) / 2)
        return _whole(jnp.round(scale * jnp.exp(sigma * jax.scipy.special.ndtri(u))))


@register
@dataclass(frozen=True)
class CumulativeTable:
    """Device form of a distribution on 0, 1, 2, ...: ``cdf[n]`` is the probability of at most n."""

    cdf: jax.Array

    def sample(self, u: jax.Array) -> jax.Array:
        # Binary search, unrolled: a third faster on a CPU than jnp.searchsorted.
        size = 1 << (self.cdf.shape[0] - 1).bit_length()
        table = jnp.pad(self.cdf, (0, size - self.cdf.shape[0]), constant_values=2.0)
        below = jnp.zeros(u.shape, jnp.int32)
        for half in (size >> k for k in range(1, size.bit_length())):
            below = jnp.where(table[below + half - 1] < u, below + half, below)
        return below


@register
@dataclass(frozen=True)
class Poisson(Length):
    """Poisson with parameter ``mean_tokens``; a draw of 0 is lifted to 1, so no request is empty."""

    mean_tokens: float
    kind: ClassVar[str] = "poisson"

    def __post_init__(self) -> None:
        keep_number(self, "mean_tokens", above=0, high=16_384, arrays=True)

    @property
    def mean(self) -> float:
        return float(self.mean_tokens + np.exp(-self.mean_tokens))

    def sampler(self) -> CumulativeTable:
        top = int(self.mean_tokens + 8 * np.sqrt(self.mean_tokens) + 16)
        cdf = stats.poisson(self.mean_tokens).cdf(np.arange(top))
        cdf[0] = 0.0
        return CumulativeTable(jnp.asarray(cdf, jnp.float32))

    def sample(self, u: jax.Array) -> jax.Array:
        return self.sampler().sample(u)


@register
@dataclass(frozen=True)
class QuantileTable:
    """Device form of an empirical distribution: linear between equally spaced quantiles."""

    quantiles: jax.Array

    def sample(self, u: jax.Array) -> jax.Array:
        steps = self.quantiles.shape[0] - 1
        position = u * steps
        below = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, steps - 1)
        low, high = jnp.take(self.quantiles, below), jnp.take(self.quantiles, below + 1)
        return _whole(jnp.round(low + (high - low) * (position - below)), low=0)


@dataclass(frozen=True)
class Empirical(Length):
    """Empirical distribution given by its quantiles at equally spaced levels 0, 1/n, ..., 1.

    Between them it is linear, then rounded to whole tokens.
    """

    quantiles: tuple[float, ...]
    kind: ClassVar[str] = "empirical"

    def __init__(self, quantiles: Sequence[float]) -> None:
        given = as_list("quantiles", quantiles, what="numbers")
        if any(plain_number(one) is None for one in given):
            raise LLMGymError(f"quantiles must be a flat list of numbers, got {shown(quantiles)}.")
        if len(given) < 2:
            raise LLMGymError(
                "Empirical lengths need at least two quantiles (minimum and maximum)."
            )
        values = tuple(
            float(check_number(f"quantiles[{i}]", value, low=0, high=MAX_TOKENS))
            for i, value in enumerate(given)
        )
        object.__setattr__(self, "quantiles", values)
        if np.any(np.diff(values) < 0):
            raise LLMGymError("Empirical quantiles must not decrease; sort them.")

    @classmethod
    def from_samples(cls, samples: Sequence[float] | np.ndarray, points: int = 257) -> Empirical:
        """Quantile summary of observed lengths at ``points`` equally spaced levels."""
        check_number("points", points, low=2, high=MOST_ITEMS, integer=True)
        try:
            observed = np.asarray(samples, float)
        except (TypeError, ValueError, OverflowError):
            observed = np.empty(0)
        if observed.ndim != 1 or observed.size == 0 or not np.isfinite(observed).all():
            raise LLMGymError("Give at least one sample length, as a flat list of finite numbers.")
        return cls(np.quantile(observed, np.linspace(0, 1, points)).tolist())

    @cached_property
    def mean(self) -> float:
        # On a piece from low to high the value is uniform; average its rounding over a fine grid.
        table, grid = np.array(self.quantiles), (np.arange(256) + 0.5) / 256
        return float(np.mean(np.rint(table[:-1, None] + np.diff(table)[:, None] * grid)))

    @property
    def maximum(self) -> float:
        return float(np.rint(self.quantiles[-1]))

    def sampler(self) -> QuantileTable:
        return QuantileTable(jnp.asarray(self.quantiles, jnp.float32))

    def sample(self, u: jax.Array) -> jax.Array:
        return self.sampler().sample(u)


LENGTHS: dict[str, type[Length]] = {
    d.kind: d for d in (Fixed, Geometric, Uniform, LogNormal, Poisson, Empirical)
}
