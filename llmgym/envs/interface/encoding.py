"""What an action encoding is: a space, what is feasible in it, and the Batch that an action stands for.

Arrays have batch axes last: an action of a batch of environments is (dimensions, num_envs), or (num_envs,)
where it is a single choice. An encoding that contains a policy with a memory carries that memory from
decision to decision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.baselines.tiles import DEFAULT_TILE
from llmgym.core.checks import check_kind
from llmgym.core.errors import LLMGymError, shown
from llmgym.engine.view import Batch, View
from llmgym.scenario.scenario import Scenario


@dataclass(frozen=True)
class Sizes:
    """What of an engine fixes the spaces of its actions and observations.

    Engines of equal sizes share compiled programs, whatever their constants and loads are.

    Attributes:
        tile: tokens of a tile, b_0 of a staircase, else DEFAULT_TILE.
        token_budget: b_max.
        slots: rows of its request table.
        class_names: of the request classes that it serves.
    """

    tile: int
    token_budget: int
    slots: int
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, scenario: Scenario) -> Sizes:
        """Those of the first engine of a scenario."""
        check_kind("scenario", scenario, Scenario)
        engine = scenario.engine
        return cls(
            tile=int(getattr(engine.batch_time, "tile", DEFAULT_TILE)),
            token_budget=engine.token_budget,
            slots=scenario.slots,
            class_names=scenario.class_names,
        )

    @property
    def tiles(self) -> int:
        """K, the number of tiles in a full batch."""
        return -(-self.token_budget // self.tile)


class ActionEncoding:
    """Base of the action encodings, and of those of users: a ``space`` and ``expand`` are enough.

    ``space`` is a Discrete, MultiDiscrete or Box of Gymnasium; None where the action is a Batch itself.
    """

    name: ClassVar[str] = "own"

    @property
    def space(self) -> gym.Space[Any] | None:
        """The Gymnasium space; a plain attribute of that name does as well."""
        raise NotImplementedError(f"{type(self).__name__} must define its space.")

    def mask(self, view: View) -> jax.Array:
        """Which choices are feasible, flat over the dimensions (choices, ...); some in each."""
        return jnp.ones((choices_of(self.space), *view.token_budget.shape), bool)

    def prior(self, view: View) -> jax.Array | None:
        """Logits of the untrained policy (choices, ...), to which a learner adds its own; None: all 0."""
        return None

    def expand(self, action: Any, view: View) -> Batch:
        """The batch that an action stands for, of an encoding without a memory.

        Args:
            action: an element of ``space``, with batch axes last.
            view: what the engine shows. The batch need not be feasible: it is cut to what is.
        """
        raise NotImplementedError(f"{type(self).__name__} must define expand(action, view).")

    def start(self, view: View) -> Any:
        """The memory at the start of an episode, whose first state ``view`` shows; None without one."""
        return None

    def decide(self, action: Any, view: View, memory: Any) -> tuple[Batch, Any]:
        """The batch that an action stands for, and the memory for the next decision.

        Args:
            action: an element of ``space``; of a batch of environments (dimensions, num_envs) or
                (num_envs,).
            view: what the engine shows, or all engines of a network.
            memory: as ``start`` or the decision before returned it.
        """
        return self.expand(action, view), memory


class OfSizes(ActionEncoding):
    """Base of the encodings that fit an engine of certain sizes; a Scenario stands for its own."""

    sizes: Sizes

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, Sizes):
            object.__setattr__(self, "sizes", Sizes.of(self.sizes))


def parts_of(space: gym.Space[Any] | None) -> tuple[int, ...]:
    """Number of choices in each dimension of a Discrete or MultiDiscrete; () of any other space."""
    if isinstance(space, gym.spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return tuple(int(n) for n in np.ravel(space.nvec))
    return ()


def choices_of(space: gym.Space[Any] | None) -> int:
    """Entries of the flat mask of a space: its choices, or one for each score of a Box."""
    if isinstance(space, gym.spaces.Box):
        return int(np.prod(space.shape))
    return sum(parts_of(space))


def sample_mask(mask: Any, space: gym.Space[Any]) -> Any:
    """A flat mask (choices,) as ``space.sample(mask)`` takes it.

    Returns:
        Of a Discrete an int8 array; of a MultiDiscrete a tuple of them, one for each dimension; of a Box,
        whose ``sample`` takes none, an int8 array all the same.
    """
    flat = np.asarray(mask, np.int8)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return tuple(np.split(flat, np.cumsum(parts_of(space))[:-1]))
    return flat


def check_encoding(encoding: Any, sees: View) -> None:
    """Refuse an encoding, of a user perhaps, that does not do what one must.

    Args:
        encoding: the object.
        sees: shapes of a view of one environment, as ``jax.eval_shape`` gives it.

    Raises:
        LLMGymError: it lacks something, or gives masks or batches of the wrong shape.
    """
    what = f"The action encoding {type(encoding).__name__}"
    for name in ("space", "mask", "start", "decide"):
        if not hasattr(encoding, name):
            raise LLMGymError(
                f"{what} has no {name!r}: derive it from llmgym.ActionEncoding, with a space and "
                "expand(action, view)."
            )
    space = encoding.space
    if space is None:
        return
    if not (isinstance(space, gym.spaces.Box) or parts_of(space)):
        raise LLMGymError(
            f"{what} has the space {shown(space)}; use Discrete, MultiDiscrete or Box of Gymnasium."
        )
    if any(np.ravel(getattr(space, "start", 0))):
        raise LLMGymError(f"{what}: its space must begin at 0, and {shown(space)} does not.")
    dtype = jnp.float32 if isinstance(space, gym.spaces.Box) else jnp.int32
    assert space.shape is not None
    action = jax.ShapeDtypeStruct(space.shape, dtype)
    mask = jax.eval_shape(encoding.mask, sees)
    wanted = (choices_of(space),)
    if mask.shape != wanted or mask.dtype != bool:
        raise LLMGymError(
            f"{what}: its mask must be bool of shape {wanted}, got {mask.dtype} of shape {mask.shape}."
        )
    batch, _ = jax.eval_shape(lambda v, a: encoding.decide(a, v, encoding.start(v)), sees, action)
    tokens = getattr(batch, "tokens", None)
    if tokens is None or tokens.shape != sees.prefill.shape or tokens.dtype != jnp.int32:
        got = shown(batch) if tokens is None else f"{tokens.dtype} of shape {tokens.shape}"
        raise LLMGymError(
            f"{what} must expand an action to a Batch whose tokens are int32 of shape "
            f"{sees.prefill.shape}, got {got}. llmgym.fill(view, view.empty(), wanted) makes one."
        )
