"""A learned token budget: how many tokens a published policy may put into each batch.

The published policy decides who runs, is admitted and is preempted. What is learned is how large a batch
is worth its time now: a prefill chunk delays every decode in its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.agents.choice import Sight
from llmgym.agents.tile_choice import OLD_S, TileChoice, tile_of
from llmgym.baselines import decisions
from llmgym.core.errors import LLMGymError
from llmgym.engine.view import Batch, View
from llmgym.evaluation import policies

URGENT = ("urgent_prompt_tokens", "oldest_urgent_prompt", "urgent_decodes")


@dataclass(frozen=True)
class BudgetChoice(TileChoice):
    """Observation and action of a learned token budget: choice k lets ``base`` fill k + 1 tiles.

    Features beside those of TileChoice, of the requests whose class has the highest priority: log1p of
    their prompt tokens left / tile; log1p of the age in seconds of the oldest of them with prompt left,
    capped at OLD_S; the number of them that decode / tile.

    Args:
        base: name of the policy that forms the batch, with settings behind a colon.
    """

    base: str = "vllm_v1"
    kind: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        policies.resolve(self.base)
        if self.shares != 1:
            raise LLMGymError(
                f"A learned token budget has no shares for prefill, got shares={self.shares}."
            )

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return (*super().features, *URGENT)

    def look(self, view: View, memory: Any = None) -> Sight:
        """Features, mask and prior of a view."""
        sight = self.of_tiles(view)
        features = jnp.concatenate([sight.features, _urgent_features(view)])
        return Sight(features, sight.mask, sight.prior)

    @cached_property
    def _policy(self) -> policies.Policy:
        return policies.resolve(self.base)

    @property
    def remembers(self) -> bool:
        """Whether the base has a memory."""
        return decisions.remembers(self._policy)

    def start(self, view: View) -> Any:
        """The first memory of the base."""
        return decisions.start(self._policy, view)

    def decide(self, view: View, choice: jax.Array, memory: Any) -> tuple[Batch, Any]:
        """The batch that ``base`` forms with the budget of a choice (1, ...), and its memory."""
        keys, view = decisions.keys_of(view), self._within(view, choice)
        return decisions.decide(self._policy, keys, view, memory)

    def batch(self, view: View, choice: jax.Array) -> Batch:
        """As ``decide``, of a base without a memory."""
        keys, view = decisions.keys_of(view), self._within(view, choice)
        return decisions.compose(self._policy, keys, view)

    def _within(self, view: View, choice: jax.Array) -> View:
        return replace(view, token_budget=self.tokens(view, choice[0]))


def _urgent_features(view: View) -> jax.Array:
    """The features named in URGENT (features, ...)."""
    urgent = view.live & (view.urgency == jnp.max(view.classes.priority, axis=0))
    waiting, tile = urgent & (view.prefill > 0), tile_of(view)
    prompts = jnp.sum(jnp.where(waiting, jnp.minimum(view.prefill, 1 << 15), 0), axis=0)
    age = jnp.max(jnp.where(waiting, view.waited, 0), axis=0) * (view.tick_ms / 1000)
    decodes = jnp.sum((urgent & view.decoding).astype(jnp.int32), axis=0)
    columns = [
        jnp.log1p(prompts / tile),
        jnp.log1p(jnp.minimum(age, OLD_S)),
        decodes / tile,
    ]
    return jnp.stack([x.astype(jnp.float32) for x in columns])
