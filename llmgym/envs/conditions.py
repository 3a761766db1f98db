"""Under what conditions episodes run: the load, the start, and the part of a trace; drawn for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import rounded
from llmgym.core.checks import as_list, check_name, check_settings
from llmgym.core.errors import LLMGymError, check_number, shown, unknown
from llmgym.core.pytree import register
from llmgym.core.wide import Wide
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import MOST_LOAD, capacity

OPTIONS = ("load", "start", "backlog_tokens", "window_s", "offset_s")
"""What a reset may say of the episodes to come, apart from their scenario."""

STARTS = ("empty", "backlog")
EPISODE = 2**31 - 2
"""Folded into the key of an environment for what is drawn for an episode."""

ENDLESS = 2**62
"""Ticks of a window that no episode reaches."""


@register
@dataclass(frozen=True)
class Episode:
    """What holds for one episode of each environment; arrays (...)."""

    pace: jax.Array  # arrivals, as a multiple of those of the params
    load: jax.Array  # as a fraction of the LP capacity
    burst: jax.Array  # requests of each job type that are there at time 0
    first: jax.Array  # number of the request with which a list begins
    window: Wide  # ticks after which it is cut
    max_steps: jax.Array  # decisions after which it is cut

    def applied_to(self, params: Any) -> Any:
        """The params under which the episode runs."""
        arrivals = tuple(process.at_pace(self.pace) for process in params.arrivals)
        return replace(params, arrivals=arrivals, burst=self.burst, first=self.first)


@register
@dataclass(frozen=True)
class Conditions:
    """From what the episodes of environments are drawn; arrays () or (num_envs,), all traced.

    The pace is uniform between ``low`` and ``high``. A list of requests begins at one of ``starts`` of them,
    drawn uniformly, the first of which is ``first``.
    """

    low: jax.Array
    high: jax.Array
    load: jax.Array  # () at a pace of 1
    burst: jax.Array
    first: jax.Array
    starts: jax.Array
    window: Wide
    max_steps: jax.Array

    def draw(self, key: jax.Array) -> Episode:
        """An episode for each of the keys (...)."""

        def one(key: jax.Array) -> jax.Array:
            return jax.random.uniform(jax.random.fold_in(key, EPISODE), (2,))

        drawn = one(key) if key.ndim == 0 else jax.vmap(one, out_axes=-1)(key)
        spread = jax.tree.map(lambda x: jnp.broadcast_to(x, key.shape), self)
        never = spread.max_steps >> 31  # 0, which the compiler does not know
        pace = spread.low + rounded(drawn[0] * (spread.high - spread.low), never)
        ahead = (drawn[1] * spread.starts.astype(jnp.float32)).astype(jnp.int32)
        return Episode(
            pace=pace,
            load=pace * spread.load,
            burst=spread.burst,
            first=spread.first + jnp.minimum(ahead, spread.starts - 1),
            window=spread.window,
            max_steps=spread.max_steps,
        )


def base_load(load: Any) -> float | None:
    """The load at which a scenario is lowered: the highest of those that are asked for.

    Args:
        load: a number; a pair (low, high), a tuple, to draw from; a list of one for each environment; or
            None, the scenario's own.

    Raises LLMGymError for anything else.
    """
    if load is None:
        return None
    return max(_loads(load))


def conditions_of(
    scenario: Scenario, own_load: float | None, max_steps: int, num_envs: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Conditions:  # fmt: skip
    """The conditions that the options of a reset, or the settings of an environment, stand for.

    Args:
        scenario: at the load at which it was lowered.
        own_load: that load, where it was chosen; None: the scenario's own, found by the LP if needed.
        max_steps: decisions after which an episode is cut.
        num_envs: environments, for loads that differ; None: there is one, without a batch axis.
        options: load, start, backlog_tokens, window_s and offset_s, see ``FunctionalEngine``.

    Raises LLMGymError for an unknown option, or a value that cannot be.
    """
    given = check_settings("options", options)
    for name in given:
        if name not in OPTIONS:
            raise unknown("option of reset:", name, (*OPTIONS, "scenario"))
    load = own_load if own_load is not None else _own(scenario, "load" in given)
    low, high = _paces(given.get("load"), load, num_envs)
    first, starts, window = _window(scenario, given, float(np.max(high)))
    return Conditions(
        low=jnp.asarray(low, jnp.float32),
        high=jnp.asarray(high, jnp.float32),
        load=jnp.float32(load),
        burst=jnp.int32(_burst(scenario, given)),
        first=jnp.int32(first),
        starts=jnp.int32(starts),
        window=Wide.of(window),
        max_steps=jnp.int32(max_steps),
    )


def _own(scenario: Scenario, needed: bool) -> float:
    """The load of a scenario itself; refused where a load is asked for and it has none."""
    load = capacity(scenario).load_factor
    if needed and not np.isfinite(load):
        raise LLMGymError(
            f"All requests of {scenario.name!r} arrive at one instant: there is no load to change."
        )
    return load


def _loads(load: Any) -> tuple[float, ...]:
    """The loads of a number, a pair or a list, checked."""
    # A list in which lists of several lengths stand has no number of axes: entries are looked at one by one.
    several = load.ndim > 0 if isinstance(load, np.ndarray) else isinstance(load, (tuple, list))
    found = as_list("load", load, what="numbers") if several else (load,)
    checked = tuple(check_number("load", x, above=0, high=MOST_LOAD) for x in found)
    if isinstance(load, tuple) and (len(checked) != 2 or checked[0] > checked[1]):
        raise LLMGymError(
            f"load must be a number, a pair (low, high) to draw from, or a list of one for each "
            f"environment, got {shown(load)}."
        )
    if not checked:
        raise LLMGymError("load is an empty list: give a load for each environment.")
    return checked


def _paces(load: Any, base: float, num_envs: int | None) -> tuple[Any, Any]:
    """The lowest and the highest pace, of all environments or of each (num_envs,)."""
    if load is None:
        return 1.0, 1.0
    checked = _loads(load)
    paces = [1.0 if x == base else x / base for x in checked]
    if isinstance(load, tuple):
        return paces[0], paces[1]
    if len(paces) == 1:
        return paces[0], paces[0]
    if len(paces) != (num_envs or 1):
        raise LLMGymError(
            f"load has {len(paces)} entries for {num_envs or 1} environments; a pair (low, high), to "
            "draw from, is a tuple."
        )
    return np.array(paces), np.array(paces)


def _burst(scenario: Scenario, given: Mapping[str, Any]) -> int:
    """Requests of each job type that are there at time 0."""
    start, tokens = given.get("start", "empty"), given.get("backlog_tokens")
    check_name("start", start, STARTS)
    if start == "empty":
        if tokens is not None:
            raise LLMGymError('backlog_tokens needs start="backlog".')
        return 0
    if tokens is None:
        return max(scenario.slots // 2, 1)
    tokens = check_number("backlog_tokens", tokens, above=0)
    count = round(tokens / (scenario.mean_prefill + scenario.mean_decode))
    return min(max(count, 1), scenario.slots)


def _window(scenario: Scenario, given: Mapping[str, Any], pace: float) -> tuple[int, int, int]:
    """The first request of a list, how many of them an episode may begin with, and its ticks."""
    window, offset = given.get("window_s"), given.get("offset_s")
    ticks = ENDLESS
    if window is not None:
        window = check_number("window_s", window, above=0)
        ticks = min(max(round(window * 1000 / scenario.tick_ms), 1), ENDLESS)
    times = getattr(scenario.workload, "arrival_s", None)
    if times is None:
        if offset is not None:
            raise LLMGymError(
                f"offset_s is for replays, and the arrivals of {scenario.name!r} are drawn; leave it out."
            )
        return 0, 1, ticks
    times = np.asarray(times)
    if offset is not None:
        offset = check_number("offset_s", offset, low=0)
        first = int(np.searchsorted(times, offset))
        if first >= len(times):
            raise LLMGymError(
                f"offset_s = {offset:g} is past the last request, which comes at {times[-1]:g} s."
            )
        return first, 1, ticks
    # The window fits behind each start; without one at least half of the trace does.
    span = times[-1] - times[0]
    behind = span / 2 if window is None else window * pace
    return 0, max(int(np.searchsorted(times, times[-1] - behind, side="right")), 1), ticks
