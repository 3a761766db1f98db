"""EB+: exclusive or mixed batches, whichever carry more (arXiv:2606.00516)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from llmgym.baselines.exclusive_batching import ExclusiveBatching, mean_length
from llmgym.baselines.ranking import own_ticks
from llmgym.baselines.windows import Window
from llmgym.core.checks import keep_number
from llmgym.core.pytree import register
from llmgym.engine.fill import choose, fill
from llmgym.engine.memory.paged import secure
from llmgym.engine.view import Batch, View


class Costs(NamedTuple):
    """What the rule compares; arrays (...)."""

    prompt: jax.Array  # mu_L
    output: jax.Array  # mu_O
    alpha_decode: jax.Array  # ms
    alpha_ratio: Any  # alpha_p / alpha_d
    alpha_mixed: jax.Array  # ms
    mixing: Any  # beta_mixed - beta_exclusive, ms per token


@register
@dataclass(frozen=True)
class Observed:
    """What EB+ remembers: windows of its batches, of prompts that began and of outputs that ended."""

    prefill: Window  # (tokens, ms) of exclusive prefill batches
    decode: Window  # of exclusive decode batches
    mixed: Window
    begun: Window  # (requests, their prompt tokens) of the batches in which some began
    ended: Window  # (requests, their output tokens) of the batches in which some ended
    deciders: jax.Array  # requests of the last batch that then decode, or end (...)
    output: jax.Array  # output tokens of all of them (...)


@dataclass(frozen=True)
class ExclusiveBatchingPlus(ExclusiveBatching):
    """Mixed batches (decodes, then prefill) where they cost less per token than EB(k*), else EB(k*).

    It mixes if and only if ::

        beta_mixed - beta_exclusive
            < ((alpha_p + alpha_d * zeta * mu_O) / k - alpha_m * (1 + mu_O) / N) / (mu_L + mu_O)

    with zeta = -ln(1 - k/N), mu_L and mu_O the mean prompt and output, beta the time per token and
    alpha the fixed cost of a batch.

    With ``window`` all of these are the source's estimates in sliding windows, and the policy has a
    memory. mu_L and mu_O are means over the last ``window`` batches in which requests began or ended;
    alpha and beta those of the line of least squares through the last ``window`` batches of each kind.
    Without it the mean lengths are those of the classes that the engine serves, and alpha_d = alpha_m
    is the time of a batch of one token.

    Completed: beta_exclusive = (mu_L * beta_p + mu_O * beta_d) / (mu_L + mu_O). What the windows do not
    tell yet is as without them, for example while all batches of a kind have had the same size.

    Args:
        mean_prompt: mu_L in tokens; None: from the classes, or the window.
        mixing_ms_per_token: beta_mixed - beta_exclusive; None: from the windows, or what the engine's
            batch time charges for attention in mixed batches (``mixed_ms_per_kilotoken``), spread over
            the tokens of a request; 0 where it charges nothing.
        window: batches of each kind that the estimates go by; None: no windows.
    """

    mean_prompt: float | None = None
    mixing_ms_per_token: float | None = None
    window: int | None = None
    name: ClassVar[str] = "exclusive_batching_plus"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mean_prompt is not None:
            keep_number(self, "mean_prompt", above=0)
        if self.mixing_ms_per_token is not None:
            keep_number(self, "mixing_ms_per_token")
        if self.window is not None:
            keep_number(self, "window", low=2, high=4096, integer=True)

    @property
    def start(self) -> Callable[[View], Observed] | None:
        """What gives the first memory, empty windows; None without windows."""
        return None if self.window is None else self._empty

    def _empty(self, view: View) -> Observed:
        assert self.window is not None
        shape = view.free.shape
        empty, none = Window.empty(self.window, shape), jnp.zeros(shape, jnp.int32)
        return Observed(empty, empty, empty, empty, empty, none, none)

    def __call__(self, key: jax.Array, view: View, memory: Any = None) -> Any:
        """The batch; with ``window`` (Batch, Observed)."""
        if self.window is None:
            return self._compose(view, self._usual(view))
        memory = _ended(memory, view)
        batch = self._compose(view, self.estimates(view, memory))
        return batch, _ran(memory, view, batch)

    def _compose(self, view: View, costs: Costs) -> Batch:
        slots = self._slots(view)
        prefills, decodes = self._candidates(view, slots)
        mixed = view.empty()
        for demand in (jnp.where(decodes, view.decode, 0), jnp.where(prefills, view.prefill, 0)):
            mixed = fill(view, mixed, demand, self.token_budget)
        k = self.best_k(slots, costs.alpha_ratio, costs.output)
        return choose(_mixes(slots, k, costs), mixed, self.exclusive(view, slots, k))

    def _usual(self, view: View) -> Costs:
        """The costs without a memory."""
        prompt = mean_length(view, view.classes.mean_prefill, self.mean_prompt)
        output = self._output(view)
        one = jnp.ones(view.token_budget.shape, jnp.float32)
        alpha = view.batch_time.formula(one, jnp)
        mixing = self._mixing(view, prompt, output)
        return Costs(prompt, output, alpha, self.alpha_ratio, alpha, mixing)

    def estimates(self, view: View, memory: Observed) -> Costs:
        """The costs that the windows estimate."""
        usual = self._usual(view)
        prompt, output = usual.prompt, usual.output
        if self.mean_prompt is None:
            prompt = jnp.maximum(memory.begun.ratio(prompt), 1.0)
        if self.mean_output is None:
            output = jnp.maximum(memory.ended.ratio(output), 1.0)
        lines = [w.line() for w in (memory.prefill, memory.decode, memory.mixed)]
        fixed = (usual.alpha_decode * self.alpha_ratio, usual.alpha_decode, usual.alpha_mixed)
        # A line through few batches may fall below 0 at its left end, a cost may not.
        alpha_p, alpha_d, alpha_m = (
            jnp.where(known, jnp.maximum(alpha, 1e-3), otherwise)
            for (alpha, _, known), otherwise in zip(lines, fixed, strict=True)
        )
        mixing: Any = self.mixing_ms_per_token
        if mixing is None:
            (_, beta_p, knows_p), (_, beta_d, knows_d), (_, beta_m, knows_m) = lines
            exclusive = (prompt * beta_p + output * beta_d) / (prompt + output)
            mixing = self._mixing(view, prompt, output)
            mixing = jnp.where(knows_p & knows_d & knows_m, beta_m - exclusive, mixing)
        return Costs(prompt, output, alpha_d, alpha_p / alpha_d, alpha_m, mixing)

    def _mixing(self, view: View, prompt: jax.Array, output: jax.Array) -> Any:
        """beta_mixed - beta_exclusive in ms per token, as the engine's batch time charges it."""
        if self.mixing_ms_per_token is not None:
            return self.mixing_ms_per_token
        # A request reads prompt + output / 2 tokens in each of its output iterations.
        per_request = output * (prompt + output / 2) / 1000
        extra = getattr(view.batch_time, "mixed_ms_per_kilotoken", 0.0)
        return extra * per_request / (prompt + output)


def _mixes(slots: jax.Array, k: jax.Array, costs: Costs) -> jax.Array:
    """Whether mixed batches cost less, as in the rule."""
    # With k = N every slot is free at the switch: zeta is infinite, and mixing wins.
    zeta = -jnp.log1p(-jnp.minimum(k, slots) / slots)
    exclusive = (
        costs.alpha_decode * (costs.alpha_ratio + zeta * costs.output) / jnp.minimum(k, slots)
    )
    mixed = costs.alpha_mixed * (1 + costs.output) / slots
    return costs.mixing < (exclusive - mixed) / (costs.prompt + costs.output)


def _ended(memory: Observed, view: View) -> Observed:
    """The memory with the requests that ended in the last batch: those that are no longer there."""
    still = view.started & view.decoding & (view.unserved == 0)
    count = memory.deciders - jnp.sum(still.astype(jnp.int32), axis=0)
    output = memory.output - jnp.sum(jnp.where(still, view.generated, 0), axis=0)
    some = (memory.deciders > 0) & (count > 0)
    return replace(memory, ended=memory.ended.push(count, output, some))


def _ran(memory: Observed, view: View, batch: Batch) -> Observed:
    """The memory with the batch that runs next."""
    tokens, samples = batch.tokens, False
    if view.memory is not None:
        tokens, _ = secure(view.memory, tokens, batch.preempt)
        samples = view.memory.prompt_samples
    size, ms = jnp.sum(tokens, axis=0), own_ticks(view, batch) * view.tick_ms
    prefill = jnp.any((tokens > 0) & ~view.decoding, axis=0)
    decode = jnp.any((tokens > 0) & view.decoding, axis=0)
    begins = (tokens > 0) & ~view.started & (view.generated == 0)
    begun = jnp.sum(begins.astype(jnp.int32), axis=0)
    prompts = jnp.sum(jnp.where(begins, view.prompt, 0), axis=0)
    decides = (tokens > 0) & (view.decoding | (tokens == view.prefill))
    output = view.generated + (view.decoding | samples)
    return replace(
        memory,
        prefill=memory.prefill.push(size, ms, prefill & ~decode),
        decode=memory.decode.push(size, ms, decode & ~prefill),
        mixed=memory.mixed.push(size, ms, prefill & decode),
        begun=memory.begun.push(begun, prompts, begun > 0),
        deciders=jnp.sum(decides.astype(jnp.int32), axis=0),
        output=jnp.sum(jnp.where(decides, output, 0), axis=0),
    )
