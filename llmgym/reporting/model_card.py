"""The model card of trained policies: a README.md beside their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmgym.core.checks import check_path
from llmgym.core.errors import LLMGymError
from llmgym.core.reading import read_text
from llmgym.core.text import one_line
from llmgym.reporting.table import Column, Table
from llmgym.reporting.table_markup import markdown_code, markdown_text
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import capacity

MEASURED, END = "<!-- measured -->", "<!-- /measured -->"
"""Between these two stands what was measured."""

MOST_BYTES = 2**22
"""Most bytes of a card that is read again."""


@dataclass(frozen=True)
class ModelCard:
    """What a card tells.

    Attributes:
        algorithm: its name: "ppo", "sb3-maskable-ppo".
        files: name of the file, seed, steps made and digest of each policy.
        scenarios: the worlds that they learned from.
        observation: names of the entries that they see.
        action: kind of the choice and its settings.
        parts: number of choices in each part of an action.
        settings: hyperparameters by name.
        versions: of packages.
        judge: the command that judges the first one.
        curve: of each policy requests present in each world at the end of training, averaged over seeds;
            () where there is none.
    """

    algorithm: str
    files: Sequence[tuple[str, int, int, str]]
    scenarios: Sequence[Scenario]
    observation: Sequence[str]
    action: Mapping[str, Any]
    parts: Sequence[int]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    judge: str
    curve: Sequence[float] = field(default_factory=tuple)


def page(card: ModelCard) -> str:
    """The card, in Markdown. Every name is escaped."""
    first = card.files[0][0]
    sections = [
        f"# Trained by llmgym: {markdown_text(' and '.join(_names(card)))}",
        f"Scheduling policies for LLM inference, trained with {markdown_code(card.algorithm)}. "
        "Each file is one policy: weights and a JSON header, no code.",
        _files(card).to_markdown(),
        "## What it learned from",
        _worlds(card).to_markdown(),
        "## What it sees and does",
        f"It sees {len(card.observation)} numbers: "
        f"{', '.join(markdown_code(name) for name in card.observation)}.",
        f"It makes {_choices(card.parts)} for every batch; the encoding is "
        f"{markdown_code(str(card.action.get('kind', '')))}:",
        _settings({k: v for k, v in card.action.items() if k != "kind"}).to_markdown(),
        "## Hyperparameters",
        _settings(card.settings).to_markdown(),
        "## What it reaches",
        f"{MEASURED}\nNot judged yet. This command, in this folder, does so and writes the result here:\n"
        f"\n```sh\n{one_line(card.judge)}\n```\n{END}",
        "## Use it",
        f"```python\nimport llmgym\n\npolicy = llmgym.agents.load({first!r})\n"
        f"run = llmgym.simulate({one_line(ascii(card.scenarios[0].name))}, policy, duration_s=600)\n"
        "print(run.summary)\n```",
        "The name of a scenario may also be the TOML file that describes it. The path of the checkpoint goes "
        "wherever a command takes a policy.",
        "## Made with",
        _settings(card.versions).to_markdown(),
        "## Licence",
        "The weights belong to whoever trained them: write here under which licence you give them away. "
        "llmgym itself is under Apache-2.0.",
    ]
    return "\n\n".join(sections) + "\n"


def with_results(path: Path, table: str) -> str:
    """The text of the card in ``path`` with a table of results in place of those that it has.

    Raises LLMGymError where the file is not a card.
    """
    path = check_path("card", path)
    if not path.is_file():
        raise LLMGymError(f"There is no model card {path}: 'llmgym train' writes one as README.md.")
    text = read_text(path, "model card", MOST_BYTES)
    before, begins, rest = text.partition(MEASURED)
    _, ends, after = rest.partition(END)
    if not begins or not ends:
        raise LLMGymError(
            f"{path} is no model card of 'llmgym train': it lacks the lines {MEASURED} and {END}, between "
            "which results stand."
        )
    return f"{before}{MEASURED}\n{table}\n{END}{after}"


def tells_of(path: Path, digests: Sequence[str]) -> bool:
    """Whether the file ``path`` is a card, and one that lists policies with these digests."""
    try:
        text = with_results(path, "")
    except LLMGymError:
        return False
    return all(digest in text for digest in digests)


def _names(card: ModelCard) -> list[str]:
    return list(dict.fromkeys(scenario.name for scenario in card.scenarios))


def _files(card: ModelCard) -> Table:
    columns = (
        Column("file", text=True),
        Column("seed", "d"),
        Column("steps", ",d"),
        Column("SHA-256 of choice and weights", text=True),
    )
    return Table(columns, tuple(card.files))


def _worlds(card: ModelCard) -> Table:
    """A row for each world, with the requests that are present at the end where they are known."""
    columns = [
        Column("scenario", text=True),
        Column("load", ".3f"),
        Column("arrivals per second", ".3f"),
        Column("slots", "d"),
    ]
    found: list[list[Any]] = [
        [s.name, capacity(s).load_factor, s.arrival_rate_per_s, s.slots] for s in card.scenarios
    ]
    if card.curve:
        columns.append(Column("requests present at the end of training", ".1f"))
        for row, present in zip(found, card.curve, strict=True):
            row.append(present)
    return Table(tuple(columns), tuple(tuple(row) for row in found))


def _settings(values: Mapping[str, Any]) -> Table:
    rows = tuple((name, str(value)) for name, value in values.items())
    return Table((Column("setting", text=True), Column("value", text=True)), rows)


def _choices(parts: Sequence[int]) -> str:
    if len(parts) == 1:
        return f"one choice out of {parts[0]}"
    return f"{len(parts)} choices, out of {' and '.join(map(str, parts))}"
