"""The choice that an interface of environments gives: PPO learns whatever they let an agent see and do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax

from llmgym.agents.choice import Choice
from llmgym.baselines.policy import Policy
from llmgym.core.checks import as_list, check_settings, keep_number
from llmgym.core.errors import LLMGymError, shown
from llmgym.engine.view import Batch, View
from llmgym.envs.interface.actions import ENCODINGS, make_encoding
from llmgym.envs.interface.chosen import ENGINE, Chosen, make_observation
from llmgym.envs.interface.encoding import Sizes
from llmgym.envs.interface.interface import Composed, Interface, Sight
from llmgym.envs.interface.observations import Observation
from llmgym.scenario.scenario import Scenario


@dataclass(frozen=True)
class InterfaceChoice(Choice):
    """Observation and action by the names that ``gym.make`` takes, for one engine.

    A checkpoint keeps the names; those that users have registered must be registered before it is loaded.

    Args:
        sizes: of the engine; a Scenario stands for its own.
        observation: names of entries, "engine" for all.
        action: the name of an encoding whose action is one or more choices.
        requests: how many single requests the observation lists.
        settings: of the encoding, a dictionary or pairs.
    """

    sizes: Sizes
    observation: tuple[str, ...] = (ENGINE,)
    action: str = "tiles"
    requests: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    kind: ClassVar[str] = "interface"

    def __post_init__(self) -> None:
        sizes: Any = self.sizes
        settings: Any = self.settings
        if isinstance(sizes, Scenario):
            sizes = Sizes.of(sizes)
        elif isinstance(sizes, Mapping):  # of a checkpoint
            sizes = Sizes(**{**sizes, "class_names": tuple(sizes["class_names"])})
        if not isinstance(sizes, Sizes):
            raise LLMGymError(f"sizes must be those of a scenario, got {shown(sizes)}.")
        if not isinstance(settings, Mapping):
            pairs = as_list("settings", settings, (list, tuple), "pairs")
            settings = dict(pairs)
        one = isinstance(self.observation, str)
        names = (
            (self.observation,) if one else as_list("observation", self.observation, str, "names")
        )
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "observation", names)
        object.__setattr__(self, "settings", tuple(check_settings("settings", settings).items()))
        keep_number(self, "requests", low=0, high=1024, integer=True)
        if not self.parts:
            raise LLMGymError(
                f"Action {shown(self.action)} is not made of choices: PPO here takes tiles, split, tokens, "
                "budget, or an encoding of your own with a Discrete or MultiDiscrete space."
            )

    @classmethod
    def of(cls, interface: Interface) -> InterfaceChoice:
        """The choice that gives an interface of environments again, by names.

        Raises LLMGymError where its parts have no names, as objects of a user's that are not registered.
        """
        seen, encoding = getattr(interface, "observation", None), getattr(interface, "action", None)
        whole = seen.whole if isinstance(seen, Chosen) else seen
        if isinstance(whole, Observation):
            action = next((n for n, e in ENCODINGS.items() if e in (type(encoding), encoding)), "")
            own = fields(encoding) if is_dataclass(encoding) else ()
            settings = {f.name: getattr(encoding, f.name) for f in own if f.name != "sizes"}
            if isinstance(settings.get("base"), Policy):  # of "budget": checkpoints keep its name
                settings["base"] = settings["base"].name
            names = seen.names if isinstance(seen, Chosen) else (ENGINE,)
            with suppress(LLMGymError):
                found = cls(whole.sizes, names, action, whole.requests, tuple(settings.items()))
                if found.interface == interface:
                    return found
        raise LLMGymError(
            f"{shown(interface)} has parts without names: register them (llmgym.register_feature, "
            "register_action), and give names to gym.make."
        )

    @cached_property
    def interface(self) -> Interface:
        """The interface of the environments that the names stand for."""
        seen = make_observation(list(self.observation), Observation(self.sizes, self.requests))
        return Composed(seen, make_encoding(self.action, self.sizes, **dict(self.settings)))

    @property
    def parts(self) -> tuple[int, ...]:
        return self.interface.parts

    @property
    def features(self) -> tuple[str, ...]:
        return self.interface.names

    def look(self, view: View, memory: Any = None) -> Sight:
        return self.interface.look(view, memory)

    @property
    def remembers(self) -> bool:
        return True

    def start(self, view: View) -> Any:
        return self.interface.start(view)

    def decide(self, view: View, choice: jax.Array, memory: Any) -> tuple[Batch, Any]:
        return self.interface.decide(choice[0] if len(self.parts) == 1 else choice, view, memory)

    def batch(self, view: View, choice: jax.Array) -> Batch:
        """The batch of a choice at the start of an episode."""
        return self.decide(view, choice, self.start(view))[0]
