"""Adding a trained policy to those that llmgym ships, its measured figures in its header."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from llmgym import agents
from llmgym.agents.checkpoint import load_agent, save_agent
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.trained import TrainedPolicy
from llmgym.core.errors import LLMGymError
from llmgym.core.files import csv_cell, slug
from llmgym.core.reading import read_json, read_text
from llmgym.evaluation import evaluate
from llmgym.reporting.evaluation_report import MEASURES


def _figures(agent: Path, folder: Path) -> dict[str, object]:
    """What the evaluation found, by start and rate, and the capacity."""
    results = evaluate.evaluate(evaluate.from_config(folder), folder)
    found: dict[str, object] = {"capacity": results[f"capacity-{evaluate.slug(str(agent))}"]}
    own = (csv_cell(str(agent)), csv_cell(str(agent.parent)))
    for row in (row for row in _table(folder) if row["policy"] in own):
        raw = results[evaluate.latency_name(str(agent), float(row["rate"]), row["start"])]
        pooled = {name: round(raw["pooled"][name], 4) for name in MEASURES}
        found[f"{row['start']} {row['rate']}/s"] = pooled
    return found


def _table(folder: Path) -> list[dict[str, str]]:
    """The rows of its results.csv."""
    return list(csv.DictReader(read_text(folder / "results.csv", "table").splitlines()))


def _network_figures(policy: TrainedPolicy, folder: Path, name: str) -> dict[str, object]:
    """What the study of the network found, by scenario and load, and the verdict."""
    if read_json(folder / "config.json", "the configuration of a study")["digest"] != policy.digest:
        raise LLMGymError(
            f"{folder} holds results of another policy. Delete it and measure this one."
        )
    found: dict[str, object] = {"verdict": read_json(folder / "raw/verdict.json", "a measurement")}
    rows = [row for row in _table(folder) if row.pop("policy") == name]
    for row in rows:
        where = row.pop("scenario")
        found[where] = {k: float(x) for k, x in row.items() if not k.startswith("learned_")}
    return found


def ship(agent: Path, results: Path, name: str, out: Path | None = None) -> tuple[Path, str]:
    """Write NAME.npz; its path, and the digest of the policy.

    Args:
        agent: the checkpoint.
        results: folder of an evaluation of that file, or of the folder that holds it. For a network policy
            it is the folder of the study ``rybko-stolyar-learned``, and for a policy that is judged by its
            stability that of ``corner-c``.
        name: the policy's name among those that ship.
        out: folder to write to; None: the package's own.

    Raises LLMGymError where a file is missing, or the folder is about another policy.
    """
    if slug(name) != name:
        raise LLMGymError(
            f"A policy that ships is named by small letters, digits and _.-, not {name!r}."
        )
    policy = load_agent(agent)
    try:
        if isinstance(policy.choice, NetworkChoice):
            found = _network_figures(policy, results, name)
        elif (results / "stability.json").exists():
            found = read_json(results / "stability.json", "a file of measurements")[name]
        else:
            found = _figures(agent, results)
    except (KeyError, TypeError, AttributeError) as error:
        raise LLMGymError(f"{results} holds no results of {agent}: {error} is missing.") from None
    path = (out or agents.CHECKPOINTS) / f"{name}.npz"
    save_agent(path, replace(policy, header={**policy.header, "figures": found}))
    return path, policy.digest
