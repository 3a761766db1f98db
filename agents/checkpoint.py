"""Checkpoints: arrays and a JSON header in one npz file, without pickle."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np

from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.networks import Layers
from llmgym.agents.tiles import TileChoice
from llmgym.agents.trained import TrainedPolicy
from llmgym.errors import LLMGymError
from llmgym.evaluation.files import to_json, write

FORMAT = 1
KINDS: dict[str, type[TileChoice] | type[NetworkChoice]] = {
    "tiles": TileChoice,
    "network": NetworkChoice,
}
"""What a checkpoint says of its choice."""

HEADER = "header"
VERSIONED = ("llmgym", "jax", "jaxlib", "numpy", "optax")


def write_arrays(path: Path, arrays: dict[str, Any], header: dict[str, Any]) -> None:
    """Write arrays and a header, whole or not at all. Equal content gives equal bytes."""
    columns: dict[str, Any] = {HEADER: np.frombuffer(to_json(header).encode(), np.uint8)}
    columns |= {name: np.asarray(x) for name, x in arrays.items()}
    data = io.BytesIO()
    np.savez(data, **columns)
    write(path, data.getvalue())


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the header of a file. Raises LLMGymError where it is none of ours, or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
    except FileNotFoundError as error:
        raise LLMGymError(f"There is no checkpoint {path}.") from error
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        raise LLMGymError(f"{path} is no checkpoint of llmgym, or is damaged: {error}.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise LLMGymError(
            f"{path} is no checkpoint of format {FORMAT}; train it anew with this version of llmgym."
        )
    return arrays, header


def versions() -> dict[str, str]:
    """Versions that a training run depends on."""
    return {name: metadata.version(name) for name in VERSIONED}


def policy_of(
    choice: TileChoice | NetworkChoice, actor: Layers, header: dict[str, Any], label: str
) -> TrainedPolicy:
    """The policy of an actor network; ``header`` tells what it was trained on."""
    found = hashlib.sha256(json.dumps(asdict(choice), sort_keys=True).encode())
    for leaf in jax.tree.leaves(actor):
        found.update(np.ascontiguousarray(leaf).tobytes())
    return TrainedPolicy(
        choice=choice, digest=found.hexdigest(), label=label, actor=actor, header=header
    )


def save_agent(path: Path, policy: TrainedPolicy) -> None:
    """Write a trained policy with its header."""
    arrays = {
        f"actor/{n}/{name}": x for n, layer in enumerate(policy.actor) for name, x in layer.items()
    }
    name = next(name for name, kind in KINDS.items() if type(policy.choice) is kind)
    kind = {"format": FORMAT, "kind": name, "choice": asdict(policy.choice)}
    write_arrays(path, arrays, kind | dict(policy.header))


def load_agent(path: Path, label: str | None = None) -> TrainedPolicy:
    """The policy of a file. Raises LLMGymError where it holds none."""
    arrays, header = read_arrays(path)
    if header.get("kind") not in KINDS:
        raise LLMGymError(f"{path} holds no trained policy; name a file agent-SEED.npz.")
    try:
        choice = KINDS[header["kind"]](**header["choice"])
        actor = [
            {name: arrays[f"actor/{n}/{name}"] for name in ("weight", "bias")}
            for n in range(len(arrays) // 2)
        ]
        inputs, outputs = actor[0]["weight"].shape[0], actor[-1]["bias"].size
    except (KeyError, TypeError, IndexError) as error:
        raise LLMGymError(f"{path} holds no trained policy: {error!r}.") from error
    if (inputs, outputs) != (len(choice.features), sum(choice.parts)):
        raise LLMGymError(
            f"{path} has {inputs} inputs and {outputs} outputs where this version of llmgym has "
            f"{len(choice.features)} and {sum(choice.parts)}; train it anew."
        )
    return policy_of(choice, actor, header, label or path.stem)
