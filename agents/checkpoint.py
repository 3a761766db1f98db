"""Checkpoints: arrays and a JSON header in one npz file, without pickle."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llmgym.agents.budgets import BudgetChoice
from llmgym.agents.choice import Choice
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.of_interface import InterfaceChoice
from llmgym.agents.scores import ScoreChoice
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.trained import TrainedPolicy
from llmgym.core.checks import check_path
from llmgym.core.errors import LLMGymError, shown
from llmgym.core.files import to_json, write
from llmgym.core.npz import MOST_BYTES, BadArraysError, read_npz
from llmgym.core.reading import BadJSONError, parse_json

FORMAT = 1
CHOICES: dict[str, type[Choice]] = {
    c.kind: c for c in (TileChoice, BudgetChoice, ScoreChoice, NetworkChoice, InterfaceChoice)
}
"""The class of each ``kind`` that a checkpoint may name."""

ACTOR = "actor"
HEADER = "header"
MOST_OF_AN_AGENT = 2**28
"""Most bytes of a trained policy."""

VERSIONED = ("llmgym", "jax", "jaxlib", "numpy", "optax")


def write_arrays(path: Path, arrays: dict[str, Any], header: dict[str, Any]) -> None:
    """Write an npz file, whole or not at all. Equal content gives equal bytes.

    Args:
        path: of the file; its folder is made where it is missing.
        arrays: NumPy or JAX arrays by name.
        header: anything that JSON can hold; ``read_arrays`` accepts it if ``format`` is FORMAT.
    """
    columns: dict[str, Any] = {HEADER: np.frombuffer(to_json(header).encode(), np.uint8)}
    columns |= {name: np.asarray(x) for name, x in arrays.items()}
    data = io.BytesIO()
    np.savez(data, **columns)
    write(path, data.getvalue())


def read_arrays(path: Path, most: int = MOST_BYTES) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file of at most ``most`` bytes.

    Raises LLMGymError where it is missing, damaged, of another format or not a checkpoint of llmgym.
    """
    path = check_path("path", path)
    if not os.path.exists(path):
        raise LLMGymError(f"There is no checkpoint {path}.")
    try:
        arrays = read_npz(path, most)
        header = parse_json(arrays.pop(HEADER).tobytes())
    except (BadArraysError, BadJSONError, KeyError) as error:
        raise LLMGymError(
            f"{path} is not a checkpoint of llmgym, or is damaged: {error}."
        ) from error
    if header.get("format") != FORMAT:
        raise LLMGymError(
            f"{path} is not a checkpoint of format {FORMAT}; train it again with this version of llmgym."
        )
    return arrays, header


def versions() -> dict[str, str]:
    """Versions that a training run depends on."""
    return {name: metadata.version(name) for name in VERSIONED}


def policy_of(
    choice: Choice, actor: Any, header: dict[str, Any], label: str, masks: bool = True
) -> TrainedPolicy:
    """The policy of an actor network.

    Args:
        choice: what it observes and may do.
        actor: its weights, a pytree as ``choice.init_actor`` gives.
        header: what a checkpoint will say of it: scenarios, settings, seed and versions.
        label: its name in tables.
        masks: whether only allowed choices compete (see TrainedPolicy).
    """
    said = asdict(choice) if masks else asdict(choice) | {"masks": masks}
    found = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    for leaf in jax.tree.leaves(actor):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return TrainedPolicy(
        choice=choice,
        digest=found.hexdigest(),
        label=label,
        masks=masks,
        actor=actor,
        header=header,
    )


def save_agent(path: Path, policy: TrainedPolicy) -> None:
    """Write a trained policy with its header."""
    leaves = jax.tree_util.tree_flatten_with_path(policy.actor)[0]
    arrays = {
        f"{ACTOR}/{jax.tree_util.keystr(k, simple=True, separator='/')}": x for k, x in leaves
    }
    kind = {"format": FORMAT, "kind": policy.choice.kind, "choice": asdict(policy.choice)}
    kind |= {} if policy.masks else {"masks": False}
    write_arrays(path, arrays, kind | dict(policy.header))


def load_agent(path: Path, label: str | None = None) -> TrainedPolicy:
    """The policy of a file. Raises LLMGymError where it holds none."""
    path = check_path("path", path)
    arrays, header = read_arrays(path, MOST_OF_AN_AGENT)
    kind, masks = header.get("kind"), header.get("masks", True)
    if not isinstance(kind, str) or kind not in CHOICES or not isinstance(masks, bool):
        raise LLMGymError(f"{path} holds no trained policy; name a file agent-SEED.npz.")
    _check_weights(path, arrays)
    try:
        choice = CHOICES[kind](**header["choice"])
        hash(choice)  # a setting may be a list
        actor = _nested({tuple(name.split("/")[1:]): x for name, x in arrays.items()})
        seen = jax.ShapeDtypeStruct((choice.inputs,), np.float32)
        outputs = jax.eval_shape(choice.logits, actor, seen).shape
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise LLMGymError(f"{path} holds no trained policy: {shown(error)}.") from error
    if outputs != (sum(choice.parts),):
        raise LLMGymError(
            f"{path} has {outputs} outputs where this version of llmgym has {sum(choice.parts)}; "
            "train it again."
        )
    return policy_of(choice, actor, header, label or path.stem, masks)


def _check_weights(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse what cannot be the weights of a policy: other types than floats, NaN, infinities, deep trees."""
    for name, x in arrays.items():
        if not np.issubdtype(x.dtype, np.floating) or name.count("/") > 8:
            raise LLMGymError(
                f"{path} holds no trained policy: {name[:80]!r} is no array of weights."
            )
        if not np.isfinite(x).all():
            raise LLMGymError(
                f"{path}: {name[:80]!r} has weights that are not finite numbers; train the policy anew."
            )


def _nested(arrays: dict[tuple[str, ...], np.ndarray]) -> Any:
    """Nested dicts and lists, from their leaves by path."""
    if () in arrays:
        return arrays[()]
    heads = sorted({path[0] for path in arrays}, key=lambda head: (len(head), head))
    parts = {
        head: _nested({path[1:]: x for path, x in arrays.items() if path[0] == head})
        for head in heads
    }
    return list(parts.values()) if all(head.isdigit() for head in heads) else parts
