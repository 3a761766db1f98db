"""Problems with names: all that an environment is made of is fixed, for papers to cite.

The number behind ``-v`` rises when results change; the change log says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmgym.core.checks import check_name
from llmgym.envs.unknown import UnknownSettingError


@dataclass(frozen=True)
class Problem:
    """A problem.

    Attributes:
        id: for ``gym.make``.
        what: one sentence.
        settings: of the environment ``base``.
        loads: at which policies are judged.
        metric: by which; a key of ``Run.summary``, with a statistic where it has several.
        best: "low" or "high".
    """

    id: str
    what: str
    scenario: str
    load: tuple[float, float]
    action: str
    reward: str
    metric: str
    best: str
    loads: tuple[float, ...]
    base: str = "llmgym/Engine-v0"
    slots: int | str = "auto"
    action_settings: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What ``gym.make(base, ...)`` takes."""
        return {
            "scenario": self.scenario,
            "load": self.load,
            "action": self.action,
            "action_settings": dict(self.action_settings),
            "reward": self.reward,
            "slots": self.slots,
            "max_steps": 2048,
        }


LATENCY = (0.6, 0.7, 0.8, 0.9, 0.95)

PROBLEMS = MappingProxyType({problem.id: problem for problem in (
    Problem(
        "llmgym/Latency-v0", "Mean time in system of alike requests on one engine.",
        "latency", (0.6, 0.95), "tiles", "holding_cost", "e2e_ms.mean", "low", LATENCY,
    ),
    Problem(
        "llmgym/Bursty-v0", "The same with bursts above capacity and lulls between them.",
        "bursty", (0.4, 0.7), "tiles", "holding_cost", "e2e_ms.mean", "low", (0.4, 0.5, 0.6, 0.7),
    ),
    Problem(
        "llmgym/KV-v0", "Mean time in system where KV memory binds.",
        "kv", (0.6, 0.95), "tiles", "holding_cost", "e2e_ms.mean", "low", LATENCY,
    ),
    Problem(
        "llmgym/Goodput-v0", "Requests served within their targets, of two tenants on a small GPU.",
        "slo", (0.5, 1.1), "tokens", "goodput", "goodput_per_s", "high", (0.5, 0.7, 0.9, 1.0, 1.1),
        action_settings=(("quantum", 64),),
    ),
    Problem(
        "llmgym/Tenants-v0", "Time that requests are late, an interactive tenant beside one of batches.",
        "multi-tenant", (0.5, 0.95), "tokens", "tardiness", "goodput_per_s", "high", LATENCY,
        action_settings=(("quantum", 256),),
    ),
    Problem(
        "llmgym/RybkoStolyar-v0", "Two engines that the usual priorities make unstable below capacity.",
        "rybko-stolyar", (0.5, 0.95), "split", "holding_cost", "mean_in_system", "low", LATENCY,
        base="llmgym/Network-v0", slots=512,
    ),
)})  # fmt: skip
"""The problems by id."""


def settings_of(problem: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a problem. Raises UnknownSettingError, a TypeError, where one of them is given anew."""
    check_name("problem", problem, PROBLEMS)
    found = PROBLEMS[problem]
    if given:
        name = next(iter(given))
        raise UnknownSettingError(
            f"{problem} got an unexpected keyword argument {name!r}. All its settings are fixed, so that "
            f"results can be compared; gym.make({found.base!r}, ...) takes others."
        )
    return found.settings
