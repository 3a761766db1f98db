"""The model card that ``llmgym train`` writes beside the checkpoints."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmgym.core.errors import LLMGymError

if TYPE_CHECKING:
    from llmgym.scenario.scenario import Scenario

CARD = "README.md"
LAST = 0.1
"""The end of a learning curve over which requests present are averaged, as a share of it."""


def check_card(out: Path) -> None:
    """Refuse a folder where the card would take the place of a README.md of somebody else's.

    Raises LLMGymError.
    """
    from llmgym.reporting.model_card import tells_of

    path = out / CARD
    if path.exists() and not tells_of(path, []):
        raise LLMGymError(
            f"{path} is no model card of 'llmgym train', and training would write one there: choose "
            "another folder with --out, or move that file."
        )


def write_card(
    out: Path,
    seeds: Sequence[int],
    worlds: Sequence[Scenario],
    scenario: Sequence[str],
) -> Path:
    """Write the card of the policies in a folder, from what their checkpoints say.

    One that tells of the same policies already stays as it is, with what was measured and added by hand.

    Args:
        out: the folder.
        seeds: of the policies.
        worlds: the scenarios that they learned from.
        scenario: the options that name the first scenario on the command line.
    """
    from llmgym.agents.checkpoint import load_agent
    from llmgym.core.files import write
    from llmgym.reporting.model_card import ModelCard, page, tells_of

    names = [f"agent-{seed}.npz" for seed in seeds]
    policies = [load_agent(out / name) for name in names]
    path = out / CARD
    if path.exists() and tells_of(path, [policy.digest for policy in policies]):
        return path
    first, header = policies[0], policies[0].header
    # Seen from the folder itself: it may be moved, and what is trained again elsewhere has the same card.
    found = [os.path.relpath(word, out) if Path(word).is_file() else word for word in scenario]
    card = ModelCard(
        algorithm=header["algorithm"],
        files=[
            (name, seed, _steps(policy.header), policy.digest)
            for name, seed, policy in zip(names, seeds, policies, strict=True)
        ],
        scenarios=worlds,
        observation=first.choice.features,
        action={"kind": header["kind"]} | header["choice"],
        parts=first.choice.parts,
        settings=_settings(header),
        versions=header["versions"],
        judge=shlex.join(["llmgym", "evaluate", *found, "-p", names[0], "--card", CARD]),
        curve=_present(out, seeds, len(worlds)),
    )
    write(path, page(card))
    return path


def _steps(header: Mapping[str, Any]) -> int:
    """Environment steps that were made."""
    if "steps_made" in header:
        return int(header["steps_made"])
    settings = header["settings"]
    each = len(header["scenarios"]) * settings["num_envs"] * settings["steps"]
    return int(header["iterations"] * each)


def _settings(header: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters; what the policy sees and does stands elsewhere."""
    own = {k: v for k, v in header["settings"].items() if k not in ("choice", "levels")}
    also = {k: header[k] for k in ("max_steps", "patience") if header.get(k) is not None}
    if header["algorithm"] != "ppo":
        also["num_envs"] = header["num_envs"]
    return own | also


def _present(out: Path, seeds: Sequence[int], worlds: int) -> tuple[float, ...]:
    """Requests present in each world at the end of training, averaged over seeds; () without curves."""
    import numpy as np
    import pandas as pd

    paths = [out / f"curve-{seed}.csv" for seed in seeds]
    if not all(path.exists() for path in paths):
        return ()
    found = []
    for path in paths:
        curve = pd.read_csv(path)
        last = curve.iloc[-max(round(LAST * len(curve)), 1) :]
        found.append([float(last[f"present_{w}"].mean()) for w in range(worlds)])
    return tuple(np.mean(found, axis=0).tolist())
