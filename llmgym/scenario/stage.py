"""Stages of a job: LLM calls with their token lengths, delays, loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import as_list, check_flag, check_text, keep_number
from llmgym.core.errors import LLMGymError, plain_number, shown
from llmgym.core.pytree import register
from llmgym.scenario.arrivals import uniform
from llmgym.scenario.lengths import MAX_TOKENS, Empirical, Length, as_length, quantiles
from llmgym.scenario.prefixes import SharedPrefix


@register
@dataclass(frozen=True)
class IndependentLengths:
    """Device form of independently drawn prompt and output lengths."""

    prefill: Any
    decode: Any

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Lengths (int32) of the requests ``index`` from two random words each (axis 0)."""
        prefill = self.prefill.sample(uniform(words[0]))
        decode = self.decode.sample(uniform(words[1]))
        # Two distributions that both reach 0 can draw a request with nothing to do: it gets a token.
        return jnp.where(prefill + decode == 0, 1, prefill), decode


@register
@dataclass(frozen=True)
class JointLengths:
    """Device form of paired lengths: a row of a table drawn uniformly."""

    prefill: jax.Array
    decode: jax.Array

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = self.prefill.shape[0]
        row = jnp.minimum((uniform(words[0]) * rows).astype(jnp.int32), rows - 1)
        return jnp.take(self.prefill, row), jnp.take(self.decode, row)


@register
@dataclass(frozen=True)
class Delays:
    """Device form of a delay: milliseconds in the place of prompt tokens."""

    ms: Any

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = self.ms.sample(uniform(words[0]))
        return drawn, jnp.zeros_like(drawn)


def token_column(name: str, values: Any) -> np.ndarray:
    """Token counts as int32 (requests,). Raises LLMGymError where one is not a count."""
    column = flat_column(name, values)
    try:
        numbers = column.astype(float)
    except (TypeError, ValueError, OverflowError):
        raise LLMGymError(f"{name} must hold numbers, got {shown(values)}.") from None
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers < 0) | (numbers != np.rint(numbers)))
    if bad.size:
        at = bad[0]
        raise LLMGymError(
            f"{name}[{at}] is {values[at]!r}; token counts are whole numbers of 0 or more."
        )
    long = np.flatnonzero(numbers > MAX_TOKENS)
    if long.size:
        raise LLMGymError(f"{name}[{long[0]}] is {values[long[0]]!r}, above {MAX_TOKENS} tokens.")
    return numbers.astype(np.int32)


def flat_column(name: str, values: Any, must: str = "must hold numbers") -> np.ndarray:
    """A flat list of numbers as an array of any type.

    Args:
        name: what the message calls it.
        values: the list.
        must: what the message says of it where it holds text, bools or lists.

    Raises:
        LLMGymError: it is no flat list of numbers.
    """
    try:
        column = np.asarray(values)
    except (TypeError, ValueError):  # rows of several lengths
        raise LLMGymError(f"{name} {must}, got {shown(values)}.") from None
    if column.ndim != 1:
        raise LLMGymError(f"{name} must be a flat list, got an array of shape {column.shape}.")
    plain = column.dtype != object or all(plain_number(one) is not None for one in column)
    if column.dtype.kind not in "iufO" or not plain:
        raise LLMGymError(f"{name} {must}, got {shown(values)}.")
    return column


def check_pairs(prefill: np.ndarray, decode: np.ndarray) -> None:
    """Raise LLMGymError unless every request has both counts, and at least one token."""
    if prefill.size != decode.size:
        raise LLMGymError(
            f"prefill_tokens has {prefill.size} entries and decode_tokens {decode.size}; "
            "they need one each per request."
        )
    if prefill.size == 0:
        raise LLMGymError("A list of requests must not be empty.")
    empty = np.flatnonzero(prefill + decode == 0)
    if empty.size:
        raise LLMGymError(f"Request {empty[0]} has neither prefill nor decode tokens; drop it.")


@dataclass(frozen=True, eq=False)
class Paired:
    """Prompt and output lengths drawn together: a row of the two lists, uniformly at random."""

    prefill_tokens: Sequence[int] | np.ndarray
    decode_tokens: Sequence[int] | np.ndarray

    def __post_init__(self) -> None:
        prefill = token_column("prefill_tokens", self.prefill_tokens)
        decode = token_column("decode_tokens", self.decode_tokens)
        check_pairs(prefill, decode)
        object.__setattr__(self, "prefill_tokens", prefill)
        object.__setattr__(self, "decode_tokens", decode)


MOST_ROUNDS = 1024
"""Most rounds of a loop."""


@dataclass(frozen=True)
class Repeat:
    """A loop: when the stage that has it ends, the job goes back to stage ``to``, for another round.

    Give the ``probability`` of going back (a geometric number of rounds) or ``rounds``, how often the
    stages from ``to`` on run.
    """

    to: str
    probability: float | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        check_text("to", self.to)
        if (self.probability is None) == (self.rounds is None):
            raise LLMGymError(
                "A loop needs either the probability to repeat or a number of rounds."
            )
        if self.probability is not None:
            keep_number(self, "probability", "probability to repeat", low=0)
            if self.probability >= 1:
                raise LLMGymError(
                    f"The loop back to {self.to!r} repeats with probability {self.probability:g} and "
                    "never ends; use a probability below 1, or rounds."
                )
        else:
            keep_number(self, "rounds", low=1, high=MOST_ROUNDS, integer=True)

    @property
    def mean_rounds(self) -> float:
        """How often the body runs on average."""
        if self.rounds is not None:
            return float(self.rounds)
        assert self.probability is not None
        return 1 / (1 - self.probability)


@dataclass(frozen=True)
class Stage:
    """One step of a job: an LLM call with its engine and token lengths, or a delay.

    Give ``prefill`` and ``decode`` for independent lengths, or ``paired`` for joint ones; or only
    ``delay_ms`` for time that passes without an engine (a tool, a person who thinks). A call that
    draws 0 for both lengths gets one prompt token, which the means do not count.

    Args:
        engine: name of the engine, or of the group of replicas, that serves the call.
        name: what other stages of the job call it.
        after: names of the stages that must be done before it starts; None: the stage before it in
            the list; empty: it starts with the job.
        probability: of being taken. The stages with the same ``after`` that have one are a choice:
            exactly one of them runs, and their probabilities add up to 1.
        repeat: a loop that this stage closes.
        inherits: the prompt begins with the context (prompt and output) of the stages before.
        priority: of its requests, for policies that heed it; more is served first.
        shared_prefix: what its prompts begin with, a part of their tokens; engines with prefix caching
            compute it once.
    """

    prefill: Length | None = None
    decode: Length | None = None
    paired: Paired | None = None
    engine: str = "engine"
    name: str = ""
    after: tuple[str, ...] | None = None
    probability: float | None = None
    repeat: Repeat | None = None
    inherits: bool = False
    priority: int = 0
    delay_ms: Length | None = None
    shared_prefix: SharedPrefix | None = None

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "delay_ms"):
            length = getattr(self, name)
            if length is not None:
                object.__setattr__(self, name, as_length(name, length))
        self._check_parts()
        if isinstance(self.after, str):
            object.__setattr__(self, "after", (self.after,))
        elif self.after is not None:
            object.__setattr__(self, "after", as_list("after", self.after, str, "names of stages"))
        if self.probability is not None:
            keep_number(self, "probability", low=0, high=1)
        keep_number(self, "priority", low=-(2**20), high=2**20, integer=True)
        lengths = (self.prefill, self.decode, self.paired)
        if self.delay_ms is not None:
            if any(length is not None for length in lengths):
                raise LLMGymError(
                    f"Stage {self.name!r} has both a delay and token lengths: make it two stages."
                )
            return
        separate = self.prefill is not None and self.decode is not None
        if separate == (self.paired is not None) or (self.prefill is None) != (self.decode is None):
            raise LLMGymError("A stage needs either prefill and decode lengths, or paired ones.")
        if self.mean_prefill + self.mean_decode <= 0:
            raise LLMGymError(
                "A stage with neither prefill nor decode tokens has nothing to serve."
            )

    def _check_parts(self) -> None:
        """Refuse fields of another kind than they must be."""
        for name, kind in (("paired", Paired), ("repeat", Repeat), ("shared_prefix", SharedPrefix)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise LLMGymError(
                    f"{name} of a stage must be a {kind.__name__} or None, got {shown(value)}."
                )
        check_text("The name of a stage", self.name)
        check_text("The engine of a stage", self.engine)
        object.__setattr__(self, "inherits", check_flag("inherits", self.inherits))

    @property
    def is_delay(self) -> bool:
        """Whether it is a delay, which needs no engine."""
        return self.delay_ms is not None

    @property
    def mean_prefill(self) -> float:
        """Mean prompt length m_p in tokens."""
        if self.paired is not None:
            return float(np.mean(self.paired.prefill_tokens))
        return 0.0 if self.prefill is None else self.prefill.mean

    @property
    def mean_decode(self) -> float:
        """Mean output length m_d in tokens."""
        if self.paired is not None:
            return float(np.mean(self.paired.decode_tokens))
        return 0.0 if self.decode is None else self.decode.mean

    @property
    def longest_prompt(self) -> float:
        """Largest possible prompt in tokens (infinite where there is no bound)."""
        if self.paired is not None:
            return float(np.max(self.paired.prefill_tokens))
        return 0.0 if self.prefill is None else self.prefill.maximum

    @property
    def longest_output(self) -> float:
        """Largest possible output in tokens (infinite where there is no bound)."""
        if self.paired is not None:
            return float(np.max(self.paired.decode_tokens))
        return 0.0 if self.decode is None else self.decode.maximum

    @property
    def longest_tokens(self) -> float:
        """Most tokens of prompt and output together (infinite where there is no bound)."""
        if self.paired is not None:
            return float(np.max(np.add(self.paired.prefill_tokens, self.paired.decode_tokens)))
        return self.longest_prompt + self.longest_output

    @property
    def likely_longest_tokens(self) -> float:
        """As ``longest_tokens``, with the last quantile (1 - 2**-15) of lengths that have no bound."""
        if np.isfinite(self.longest_tokens):
            return self.longest_tokens
        assert self.prefill is not None
        assert self.decode is not None
        return float(quantiles(self.prefill)[-1] + quantiles(self.decode)[-1])

    def unshared(self, block_size: int) -> Stage:
        """The stage without its shared prefix: prompts lose what a memory that forgets nothing holds.

        That is whole blocks of ``block_size`` tokens, and leaves at least one token.
        """
        if self.shared_prefix is None:
            return self
        shared = self.shared_prefix.tokens // block_size * block_size

        def cut(prompts: np.ndarray) -> np.ndarray:
            most = np.maximum(prompts - 1, 0) // block_size * block_size
            return np.asarray(prompts - np.minimum(shared, most))

        if self.paired is not None:
            rows = cut(np.asarray(self.paired.prefill_tokens)), self.paired.decode_tokens
            return replace(self, paired=Paired(*rows), shared_prefix=None)
        assert self.prefill is not None
        left = Empirical.from_samples(cut(quantiles(self.prefill)), points=4097)
        return replace(self, prefill=left, shared_prefix=None)

    def with_lengths(self, prefill: Any, decode: Any) -> Stage:
        """The call with other lengths (None: its own); a delay stays as it is.

        Raises LLMGymError where only one of two paired lengths is given.
        """
        if self.is_delay:
            return self
        if self.paired is not None and (prefill is None or decode is None):
            raise LLMGymError(
                "These lengths are paired: override prefill_tokens and decode_tokens together."
            )
        new_prefill = self.prefill if prefill is None else as_length("prefill_tokens", prefill)
        new_decode = self.decode if decode is None else as_length("decode_tokens", decode)
        return replace(self, prefill=new_prefill, decode=new_decode, paired=None)

    def sampler(self) -> IndependentLengths | JointLengths | Delays:
        """Device form of the stage's lengths, or of its delay."""
        if self.delay_ms is not None:
            return Delays(_arrays(self.delay_ms.sampler()))
        if self.paired is not None:
            prefill, decode = self.paired.prefill_tokens, self.paired.decode_tokens
            return JointLengths(jnp.asarray(prefill), jnp.asarray(decode))
        assert self.prefill is not None
        assert self.decode is not None
        return IndependentLengths(_arrays(self.prefill.sampler()), _arrays(self.decode.sampler()))


def _arrays(sampler: Any) -> Any:
    def leaf(x: Any) -> jax.Array:
        return jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32)

    return jax.tree.map(leaf, sampler)
