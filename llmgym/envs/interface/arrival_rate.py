"""An estimate of the arrivals per second, made from what the decisions of one engine show."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmgym.core.arrays import rounded
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.engine.view import View

MEMORY_S = 60.0
"""Time constant of the estimate."""


@register
@dataclass(frozen=True)
class ArrivalRate:
    """The exponentially weighted rate of the last minute or so; it starts at 0.

    It is corrected for its short memory at the start. ``arrived`` and ``clock`` are those of the last
    decision; a network counts jobs.
    """

    weighted: jax.Array
    weight: jax.Array
    arrived: jax.Array
    clock: Wide

    @classmethod
    def start(cls, view: View) -> ArrivalRate:
        """Before anything came; ``view`` shows the first state."""
        arrived, clock = _seen(view)
        none = jnp.zeros(arrived.shape, jnp.float32)
        return cls(none, none, arrived, clock)

    def at(self, view: View) -> ArrivalRate:
        """The estimate with what came since the last decision."""
        arrived, clock = _seen(view)
        seconds = self.clock.until(clock).astype(jnp.float32) * view.tick_ms / 1000
        never = arrived >> 31  # 0, which the compiler does not know
        fade = jnp.exp(-seconds / MEMORY_S)
        return ArrivalRate(
            weighted=rounded(fade * self.weighted, never) + (arrived - self.arrived),
            weight=rounded(fade * (self.weight - MEMORY_S), never) + MEMORY_S,
            arrived=arrived,
            clock=clock,
        )

    @property
    def per_s(self) -> jax.Array:
        """Arrivals per second."""
        return self.weighted / jnp.maximum(self.weight, 1e-6)


def _seen(view: View) -> tuple[jax.Array, Wide]:
    assert view.arrived is not None
    assert view.clock is not None
    return view.arrived, view.clock
