"""What a training run does: scenarios, learner, steps and seeds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from llmgym.agents import checkpoint
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.ppo import PPO
from llmgym.core.checks import keep_list, keep_number
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.envs.rewards import ServiceLevels
from llmgym.scenario import toml_writer
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.scenario import Scenario

CHUNK = 5
"""Iterations between two returns to Python: a run stops and resumes at multiples of it."""


@dataclass(frozen=True)
class Training:
    """What a training run does.

    Args:
        scenarios: one world each; several loads of a scenario are several scenarios. Fewer slots
            train faster; an engine that fills its table starts again, empty.
        settings: of the learner.
        steps: environment steps of each seed, rounded up to whole chunks of iterations.
        seeds: one policy each. A seed gives the same policy alone and beside others.
        patience: stop when the smoothed mean cost has not fallen by 0.1 % for more than this many
            iterations; None: never.
    """

    scenarios: tuple[Scenario, ...]
    settings: PPO = field(default_factory=PPO)
    steps: int = 10_000_000
    seeds: tuple[int, ...] = (0,)
    patience: int | None = None

    def __post_init__(self) -> None:
        keep_list(self, "scenarios", Scenario, "scenarios")
        keep_list(self, "seeds", what="seeds")
        if not isinstance(self.settings, PPO):
            raise LLMGymError(f"settings must be PPO(...), got {shown(self.settings)}.")
        if not self.scenarios or not self.seeds:
            raise LLMGymError("A training run needs at least one scenario and one seed.")
        keep_number(self, "steps", low=1, high=2**50, integer=True)
        seeds = tuple(
            check_number("seed", s, low=0, high=2**32 - 1, integer=True) for s in self.seeds
        )
        object.__setattr__(self, "seeds", seeds)
        if self.patience is not None:
            keep_number(self, "patience", low=1, integer=True)
        for scenario in self.scenarios:
            self._check(scenario)
        if self.settings.warm_up > 1 - 1 / self.iterations:
            raise LLMGymError(
                f"warm_up = {self.settings.warm_up:g} of {self.iterations} iterations leaves none in which "
                f"the policy learns. Use at most {1 - 1 / self.iterations:g}, or more steps."
            )

    def _check(self, scenario: Scenario) -> None:
        if scenario.is_network != isinstance(self.settings.choice, NetworkChoice):
            raise LLMGymError(
                f"Scenario {scenario.name!r} is {'a network' if scenario.is_network else 'no network'} "
                "of engines; networks are trained with a NetworkChoice, one engine with a TileChoice."
            )
        if scenario.demand.end_s is not None:
            raise LLMGymError(
                f"Scenario {scenario.name!r} replays a list of requests, which ends; train on one "
                "whose arrivals go on."
            )
        levels = self.settings.levels
        if levels is not None and (
            scenario.is_network or not scenario.has_targets or ServiceLevels.of(scenario) != levels
        ):
            raise LLMGymError(
                f"The service levels of the learner are not those of {scenario.name!r}: take "
                "ServiceLevels.of(scenario), and train on scenarios with the same targets."
            )
        others = [j.name for j in scenario.job_types if not isinstance(j.arrivals, Poisson)]
        if self.settings.control and others:
            raise LLMGymError(
                f"control=True is for Poisson arrivals, and those of {', '.join(others)} in "
                f"{scenario.name!r} are not; set control=False."
            )

    @property
    def iteration_steps(self) -> int:
        """Environment steps of an iteration."""
        return len(self.scenarios) * self.settings.num_envs * self.settings.steps

    @property
    def iterations(self) -> int:
        """Iterations of a run that is not stopped early."""
        return CHUNK * math.ceil(self.steps / self.iteration_steps / CHUNK)

    def header(self, seed: int) -> dict[str, Any]:
        """Everything that the policy of a seed depends on, as JSON."""
        return {
            "algorithm": "ppo",
            "scenarios": [toml_writer.dumps(s) for s in self.scenarios],
            "settings": asdict(self.settings),
            "steps": self.steps,
            "patience": self.patience,
            "seed": seed,
            "versions": checkpoint.versions(),
        }
