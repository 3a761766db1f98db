"""What ``llmgym train --observation ... --action ...`` lets a policy see and do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmgym.cli import common as cli
from llmgym.core.errors import LLMGymError

if TYPE_CHECKING:
    from llmgym.scenario.scenario import Scenario

OWN = ("sizes", "observation", "action", "settings")
"""The fields of an InterfaceChoice that the options give; the others are settings of --option."""


def interface_options(
    bases: list[Scenario], agent: str, observation: str | None, action: str | None
) -> dict[str, Any]:
    """Fields of an InterfaceChoice from --observation and --action.

    Args:
        bases: the scenarios to learn from; one policy must fit them all.
        agent: the algorithm.
        observation: names of entries with commas between them; None: all.
        action: the name of an encoding, or ``name:setting=value,setting=value``; None: tiles.

    Raises LLMGymError for what cannot be learned so.
    """
    from llmgym.envs.interface.encoding import Sizes

    if agent != "ppo":
        raise LLMGymError(
            f"--observation and --action are for --agent ppo; {agent} has its own: leave them out."
        )
    networks = [base.name for base in bases if base.is_network]
    if networks:
        raise LLMGymError(
            f"--observation and --action are for one engine, and {networks[0]!r} is a network: leave "
            "them out, or name another scenario."
        )
    sizes = [Sizes.of(base) for base in bases]
    for base, other in zip(bases, sizes, strict=True):
        if other != sizes[0]:
            raise LLMGymError(
                f"With --observation or --action one policy needs engines of one size, and "
                f"{bases[0].name!r} and {base.name!r} differ in tile, token_budget, slots or classes: "
                "give them the same with --set, or train a policy for each."
            )
    name, settings = encoding_of(action or "tiles")
    return {
        "sizes": sizes[0],
        "observation": tuple(x.strip() for x in (observation or "engine").split(",")),
        "action": name,
        "settings": tuple(settings.items()),
    }


def encoding_of(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of an action encoding: ``split:shares=3``."""
    name, _, own = text.partition(":")
    settings = {}
    for pair in own.split(",") if own else []:
        setting, equals, value = pair.partition("=")
        if not equals:
            raise LLMGymError(f"--action {text}: write name:setting=value, such as split:shares=3.")
        settings[setting.strip()] = cli.parse(value.strip())
    return name.strip(), settings
