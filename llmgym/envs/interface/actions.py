"""The action encodings of llmgym: what an agent chooses, and how it expands to a Batch.

``llmgym.envs.interface.encoding`` says what an encoding is; ``register_action`` adds one of a user's own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.decisions import check_form, compose, decide, keys_of, start
from llmgym.baselines.registry import make
from llmgym.baselines.tiles import decodes_in_turn, tile_batch
from llmgym.core.arrays import first_rows, prefix_sum, rows
from llmgym.core.checks import check_name, check_text, keep_number
from llmgym.core.errors import LLMGymError, shown, unknown
from llmgym.core.user_code import ask
from llmgym.engine.fill import fill
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.encoding import ActionEncoding, OfSizes, Sizes
from llmgym.envs.interface.sound import sound_batch
from llmgym.scenario.scenario import Scenario


def _tiles_mask(view: View, tile: int, most: int) -> jax.Array:
    """k tiles are feasible where the last of them would hold a token; one tile always is."""
    if view.max_num_seqs is None:
        tokens = jnp.sum(jnp.minimum(view.demand, tile * most), axis=0)
    else:
        tokens = tile_batch(view, view.token_budget).size
    count = jnp.arange(most).reshape((-1,) + (1,) * tokens.ndim)
    return (count == 0) | (count * tile < tokens)


@dataclass(frozen=True)
class Tiles(OfSizes):
    """``action="tiles"``: Discrete(K); action k opens k + 1 tiles, filled with decodes first.

    K = ceil(b_max / tile). Decodes that do not all fit take turns; prefill is first come, first
    served.
    """

    sizes: Sizes
    name: ClassVar[str] = "tiles"

    @property
    def space(self) -> gym.spaces.Discrete:
        """The Gymnasium space."""
        return gym.spaces.Discrete(self.sizes.tiles)

    def mask(self, view: View) -> jax.Array:
        return _tiles_mask(view, self.sizes.tile, self.sizes.tiles)

    def expand(self, action: jax.Array, view: View) -> Batch:
        return tile_batch(view, (jnp.asarray(action, jnp.int32) + 1) * self.sizes.tile)


@dataclass(frozen=True)
class Split(OfSizes):
    """``action="split"``: MultiDiscrete([K, shares]); tiles to open, and how much prefill gets.

    The second choice s reserves s / (shares - 1) of the tokens for prefill: prefill fills up to
    that, decodes fill the rest of the tiles, and room that they leave stays empty.
    """

    sizes: Sizes
    shares: int = 5
    name: ClassVar[str] = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "shares", low=2, high=1000, integer=True)

    @property
    def space(self) -> gym.spaces.MultiDiscrete:
        """The Gymnasium space."""
        return gym.spaces.MultiDiscrete(np.array([self.sizes.tiles, self.shares]))

    def mask(self, view: View) -> jax.Array:
        prefill, decode = jnp.any(view.prefill > 0, axis=0), jnp.any(view.decoding, axis=0)
        share = jnp.arange(self.shares).reshape((-1,) + (1,) * prefill.ndim)
        none, some = (share == 0) & (decode | ~prefill), (share > 0) & prefill
        return jnp.concatenate([Tiles(self.sizes).mask(view), none | some])

    def expand(self, action: jax.Array, view: View) -> Batch:
        action = jnp.asarray(action, jnp.int32)
        tokens = jnp.minimum((action[0] + 1) * self.sizes.tile, view.token_budget)
        reserved = tokens * action[1] // (self.shares - 1)
        prefills = fill(view, view.empty(), view.prefill, reserved)
        return fill(view, prefills, decodes_in_turn(view, tokens - prefills.size), tokens)


@dataclass(frozen=True)
class Tokens(OfSizes):
    """``action="tokens"``: MultiDiscrete of prefill levels of each class, then of decode levels.

    Level n stands for n * quantum tokens (at most b_max), given FCFS inside class and phase. Where
    the sum exceeds the budget decodes go first, then prefill, classes in their order.
    """

    sizes: Sizes
    quantum: int = 16
    name: ClassVar[str] = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "quantum", low=1, high=2**20, integer=True)

    @property
    def levels(self) -> int:
        """Choices of one dimension."""
        return -(-self.sizes.token_budget // self.quantum) + 1

    @property
    def space(self) -> gym.spaces.MultiDiscrete:
        """The Gymnasium space."""
        return gym.spaces.MultiDiscrete(np.full(2 * len(self.sizes.class_names), self.levels))

    def _demands(self, view: View) -> list[jax.Array]:
        classes = range(len(self.sizes.class_names))
        return [
            jnp.where(view.job_class == k, tokens, 0)
            for tokens in (view.prefill, view.decode)
            for k in classes
        ]

    def mask(self, view: View) -> jax.Array:
        masks = []
        for demand in self._demands(view):
            most = self.levels * self.quantum
            available = jnp.sum(jnp.minimum(demand, most), axis=0)
            level = jnp.arange(self.levels).reshape((-1,) + (1,) * available.ndim)
            masks.append((level == 0) | ((level - 1) * self.quantum < available))
        return jnp.concatenate(masks)

    def expand(self, action: jax.Array, view: View) -> Batch:
        wanted = jnp.asarray(action, jnp.int32) * self.quantum
        demands = self._demands(view)
        classes, batch = len(demands) // 2, view.empty()
        for k in (*range(classes, 2 * classes), *range(classes)):
            batch = fill(view, batch, demands[k], batch.size + wanted[k])
        return batch


@dataclass(frozen=True)
class Scores(OfSizes):
    """``action="scores"``: Box of a score in [-1, 1] for each of the first M requests present.

    They are filled in order of falling score, each with all it can take, while token budget and
    seats last; what is left goes to the requests behind them, first come, first served. The mask
    says which of the M exist.
    """

    sizes: Sizes
    requests: int = 32
    name: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        keep_number(self, "requests", low=1, high=1024, integer=True)

    @property
    def space(self) -> gym.spaces.Box:
        """The Gymnasium space."""
        return gym.spaces.Box(-1.0, 1.0, (self.requests,), np.float32)

    def mask(self, view: View) -> jax.Array:
        count = jnp.sum(view.live.astype(jnp.int32), axis=0)
        return rows(jnp.zeros((self.requests, *count.shape))) < count

    def expand(self, action: jax.Array, view: View) -> Batch:
        score = jnp.asarray(action, jnp.float32)
        slot, exists = first_rows(view.live, self.requests)
        wanted = jnp.where(exists, jnp.take_along_axis(view.demand, slot, axis=0), 0)
        wanted = jnp.minimum(wanted, view.token_budget + 1)  # more cannot matter
        # Position i comes before j if its score is higher, or equal and it arrived earlier.
        i, j = jnp.arange(self.requests)[:, None], jnp.arange(self.requests)[None, :]
        i, j = (x.reshape(x.shape + (1,) * (score.ndim - 1)) for x in (i, j))
        ahead = (score[:, None] > score[None]) | ((score[:, None] == score[None]) & (i < j))
        if view.max_num_seqs is not None:
            wanted = jnp.where(self._seated(view, slot, wanted > 0, ahead), wanted, 0)
        before = jnp.sum(jnp.where(ahead, wanted[:, None], 0), axis=0)
        given = jnp.clip(view.token_budget - before, 0, wanted)
        rank = prefix_sum(view.live) - 1
        ranked = view.live & (rank < self.requests)
        place = jnp.clip(rank, 0, self.requests - 1)
        batch = Batch(jnp.where(ranked, jnp.take_along_axis(given, place, axis=0), 0))
        return fill(view, batch, jnp.where(ranked, 0, view.demand))

    @staticmethod
    def _seated(view: View, slot: jax.Array, wants: jax.Array, ahead: jax.Array) -> jax.Array:
        """Which of the scored requests have a seat, or get one in order of their scores."""
        seated = view.started if view.resident_limit else jnp.zeros_like(view.started)
        newcomer = wants & ~jnp.take_along_axis(seated, slot, axis=0)
        assert view.max_num_seqs is not None
        seats = view.max_num_seqs - jnp.sum(seated.astype(jnp.int32), axis=0)
        earlier = jnp.sum((ahead & newcomer[:, None]).astype(jnp.int32), axis=0)
        return ~newcomer | (earlier < seats)


@dataclass(frozen=True)
class Budget(OfSizes):
    """``action="budget"``: Discrete(K); action k lets the policy ``base`` fill k + 1 tiles.

    ``base`` decides who runs, the agent how much: a token budget for each batch. It is the name of a
    baseline, or a policy; one with a memory goes on with it from step to step of an episode.
    """

    sizes: Sizes
    base: Any = "sarathi"
    name: ClassVar[str] = "budget"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.base, str):
            object.__setattr__(self, "base", make(self.base))
        if not callable(self.base):
            raise LLMGymError(
                f"base must be the name of a baseline or a policy, got {shown(self.base)}."
            )
        check_form(self.base)

    @property
    def space(self) -> gym.spaces.Discrete:
        """The Gymnasium space."""
        return Tiles(self.sizes).space

    def mask(self, view: View) -> jax.Array:
        return Tiles(self.sizes).mask(view)

    def start(self, view: View) -> Any:
        return start(self.base, view)

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        return decide(self.base, keys_of(view), self._within(action, view), memory)

    def expand(self, action: Any, view: View) -> Batch:
        return compose(self.base, keys_of(view), self._within(action, view))

    def _within(self, action: Any, view: View) -> View:
        tokens = (jnp.asarray(action, jnp.int32) + 1) * self.sizes.tile
        return replace(view, token_budget=jnp.minimum(view.token_budget, tokens))


@dataclass(frozen=True)
class Composition(OfSizes):
    """``action="batch"``: the Batch itself, for the functional environment; mask: demand > 0."""

    sizes: Sizes
    name: ClassVar[str] = "batch"

    @property
    def space(self) -> None:
        """None: an action is a Batch."""
        return None

    def mask(self, view: View) -> jax.Array:
        return view.demand > 0

    def expand(self, action: Any, view: View) -> Batch:
        return sound_batch(action, view.prefill.shape)


ENCODINGS: dict[str, Any] = {e.name: e for e in (Tiles, Split, Tokens, Scores, Budget, Composition)}


def register_action(name: str, encoding: Any) -> None:
    """Make ``action=name`` known to all environments.

    Args:
        name: a new one.
        encoding: an ``ActionEncoding``, or a class of them. A dataclass with the field ``sizes`` (see
            ``OfSizes``) gets those of the engine, and ``action_settings`` are its other fields.

    Raises:
        LLMGymError: the name is taken, or no name.
    """
    if check_text("name", name) in ENCODINGS:
        raise LLMGymError(f"The action encoding {name!r} is taken: choose another name.")
    ENCODINGS[name] = encoding


def make_encoding(action: Any, scenario: Scenario | Sizes, **settings: Any) -> ActionEncoding:
    """The encoding that a name stands for, or a class of encodings, or the object itself.

    Args:
        action: "tiles", "split", "tokens", "scores", "budget", "batch" or another registered name; a class
            derived from ``ActionEncoding``; or an object of one.
        scenario: that it must fit, or sizes.
        settings: shares (split), quantum (tokens), requests (scores), base (budget), or the fields of a
            class of one's own.

    Raises LLMGymError for an unknown encoding or setting.
    """
    name = action if isinstance(action, str) else getattr(action, "__name__", "own")
    if isinstance(action, str):
        check_name("action encoding", action, ENCODINGS)
        action = ENCODINGS[action]
    if not isinstance(action, type):
        if settings:
            raise unknown(
                "setting of an action encoding that is an object:", next(iter(settings)), []
            )
        found: ActionEncoding = action
        return found
    own = [f.name for f in fields(action)] if is_dataclass(action) else []
    known = [name for name in own if name != "sizes"]
    for setting in settings:
        if setting not in known:
            raise unknown(f"setting of action encoding {name!r}:", setting, known)
    fits = "sizes" in own
    made: ActionEncoding = ask(
        f"The action encoding {name}", partial(action, **settings), *((scenario,) if fits else ())
    )
    return made
