"""What arrives: job types with their arrival process and token lengths, or an explicit list of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.arrivals import FAR, NEVER, PERIOD, Arrivals, GapSampler, ListedGaps, uniform
from llmgym.errors import LLMGymError, check_number
from llmgym.lengths import MAX_TOKENS, Fixed, Length
from llmgym.prefixes import Listed, SharedPrefix, Variants, check_ids, no_prefix
from llmgym.pytree import register
from llmgym.tenants import Tenant, check_service_level, check_tenants, tenant_column
from llmgym.workflow import Workflow

LATEST = 2.0**53
"""Ticks before which every arrival of a replay must come: float64 holds whole numbers up to it."""


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
class ListedLengths:
    """Device form of a replay: request n has the lengths in row n."""

    prefill: jax.Array
    decode: jax.Array
    request_class: jax.Array | None = None

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = jnp.minimum(index, self.prefill.shape[0] - 1)
        return jnp.take(self.prefill, row), jnp.take(self.decode, row)

    def classes(self, index: jax.Array) -> jax.Array:
        """The class of each request."""
        assert self.request_class is not None
        return jnp.take(self.request_class, jnp.minimum(index, self.prefill.shape[0] - 1))


@register
@dataclass(frozen=True)
class Delays:
    """Device form of a delay: milliseconds in the place of prompt tokens."""

    ms: Any

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = self.ms.sample(uniform(words[0]))
        return drawn, jnp.zeros_like(drawn)


def _token_column(name: str, values: Any) -> np.ndarray:
    column = np.asarray(values)
    if column.ndim != 1:
        raise LLMGymError(f"{name} must be a flat list, got an array of shape {column.shape}.")
    try:
        numbers = column.astype(float)
    except (TypeError, ValueError):
        raise LLMGymError(f"{name} must hold numbers, got {column.dtype}.") from None
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


def _check_pairs(prefill: np.ndarray, decode: np.ndarray) -> None:
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
        prefill = _token_column("prefill_tokens", self.prefill_tokens)
        decode = _token_column("decode_tokens", self.decode_tokens)
        _check_pairs(prefill, decode)
        object.__setattr__(self, "prefill_tokens", prefill)
        object.__setattr__(self, "decode_tokens", decode)


@dataclass(frozen=True)
class Repeat:
    """A loop: when the stage that has it ends, the job goes back to stage ``to``, for another round.

    Give ``probability`` of going back (geometric number of rounds) or ``rounds``, how often all is run.
    """

    to: str
    probability: float | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        if (self.probability is None) == (self.rounds is None):
            raise LLMGymError(
                "A loop needs either the probability to repeat or a number of rounds."
            )
        if self.probability is not None:
            check_number("probability to repeat", self.probability, low=0)
            if self.probability >= 1:
                raise LLMGymError(
                    f"The loop back to {self.to!r} repeats with probability {self.probability:g} and "
                    "never ends; use a probability below 1, or rounds."
                )
        else:
            check_number("rounds", self.rounds, low=1, integer=True)

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
    draws 0 for both lengths gets one prompt token, which the means leave out.

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
            if isinstance(length, (int, np.integer)) and not isinstance(length, bool):
                object.__setattr__(self, name, Fixed(int(length)))
            elif length is not None and not isinstance(length, Length):
                raise LLMGymError(
                    f"{name} must be a length distribution or a whole number, got {length!r}."
                )
        if isinstance(self.after, str):
            object.__setattr__(self, "after", (self.after,))
        elif self.after is not None:
            object.__setattr__(self, "after", tuple(self.after))
        if self.probability is not None:
            check_number("probability", self.probability, low=0, high=1)
        check_number("priority", self.priority, low=-(2**20), high=2**20, integer=True)
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


@dataclass(frozen=True)
class JobType:
    """A stream of jobs that arrive alike and ask for the same calls.

    ``ttft_ms`` and ``tpot_ms`` are service-level targets (milliseconds; None: no target): time to first
    token, and mean time per output token after the first. ``weight`` is what a request that meets them
    is worth.
    """

    arrivals: Arrivals
    stages: tuple[Stage, ...]
    name: str = "default"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not isinstance(self.arrivals, Arrivals):
            raise LLMGymError(f"arrivals must be an arrival process, got {self.arrivals!r}.")
        if not self.stages:
            raise LLMGymError(
                f"Job type {self.name!r} has no stage: give it at least one LLM call."
            )
        named = (
            replace(stage, name=stage.name or f"call-{n + 1}")
            for n, stage in enumerate(self.stages)
        )
        object.__setattr__(self, "stages", tuple(named))
        check_service_level(self)
        Workflow.of(self)  # refuses stages that do not make sense together

    @property
    def workflow(self) -> Workflow:
        """How the stages follow one another."""
        return Workflow.of(self)

    @property
    def rate_per_s(self) -> float:
        """Mean arrivals per second, lambda."""
        return self.arrivals.rate_per_s

    def at_rate(self, rate_per_s: float) -> JobType:
        """The same job type arriving at another rate."""
        return replace(self, arrivals=self.arrivals.at_rate(rate_per_s))


def Workload(  # noqa: N802 - reads as a constructor where a scenario is written
    arrivals: Arrivals,
    prefill: Length | int | None = None,
    decode: Length | int | None = None,
    paired: Paired | None = None,
    **job_type: Any,
) -> JobType:
    """A job type of one LLM call: the workload of a single engine."""
    stage = Stage(prefill=prefill, decode=decode, paired=paired)  # type: ignore[arg-type]
    return JobType(arrivals, (stage,), **job_type)


@dataclass(frozen=True, eq=False)
class Replay:
    """An explicit list of requests: arrival times in seconds (not decreasing) and token counts.

    ``ttft_ms``, ``tpot_ms`` and ``weight`` are as those of a job type. Requests may form several classes:

    - ``priority``, one whole number for each request, is for policies that heed it; more is served
      first. The requests of each priority are a class.
    - ``tenant``, one name for each request. The requests of each tenant are a class; ``tenants`` lists
      their targets, weights and priorities (none listed: all have the replay's own).

    ``prefix_ids`` lists for each request what its prompt begins with, a number for every stretch of
    ``prefix_tokens`` tokens (the last may be shorter): requests whose lists begin alike share those
    tokens, which engines with prefix caching compute once. A number stands for its stretch and all
    before it.
    """

    arrival_s: Sequence[float] | np.ndarray
    prefill_tokens: Sequence[int] | np.ndarray
    decode_tokens: Sequence[int] | np.ndarray
    name: str = "replay"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    priority: Sequence[int] | np.ndarray | None = None
    weight: float = 1.0
    tenant: Sequence[str] | np.ndarray | None = None
    tenants: tuple[Tenant, ...] = ()
    prefix_ids: Sequence[Sequence[int]] | np.ndarray | None = None
    prefix_tokens: int = 512
    kind: ClassVar[str] = "replay"

    def __post_init__(self) -> None:
        try:
            arrival = np.asarray(self.arrival_s, float)
        except (TypeError, ValueError):
            raise LLMGymError("arrival_s must be a flat list of seconds.") from None
        if arrival.ndim != 1:
            raise LLMGymError(f"arrival_s must be a flat list, got shape {arrival.shape}.")
        prefill = _token_column("prefill_tokens", self.prefill_tokens)
        decode = _token_column("decode_tokens", self.decode_tokens)
        if arrival.size != prefill.size:
            raise LLMGymError(
                f"arrival_s has {arrival.size} entries and prefill_tokens {prefill.size}."
            )
        _check_pairs(prefill, decode)
        bad = np.flatnonzero(~np.isfinite(arrival) | (arrival < 0))
        if bad.size:
            raise LLMGymError(
                f"arrival_s[{bad[0]}] is {arrival[bad[0]]!r}; times are seconds from the start, 0 or more."
            )
        unsorted = np.flatnonzero(np.diff(arrival) < 0)
        if unsorted.size:
            at = unsorted[0] + 1
            raise LLMGymError(
                f"arrival_s[{at}] = {arrival[at]:g} is before arrival_s[{at - 1}] = {arrival[at - 1]:g}; "
                "sort the requests by arrival time."
            )
        for name, column in (
            ("arrival_s", arrival),
            ("prefill_tokens", prefill),
            ("decode_tokens", decode),
        ):
            object.__setattr__(self, name, column)
        self._check_priority()
        if self.prefix_ids is not None:
            table = check_ids(self.prefix_ids, self.prefix_tokens, arrival.size)
            object.__setattr__(self, "prefix_ids", table)
        check_service_level(self)
        self._check_tenants()

    def _check_priority(self) -> None:
        if self.priority is None:
            return
        column = np.asarray(self.priority)
        if column.shape != np.shape(self.arrival_s) or not np.issubdtype(column.dtype, np.integer):
            raise LLMGymError("priority must be a list of whole numbers, one for each request.")
        if np.abs(column).max() > 2**20 or len(np.unique(column)) > 64:
            raise LLMGymError(
                "A replay has at most 64 different priorities between -2**20 and 2**20."
            )
        object.__setattr__(self, "priority", column)

    def _check_tenants(self) -> None:
        object.__setattr__(self, "tenants", check_tenants(self.tenants))
        if self.tenant is None:
            if self.tenants:
                raise LLMGymError(
                    "Tenants are listed, but tenant does not say which one each request is of."
                )
            return
        column = tenant_column(self.tenant, len(self), self.tenants)
        if self.priority is not None:
            raise LLMGymError(
                "priority and tenant both divide the requests into classes, which then overlap: "
                "give the priority of each tenant in tenants."
            )
        own = (self.ttft_ms, self.tpot_ms, self.weight) != (None, None, Replay.weight)
        if self.tenants and own:
            raise LLMGymError(
                "Targets or weights are given twice, by the replay and by its tenants: "
                "give them in tenants alone."
            )
        object.__setattr__(self, "tenant", column)

    @property
    def priorities(self) -> tuple[int, ...]:
        """The different priorities, the most urgent first."""
        return (0,) if self.priority is None else tuple(np.unique(self.priority)[::-1].tolist())

    @property
    def classes(self) -> tuple[Tenant, ...]:
        """The request classes: the tenants, or else one for each priority, the most urgent first."""
        if self.tenants:
            return self.tenants
        levels: Any = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms, "weight": self.weight}
        if self.tenant is not None:
            return tuple(Tenant(name, **levels) for name in np.unique(self.tenant).tolist())
        several = self.priorities
        names = [f"{self.name}, priority {p}" for p in several] if len(several) > 1 else [self.name]
        return tuple(
            Tenant(name, **levels, priority=p) for name, p in zip(names, several, strict=True)
        )

    @property
    def request_class(self) -> np.ndarray:
        """The class of each request: its number in ``classes``, int32."""
        if self.tenant is not None:
            number = {one.name: k for k, one in enumerate(self.classes)}
            names, which = np.unique(self.tenant, return_inverse=True)
            return np.array([number[name] for name in names.tolist()], np.int32)[which]
        if self.priority is None:
            return np.zeros(len(self), np.int32)
        order = np.searchsorted(-np.array(self.priorities), -np.asarray(self.priority))
        return order.astype(np.int32)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def rate_per_s(self) -> float:
        """Requests per second over the span of the list; infinite where they all come at once."""
        span = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span if span > 0 else float("inf")

    def at_rate(self, rate_per_s: float) -> Replay:
        """The same requests with time stretched to a mean of ``rate_per_s``."""
        check_number("rate_per_s", rate_per_s, above=0)
        if not np.isfinite(self.rate_per_s):
            raise LLMGymError("All requests arrive at one instant: there is no rate to change.")
        scaled = np.asarray(self.arrival_s) * (self.rate_per_s / rate_per_s)
        return replace(self, arrival_s=scaled)

    def first(self, count: int) -> Replay:
        """The first ``count`` requests, or all of them if there are fewer."""
        return self._part(slice(count))

    def window(self, start_s: float, end_s: float) -> Replay:
        """The requests that arrive in [start_s, end_s), with times counted from ``start_s``.

        Raises:
            LLMGymError: bounds that are no numbers or out of order, or a window without arrivals.
        """
        check_number("start_s", start_s, low=0)
        check_number("end_s", end_s, above=start_s)
        arrival = np.asarray(self.arrival_s)
        inside = slice(*np.searchsorted(arrival, [start_s, end_s]))
        if not arrival[inside].size:
            raise LLMGymError(
                f"No request arrives between {start_s:g} and {end_s:g} s; the replay runs from "
                f"{arrival[0]:g} to {arrival[-1]:g} s."
            )
        return replace(self._part(inside), arrival_s=arrival[inside] - start_s)

    def _part(self, rows: slice) -> Replay:
        columns = ["arrival_s", "prefill_tokens", "decode_tokens"]
        names = ("priority", "tenant", "prefix_ids")
        columns += [name for name in names if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})

    def prefix_sampler(self, block_size: int) -> Listed | Variants:
        """Device form of what the prompts begin with, for memory in blocks of ``block_size``.

        Raises LLMGymError where a stretch is no whole number of blocks.
        """
        if self.prefix_ids is None:
            return no_prefix()
        if self.prefix_tokens % block_size:
            raise LLMGymError(
                f"Prefixes are told apart every {self.prefix_tokens} tokens, which are no whole number "
                f"of blocks of {block_size}: choose a block_size that divides {self.prefix_tokens}."
            )
        return Listed(jnp.asarray(self.prefix_ids), self.prefix_tokens)

    @property
    def mean_prefill(self) -> float:
        """Mean prompt length in tokens."""
        return float(np.mean(self.prefill_tokens))

    @property
    def mean_decode(self) -> float:
        """Mean output length in tokens."""
        return float(np.mean(self.decode_tokens))

    @property
    def longest_prompt(self) -> float:
        """Largest prompt in tokens."""
        return float(np.max(self.prefill_tokens))

    def gap_sampler(self, ticks_per_s: float) -> GapSampler:
        """Device form of the arrival times. Raises LLMGymError on a time the clock cannot hold."""
        times = np.rint(np.asarray(self.arrival_s) * ticks_per_s)
        if times[-1] >= LATEST:
            raise LLMGymError(
                f"The last request comes after {self.arrival_s[-1]:g} s; the clock holds "
                f"{LATEST / ticks_per_s:g} s. Use a larger tick_ms, or cut the trace there."
            )
        gaps = np.diff(times.astype(np.int64), prepend=0)
        later = np.where(gaps >= FAR, gaps // PERIOD, 0)
        ticks = jnp.asarray(np.append(gaps - later * PERIOD, NEVER), jnp.int32)
        return ListedGaps(
            ticks, jnp.asarray(np.append(later, 0), jnp.int32) if later.any() else None
        )

    def length_sampler(self) -> ListedLengths:
        """Device form of the token counts."""
        listed = jnp.asarray(self.prefill_tokens), jnp.asarray(self.decode_tokens)
        if len(self.classes) == 1:
            return ListedLengths(*listed)
        return ListedLengths(*listed, jnp.asarray(self.request_class))
