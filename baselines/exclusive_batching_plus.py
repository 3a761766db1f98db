"""EB+: exclusive or mixed batches, whichever carry more (arXiv:2606.00516)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llmgym.baselines.exclusive_batching import ExclusiveBatching, mean_length
from llmgym.core.errors import check_number
from llmgym.engine.fill import choose, fill
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class ExclusiveBatchingPlus(ExclusiveBatching):
    """Mixed batches (decodes, then prefill) if they cost less per token than EB(k*), else EB(k*).

    It mixes if and only if ::

        beta_mixed - beta_exclusive
            < ((alpha_p + alpha_d * zeta * mu_O) / k - alpha_m * (1 + mu_O) / N) / (mu_L + mu_O)

    with zeta = -ln(1 - k/N), mu_L and mu_O the mean prompt and output, beta the time per token and
    alpha the fixed cost of a batch.

    Completed: the source estimates all of these in a sliding window. Here the mean lengths are those
    of the classes that the engine serves; alpha_d = alpha_m is the time of a batch of one token.

    Args:
        mean_prompt: mu_L in tokens; None: from the classes.
        mixing_ms_per_token: beta_mixed - beta_exclusive; None: what the engine's batch time charges
            for attention in mixed batches (``mixed_ms_per_kilotoken``), spread over the tokens of
            a request; 0 where it charges nothing.
    """

    mean_prompt: float | None = None
    mixing_ms_per_token: float | None = None
    name: ClassVar[str] = "exclusive_batching_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_prompt is not None:
            check_number("mean_prompt", self.mean_prompt, above=0)
        if self.mixing_ms_per_token is not None:
            check_number("mixing_ms_per_token", self.mixing_ms_per_token)

    def __call__(self, key: jax.Array, view: View) -> Batch:
        prefills, decodes = self._candidates(view, self._slots(view))
        mixed = view.empty()
        for demand in (jnp.where(decodes, view.decode, 0), jnp.where(prefills, view.prefill, 0)):
            mixed = fill(view, mixed, demand, self.token_budget)
        return choose(self.mixes(view), mixed, super().__call__(key, view))

    def mixes(self, view: View) -> jax.Array:
        """Whether mixed batches cost less, as in the rule."""
        slots = self._slots(view)
        k = jnp.minimum(self.threshold(view, slots), slots)
        prompt = mean_length(view, view.classes.mean_prefill, self.mean_prompt)
        output = self._output(view)
        one = jnp.ones(view.token_budget.shape, jnp.float32)
        alpha = view.batch_time.formula(one, jnp)
        # With k = N every slot is free at the switch: zeta is infinite, and mixing wins.
        zeta = -jnp.log1p(-k / slots)
        exclusive = alpha * (self.alpha_ratio + zeta * output) / k
        gain = (exclusive - alpha * (1 + output) / slots) / (prompt + output)
        return self._mixing(view, prompt, output) < gain

    def _mixing(self, view: View, prompt: jax.Array, output: jax.Array) -> Any:
        """beta_mixed - beta_exclusive in ms per token."""
        if self.mixing_ms_per_token is not None:
            return self.mixing_ms_per_token
        # A request reads prompt + output / 2 tokens in each of its output iterations.
        per_request = output * (prompt + output / 2) / 1000
        extra = getattr(view.batch_time, "mixed_ms_per_kilotoken", 0.0)
        return extra * per_request / (prompt + output)
