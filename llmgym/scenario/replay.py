"""An explicit list of requests: when each arrives, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.errors import LLMGymError, check_number
from llmgym.core.pytree import register
from llmgym.scenario.arrivals import FAR, NEVER, GapSampler, ListedGaps
from llmgym.scenario.prefixes import Listed, Variants, check_ids, no_prefix
from llmgym.scenario.request_class import Tenant, check_service_level, check_tenants, tenant_column
from llmgym.scenario.stage import check_pairs, token_column


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
        prefill = token_column("prefill_tokens", self.prefill_tokens)
        decode = token_column("decode_tokens", self.decode_tokens)
        if arrival.size != prefill.size:
            raise LLMGymError(
                f"arrival_s has {arrival.size} entries and prefill_tokens {prefill.size}."
            )
        check_pairs(prefill, decode)
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
        """Device form of the arrival times. Raises LLMGymError on a gap the clock cannot hold."""
        ticks = np.rint(np.asarray(self.arrival_s) * ticks_per_s).astype(np.int64)
        gaps = np.diff(ticks, prepend=0)
        if gaps.max() >= FAR:
            raise LLMGymError(
                f"Two requests are {gaps.max() / ticks_per_s:.0f} s apart; the longest gap is "
                f"{FAR / ticks_per_s:.0f} s. Use a larger tick_ms, or cut the trace there."
            )
        return ListedGaps(jnp.asarray(np.append(gaps, NEVER), jnp.int32))

    def length_sampler(self) -> ListedLengths:
        """Device form of the token counts."""
        listed = jnp.asarray(self.prefill_tokens), jnp.asarray(self.decode_tokens)
        if len(self.classes) == 1:
            return ListedLengths(*listed)
        return ListedLengths(*listed, jnp.asarray(self.request_class))
