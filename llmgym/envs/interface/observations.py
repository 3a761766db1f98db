"""What an agent observes: a documented vector with finite bounds.

Counts enter as log1p, ages as log1p of seconds, so that both an idle and an overloaded engine stay
in range. ``Observation.names`` lists every entry; ``Observation.space`` bounds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import first_rows
from llmgym.core.checks import check_kind, keep_number
from llmgym.engine import simulator
from llmgym.engine.view import View
from llmgym.envs.interface.actions import tile_of
from llmgym.scenario.scenario import Scenario

MOST_AGE = float(np.log1p(1e5))
"""Bound of log1p(seconds): a little over a day."""


class Feature(NamedTuple):
    """One entry of the observation."""

    name: str
    value: jax.Array
    high: float = 1.0


@dataclass(frozen=True)
class Observation:
    """The observation vector of a scenario.

    Entries, in order:

    - ``prefill_tokens``: log1p(P / tile), P prompt tokens left; ``decoding``: log1p(D).
    - ``decode_sawtooth``, ``work_sawtooth``: (D mod tile) / tile and ((D + P) mod tile) / tile.
    - ``rate_k`` for k = 1..K tiles: tokens/ms of a batch of min(D + P, k * tile) tokens, as a
      fraction of the best rate that any batch reaches.
    - ``oldest_prompt``: log1p of the age in seconds of the oldest request with prefill left.
    - ``oldest_gap``: log1p of the seconds since the longest unserved decode got a token.
    - ``arrival_rate``: log1p of the estimated arrivals per second (see ``EnvState``).
    - ``seat_slack``: free seats / k_max (1 without a limit); ``slot_slack``: free slots / slots.
    - for each class c: ``waiting_c`` and ``decoding_c`` (log1p of requests), ``prefill_c`` (log1p
      tokens / tile), ``age_c`` and ``gap_c`` (as the two ages above).
    - for each of the first ``requests`` requests present, in order of arrival: ``present``,
      ``prefill`` (log1p tokens / tile), ``decoding``, ``generated`` (log1p), ``waited``,
      ``unserved`` (log1p seconds), ``class``; zeros where there is none.
    """

    scenario: Scenario
    requests: int = 0

    def __post_init__(self) -> None:
        check_kind("scenario", self.scenario, Scenario)
        keep_number(self, "requests", "observed_requests", low=0, high=1024, integer=True)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries."""
        return tuple(name for name, _ in self._layout)

    @property
    def space(self) -> gym.spaces.Box:
        """Box of float32 with finite bounds."""
        high = np.array([bound for _, bound in self._layout], np.float32)
        return gym.spaces.Box(np.zeros_like(high), high, dtype=np.float32)

    @cached_property
    def _layout(self) -> list[tuple[str, float]]:
        layout: list[tuple[str, float]] = []

        def trace() -> None:
            features = self._features(_blank_view(self.scenario), jnp.float32(0))
            layout.extend((f.name, f.high) for f in features)

        jax.eval_shape(trace)  # nothing is computed: names and bounds are known from the shapes
        return layout

    def __call__(self, view: View, arrival_rate: jax.Array) -> jax.Array:
        """The vector (entries, ...) for a view and an estimate of the arrivals per second."""
        features = self._features(view, arrival_rate)
        return jnp.stack([jnp.clip(f.value.astype(jnp.float32), 0.0, f.high) for f in features])

    def _features(self, view: View, arrival_rate: jax.Array) -> list[Feature]:
        tile = tile_of(self.scenario)
        seconds = view.tick_ms / 1000
        features = self._load(view, tile)
        features += [
            _oldest("oldest_prompt", view.waited, view.prefill > 0, seconds),
            _oldest("oldest_gap", view.unserved, view.decoding, seconds),
            Feature("arrival_rate", jnp.log1p(arrival_rate), float(np.log1p(1e4))),
            *self._slack(view),
        ]
        for k, name in enumerate(self.scenario.class_names):
            features += _class_features(name, view, view.job_class == k, tile, seconds)
        return features + self._first_requests(view, tile, seconds)

    def _load(self, view: View, tile: int) -> list[Feature]:
        budget = self.scenario.engine.token_budget
        decodes = _count(view.decoding)
        prefill = _tokens(view.prefill)
        work = decodes + prefill
        sizes = np.arange(1, budget + 1)
        best = float(np.max(sizes / self.scenario.engine.batch_time.ms(sizes)))
        features = [
            _log("prefill_tokens", prefill / tile, 2**30 / tile),
            _log("decoding", decodes, self.scenario.slots),
            Feature("decode_sawtooth", (decodes % tile) / tile),
            Feature("work_sawtooth", (work % tile) / tile),
        ]
        for k in range(1, -(-budget // tile) + 1):
            tokens = jnp.minimum(work, min(k * tile, budget)).astype(jnp.float32)
            rate = tokens / view.batch_time.formula(jnp.maximum(tokens, 1.0), jnp)
            features.append(Feature(f"rate_{k}", rate / best))
        return features

    def _slack(self, view: View) -> list[Feature]:
        slots = self.scenario.slots
        present = _count(view.live)
        seats = jnp.ones_like(present, jnp.float32)
        if view.max_num_seqs is not None:
            seats = 1 - _count(view.started) / view.max_num_seqs
        return [Feature("seat_slack", seats), Feature("slot_slack", 1 - present / slots)]

    def _first_requests(self, view: View, tile: int, seconds: jax.Array) -> list[Feature]:
        if self.requests == 0:
            return []
        slot, exists = first_rows(view.live, self.requests)

        def at(column: jax.Array) -> jax.Array:
            return jnp.where(exists, jnp.take_along_axis(column, slot, axis=0), 0)

        columns = [
            Feature("present", exists),
            _log("prefill", at(view.prefill) / tile, 2**20),
            Feature("decoding", at(view.decoding)),
            _log("generated", at(view.generated), 2**20),
            Feature("waited", jnp.log1p(at(view.waited) * seconds), MOST_AGE),
            Feature("unserved", jnp.log1p(at(view.unserved) * seconds), MOST_AGE),
            Feature("class", at(view.job_class), max(len(self.scenario.class_names) - 1, 1)),
        ]
        return [
            Feature(f"request_{n}_{c.name}", c.value[n], c.high)
            for n in range(self.requests)
            for c in columns
        ]


def _count(mask: jax.Array) -> jax.Array:
    return jnp.sum(mask.astype(jnp.int32), axis=0)


def _tokens(prefill: jax.Array) -> jax.Array:
    return jnp.sum(jnp.minimum(prefill, 1 << 15), axis=0)


def _log(name: str, value: jax.Array, most: float) -> Feature:
    return Feature(name, jnp.log1p(value), float(np.log1p(most)))


def _oldest(name: str, age: jax.Array, mask: jax.Array, seconds: jax.Array) -> Feature:
    oldest = jnp.max(jnp.where(mask, age, 0), axis=0) * seconds
    return Feature(name, jnp.log1p(oldest), MOST_AGE)


def _class_features(
    name: str, view: View, mine: jax.Array, tile: int, seconds: jax.Array
) -> list[Feature]:
    prefill, decoding = jnp.where(mine, view.prefill, 0), mine & view.decoding
    slots = view.prefill.shape[0]
    return [
        _log(f"waiting_{name}", _count(prefill > 0), slots),
        _log(f"decoding_{name}", _count(decoding), slots),
        _log(f"prefill_{name}", _tokens(prefill) / tile, 2**30 / tile),
        _oldest(f"age_{name}", view.waited, prefill > 0, seconds),
        _oldest(f"gap_{name}", view.unserved, decoding, seconds),
    ]


def _blank_view(scenario: Scenario) -> View:
    """A view of an empty engine: the layout needs shapes only."""
    physics = simulator.lower(scenario)
    return simulator.view(physics, simulator.init(physics, jax.random.key(0)))
