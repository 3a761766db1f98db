"""The environments by id."""

from __future__ import annotations

import inspect
from typing import Any

from llmgym.core.checks import check_name
from llmgym.core.errors import LLMGymError, unknown
from llmgym.envs.functional import FunctionalEngine, FunctionalNetwork
from llmgym.envs.problems import PROBLEMS, settings_of
from llmgym.envs.unknown import UnknownSettingError


def ids() -> dict[str, type[FunctionalEngine]]:
    """The environments by id."""
    return {"llmgym/Engine-v0": FunctionalEngine, "llmgym/Network-v0": FunctionalNetwork}


def functional(env_id: str, **settings: Any) -> FunctionalEngine:
    """The functional form of an environment: ``functional("llmgym/Engine-v0", load=0.9)``.

    Settings are those of ``gym.make``; a problem with a name has none.

    Raises LLMGymError for an unknown id or setting; the latter is a
    TypeError as well.
    """
    known_ids = ids()
    check_name("environment", env_id, (*known_ids, *PROBLEMS))
    if env_id in PROBLEMS:
        env_id, settings = PROBLEMS[env_id].base, settings_of(env_id, settings)
    known = inspect.signature(known_ids[env_id]).parameters
    for name in settings:
        if name not in known:
            hint = unknown(f"setting of {env_id}:", name, known)
            raise UnknownSettingError(
                f"{known_ids[env_id].__name__}() got an unexpected keyword argument {name!r}. {hint}"
            )
    return known_ids[env_id](**settings)


def array_form(env_id: str, **settings: Any) -> FunctionalEngine:
    """The same for the Gymnasium environments, whose actions are arrays."""
    made = functional(env_id, **settings)
    if made.action_space is None:
        raise LLMGymError(
            'action="batch" is for llmgym.functional; '
            "in Gymnasium use tiles, split, tokens, scores or budget."
        )
    return made
