"""Batch times of several engines as one model whose constants have an axis of engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register
from llmgym.scenario.batch_time import NO_ATTENTION, Attention, BatchTime


@register
@dataclass(frozen=True)
class MixedTimes(BatchTime):
    """Batch times of several kinds: entry for entry the model number ``which``."""

    models: tuple[BatchTime, ...]
    which: jax.Array

    @property
    def needs_attention(self) -> bool:  # type: ignore[override]
        return any(model.needs_attention for model in self.models)

    def formula(self, tokens: Any, xp: Any, attention: Attention = NO_ATTENTION) -> Any:
        found = self.models[0].formula(tokens, xp, attention)
        for n, model in enumerate(self.models[1:], start=1):
            found = xp.where(self.which == n, model.formula(tokens, xp, attention), found)
        return found


def stacked_times(models: list[BatchTime], lone: bool = False) -> BatchTime:
    """One model whose constants are traced, with an axis of engines unless there is one engine."""
    if lone:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), models[0])
    # Tables of different lengths are of different kinds, too. (JAX compares no types.)
    structures = [(type(m), jax.tree.structure(m)) for m in models]
    kinds = list(dict.fromkeys(structures))
    which = [kinds.index(s) for s in structures]
    stacked = []
    for kind in range(len(kinds)):
        # Engines of another kind get the constants of some engine of this one; they are not used.
        example = models[which.index(kind)]
        mine = [m if own == kind else example for m, own in zip(models, which, strict=True)]
        stacked.append(jax.tree.map(lambda *xs: jnp.asarray(xs, jnp.float32), *mine))
    if len(kinds) == 1:
        return stacked[0]
    return MixedTimes(tuple(stacked), jnp.asarray(which))
