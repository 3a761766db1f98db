"""What an agent observes: a documented vector with finite bounds.

Counts enter as log1p, ages as log1p of seconds, so that both an idle and an overloaded engine stay
in range. ``names`` lists every entry; ``space`` bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import first_rows, rounded
from llmgym.core.checks import keep_number
from llmgym.engine.view import View
from llmgym.envs.interface.arrival_rate import ArrivalRate
from llmgym.envs.interface.encoding import Sizes

MOST_AGE = float(np.log1p(3600.0))
"""Bound of log1p(seconds): an hour."""

MOST_PROMPT = 1 << 15
"""Prompt tokens of a request beyond which all are alike."""


class ObservationBase:
    """Base of the observations, and of those of users: ``names``, ``space`` and a call are enough.

    A call takes a view and the memory, and gives the vector (entries, ...), float32.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        raise NotImplementedError(f"{type(self).__name__} must define its names.")

    @property
    def space(self) -> gym.spaces.Box:
        """Box of float32 with finite bounds."""
        raise NotImplementedError(f"{type(self).__name__} must define its space.")

    def start(self, view: View) -> Any:
        """The memory at the start of an episode, whose first state ``view`` shows; None without one."""
        return None

    def remember(self, view: View, memory: Any) -> Any:
        """The memory after a decision at ``view``, with that of the decision before."""
        return memory

    def __call__(self, view: View, memory: Any) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} must define __call__(view, memory).")


@dataclass(frozen=True)
class Observation(ObservationBase):
    """The observation vector of an engine.

    Entries, in order:

    - ``prefill_tokens``: log1p(P / tile), P prompt tokens left; ``decoding``: log1p(D).
    - ``decode_sawtooth``, ``work_sawtooth``: (D mod tile) / tile and ((D + P) mod tile) / tile.
    - ``rate_k`` for k = 1..K tiles: tokens/ms of a batch of min(D + P, k * tile) tokens, as a
      fraction of the best rate of a batch of whole tiles.
    - ``oldest_prompt``: log1p of the age in seconds of the oldest request with prefill left.
    - ``oldest_gap``: log1p of the seconds since the longest unserved decode got a token.
    - ``arrival_rate``: log1p of the estimated arrivals per second (see ``ArrivalRate``).
    - ``seat_slack``: free seats / k_max (1 without a limit); ``slot_slack``: free slots / slots.
    - for each class c: ``waiting_c`` and ``decoding_c`` (log1p of requests), ``prefill_c`` (log1p
      tokens / tile), ``age_c`` and ``gap_c`` (as the two ages above).
    - for each of the first ``requests`` requests present, in order of arrival: ``present``,
      ``prefill`` (log1p tokens / tile), ``decoding``, ``generated`` (log1p), ``waited``,
      ``unserved`` (log1p seconds), ``class``; zeros where there is none.

    Args:
        sizes: of the engine; a Scenario stands for its own.
        requests: how many single requests it lists.
    """

    sizes: Sizes
    requests: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, Sizes):
            object.__setattr__(self, "sizes", Sizes.of(self.sizes))
        keep_number(self, "requests", "observed_requests", low=0, high=1024, integer=True)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        sizes = self.sizes
        fixed = ["prefill_tokens", "decoding", "decode_sawtooth", "work_sawtooth"]
        fixed += [f"rate_{k}" for k in range(1, sizes.tiles + 1)]
        fixed += ["oldest_prompt", "oldest_gap", "arrival_rate", "seat_slack", "slot_slack"]
        per_class = ("waiting", "decoding", "prefill", "age", "gap")
        fixed += [f"{what}_{name}" for name in sizes.class_names for what in per_class]
        listed = [f"request_{n}_{what}" for n in range(self.requests) for what in OF_REQUEST]
        return (*fixed, *listed)

    @cached_property
    def space(self) -> gym.spaces.Box:
        """Box of float32 with finite bounds."""
        sizes, log = self.sizes, np.log1p
        tokens = log(sizes.slots * 4 * sizes.token_budget / sizes.tile)
        high = [tokens, log(sizes.slots), 1, 1, *[1] * sizes.tiles]
        high += [MOST_AGE, MOST_AGE, log(1e4), 1, 1]
        high += [log(sizes.slots), log(sizes.slots), tokens, MOST_AGE, MOST_AGE] * len(
            sizes.class_names
        )
        last = max(len(sizes.class_names) - 1, 1)
        request = [1, log(MOST_PROMPT / sizes.tile), 1, log(2**20), MOST_AGE, MOST_AGE, last]
        bounds = np.array(high + request * self.requests, np.float32)
        return gym.spaces.Box(np.zeros_like(bounds), bounds, dtype=np.float32)

    def start(self, view: View) -> ArrivalRate:
        return ArrivalRate.start(view)

    def remember(self, view: View, memory: ArrivalRate) -> ArrivalRate:
        return memory.at(view)

    def __call__(self, view: View, memory: ArrivalRate) -> jax.Array:
        """The vector (entries, ...)."""
        return self.of(view, memory.at(view).per_s)

    def of(self, view: View, arrival_rate: jax.Array) -> jax.Array:
        """The vector (entries, ...) for a view and an estimate of the arrivals per second (...)."""
        tile, seconds = self.sizes.tile, _Seconds(view.tick_ms / 1000, view.batches >> 31)
        # Every request is of one of the classes; a pass along the slots costs as much as all the rest.
        classes = range(len(self.sizes.class_names))
        each = [_of_class(view, view.job_class == k if len(classes) > 1 else True) for k in classes]
        whole = reduce(_Present.__add__, each)
        values = self._load(view, whole, tile)
        values += [
            _Log(seconds.of(whole.age)),
            _Log(seconds.of(whole.gap)),
            _Log(arrival_rate),
            *self._slack(view, whole),
        ]
        for mine in each:
            values += [_Log(mine.waiting), _Log(mine.decoding), _Log(mine.prefill / tile)]
            values += [_Log(seconds.of(mine.age)), _Log(seconds.of(mine.gap))]
        values += self._first_requests(view, tile, seconds)
        vector = _stacked(values)
        bounds = jnp.asarray(self.space.high).reshape(-1, *[1] * (vector.ndim - 1))
        return jnp.clip(vector, 0.0, bounds)

    def _load(self, view: View, whole: _Present, tile: int) -> list[Any]:
        decodes, prefill = whole.decoding, whole.prefill
        work = decodes + prefill
        sizes = [jnp.minimum(k * tile, view.token_budget) for k in range(1, self.sizes.tiles + 1)]

        def rate(tokens: jax.Array) -> jax.Array:
            tokens = tokens.astype(jnp.float32)
            found: jax.Array = tokens / view.batch_time.formula(jnp.maximum(tokens, 1.0), jnp)
            return found

        best = jnp.max(jnp.stack([rate(size) for size in sizes]), axis=0)
        return [
            _Log(prefill / tile),
            _Log(decodes),
            (decodes % tile) / tile,
            (work % tile) / tile,
            *(rate(jnp.minimum(work, size)) / best for size in sizes),
        ]

    def _slack(self, view: View, whole: _Present) -> list[jax.Array]:
        present = whole.waiting + whole.decoding
        seats = jnp.ones_like(present, jnp.float32)
        if view.max_num_seqs is not None:
            seats = 1 - jnp.sum(view.started.astype(jnp.int32), axis=0) / view.max_num_seqs
        return [seats, 1 - present / self.sizes.slots]

    def _first_requests(self, view: View, tile: int, seconds: _Seconds) -> list[Any]:
        if self.requests == 0:
            return []
        slot, exists = first_rows(view.live, self.requests)

        def at(column: jax.Array) -> jax.Array:
            return jnp.where(exists, jnp.take_along_axis(column, slot, axis=0), 0)

        columns: list[Any] = [
            exists,
            _Log(at(view.prefill) / tile),
            at(view.decoding),
            _Log(at(view.generated)),
            _Log(seconds.of(at(view.waited))),
            _Log(seconds.of(at(view.unserved))),
            at(view.job_class),
        ]
        return [
            _Log(column.value[n]) if isinstance(column, _Log) else column[n]
            for n in range(self.requests)
            for column in columns
        ]


OF_REQUEST = ("present", "prefill", "decoding", "generated", "waited", "unserved", "class")
"""What the observation says of each single request."""


class _Log(NamedTuple):
    """A value that enters the observation as its log1p."""

    value: jax.Array


def _stacked(values: list[Any]) -> jax.Array:
    """The vector (entries, ...), float32: logarithms are taken of all at once, in one pass."""
    raw = [v.value if isinstance(v, _Log) else v for v in values]
    vector = jnp.stack([x.astype(jnp.float32) for x in raw])
    logs = np.array([isinstance(v, _Log) for v in values]).reshape(-1, *[1] * (vector.ndim - 1))
    return jnp.where(logs, jnp.log1p(vector), vector)


class _Seconds(NamedTuple):
    """Seconds of a tick; and zeros of which the compiler does not know that they are."""

    of_tick: jax.Array
    zero: jax.Array

    def of(self, ticks: jax.Array) -> jax.Array:
        """Seconds of ticks, the same whatever is added to them."""
        return rounded(ticks * self.of_tick, self.zero)


class _Present(NamedTuple):
    """Requests present, of a class or of all: counts, prompt tokens left, and the highest ages in ticks."""

    waiting: jax.Array
    decoding: jax.Array
    prefill: jax.Array
    age: jax.Array
    gap: jax.Array

    def __add__(self, other: Any) -> _Present:
        """Those of both."""
        oldest = (jnp.maximum(self.age, other.age), jnp.maximum(self.gap, other.gap))
        return _Present(
            self.waiting + other.waiting,
            self.decoding + other.decoding,
            self.prefill + other.prefill,
            *oldest,
        )


def _of_class(view: View, mine: Any) -> _Present:
    """Those of a class, ``mine``, in four passes along the slots."""
    waiting, decoding = mine & (view.prefill > 0), mine & view.decoding
    # There are at most 2**15 rows: two counts fit into one number.
    counts = jnp.sum(waiting + (decoding.astype(jnp.int32) << 16), axis=0)
    prefill = jnp.minimum(view.prefill, MOST_PROMPT)
    return _Present(
        counts & 0xFFFF,
        jax.lax.shift_right_logical(counts, 16),
        jnp.sum(jnp.where(waiting, prefill, 0), axis=0),
        jnp.max(jnp.where(waiting, view.waited, 0), axis=0),
        jnp.max(jnp.where(decoding, view.unserved, 0), axis=0),
    )
