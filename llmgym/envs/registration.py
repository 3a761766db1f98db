"""The environments by id."""

from __future__ import annotations

import inspect
from typing import Any

from llmgym.core.checks import check_name
from llmgym.core.errors import LLMGymError, unknown
from llmgym.envs.functional import FunctionalEngine
from llmgym.envs.network import FunctionalNetwork


def ids() -> dict[str, type[FunctionalEngine]]:
    """The environments by id."""
    return {"llmgym/Engine-v0": FunctionalEngine, "llmgym/Network-v0": FunctionalNetwork}


def functional(env_id: str, **settings: Any) -> FunctionalEngine:
    """The functional form of an environment: ``functional("llmgym/Engine-v0", load=0.9)``.

    Settings are those of ``gym.make``. Raises LLMGymError for an unknown id or setting.
    """
    known_ids = ids()
    check_name("environment", env_id, known_ids)
    known = inspect.signature(known_ids[env_id]).parameters
    for name in settings:
        if name not in known:
            raise unknown(f"setting of {env_id}:", name, known)
    return known_ids[env_id](**settings)


def array_form(env_id: str, **settings: Any) -> FunctionalEngine:
    """The same for the Gymnasium environments, whose actions are arrays."""
    action = settings.get("action")
    if isinstance(action, str) and action == "batch":
        raise LLMGymError(
            'action="batch" is for llmgym.functional; '
            "in Gymnasium use tiles, split, tokens, scores or budget."
        )
    return functional(env_id, **settings)
