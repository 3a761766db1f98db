"""Actions as they must be: of the right shape and type, and where they are known, in range."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.checks import check_size
from llmgym.core.errors import LLMGymError, TableFullWarning, shown
from llmgym.core.user_code import warn
from llmgym.engine.view import Batch


def sound_array(name: str, value: Any, shape: tuple[int, ...], kinds: str, must: str) -> jax.Array:
    """A value as an array of numbers.

    Args:
        name: what the message calls it where it is too long to be looked at.
        value: as it was given.
        shape: that it must have.
        kinds: letters of the NumPy types that it may have, "fiu".
        must: what it must be: the beginning of the message.

    Raises:
        LLMGymError: it is something else.
    """
    check_size(name, value)
    try:
        found = jnp.asarray(value)
    except Exception:  # whatever a stranger's object raises when it is looked at
        found = None
    if found is None or found.shape != shape or found.dtype.kind not in kinds:
        given = shown(value) if found is None else f"{found.dtype} of shape {found.shape}"
        raise LLMGymError(f"{must}, got {given}.")
    return found


def sound_action(action: Any, space: gym.Space[Any] | None, batch: tuple[int, ...]) -> Any:
    """An action of the functional environment: its shape and type, and its range unless it is traced.

    Args:
        action: as it was given. One that is a Batch is looked at when it is expanded.
        space: that it belongs to; None: a Batch.
        batch: shape of the batch axes, () or (num_envs,).

    Raises:
        LLMGymError: it is of another shape or type, or out of range; NaN is.
    """
    if space is None:
        return action
    assert space.shape is not None
    wanted, scores = (*space.shape, *batch), isinstance(space, gym.spaces.Box)
    what = "numbers" if scores else "whole numbers"
    must = f"An action must be {what} of shape {wanted}, inside {space}"
    found = sound_array("An action", action, wanted, "fiu" if scores else "iu", must)
    if not isinstance(found, jax.core.Tracer):
        values = np.asarray(found)
        values = np.moveaxis(values, 0, -1) if space.shape else values
        if not _inside(space, values):
            raise LLMGymError(f"{must}, got {shown(values)}.")
    return found


def _inside(space: gym.Space[Any], values: Any) -> bool:
    """Whether values (..., dimensions) are inside a space; NaN is not."""
    if isinstance(space, gym.spaces.Box):
        low, high = space.low, space.high
    else:
        low = np.zeros((), np.int32)
        high = space.n - 1 if isinstance(space, gym.spaces.Discrete) else space.nvec - 1  # type: ignore[attr-defined]
    return bool(((values >= low) & (values <= high)).all())


def sound_batch(action: Any, shape: tuple[int, ...]) -> Batch:
    """An action that is a Batch, or its tokens, with int32 tokens.

    Args:
        action: as it was given.
        shape: of the request table, (slots, ...).

    Raises:
        LLMGymError: it is of another shape or type.
    """
    tokens = action.tokens if isinstance(action, Batch) else action
    must = f"An action must be a Batch whose tokens are int32 of shape {shape}"
    found = sound_array("An action", tokens, shape, "iu", must)
    preempt = action.preempt if isinstance(action, Batch) else None
    return Batch(found.astype(jnp.int32), preempt)


def sound_actions(
    actions: Any, space: gym.Space[Any], shape: tuple[int, ...], what: str = "Actions"
) -> np.ndarray:
    """Actions of a Gymnasium environment as int32, or as float32 where they are scores.

    Args:
        actions: as they were given, environments first where there are several.
        space: of one environment.
        shape: of the actions of all.
        what: what the message calls them, in the plural.

    Raises:
        LLMGymError: they are of another shape or type, or out of range; NaN is.
    """
    scores = isinstance(space, gym.spaces.Box)

    def must() -> str:
        numbers = "numbers" if scores else "whole numbers"
        return f"{what} must be {numbers} of shape {shape}, inside {space}"

    check_size(what, actions)
    try:
        found = np.asarray(actions)
    except Exception:  # rows of several lengths, or objects of a stranger
        raise LLMGymError(f"{must()}, got {shown(actions)}.") from None
    if found.shape != shape or found.dtype.kind not in ("iuf" if scores else "iu"):
        shapes = "" if found.shape == shape else f", of shape {found.shape}"
        raise LLMGymError(f"{must()}, got {shown(actions)}{shapes}.")
    if not _inside(space, found):
        raise LLMGymError(f"{must()}, got {shown(actions)}.")
    return found.astype(np.float32 if scores else np.int32)


def tell_of_drops(dropped: Any, load: Any, slots: int) -> bool:
    """Warn of requests that found the table full at a load below 1; whether there were any.

    Args:
        dropped: requests in a step, of one environment or of each.
        load: of their episodes.
        slots: of the table.
    """
    if not np.any(dropped) or not np.any((np.asarray(dropped) > 0) & (np.asarray(load) < 1)):
        return False
    warn(
        f"Requests were dropped: the table of {slots} slots is full at a load below 1, so that the policy is "
        'unstable or the table too small. What is learned is then another problem: use slots="auto", more '
        "slots or a lower load. This is said once.",
        TableFullWarning,
    )
    return True


def check_rewards(rewards: np.ndarray) -> None:
    """Refuse rewards that are not finite: learning on them fails without a word."""
    if not np.isfinite(rewards).all():
        bad = np.flatnonzero(~np.isfinite(rewards))
        where = f" in environment {bad[0]}" if rewards.ndim else ""
        raise LLMGymError(
            f"The reward is {rewards.flat[bad[0]]}{where}: a reward function must give finite numbers. "
            "Guard its divisions and logarithms."
        )
