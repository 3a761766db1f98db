"""The error for a setting that an environment does not have."""

from __future__ import annotations

from llmgym.core.errors import LLMGymError


class UnknownSettingError(LLMGymError, TypeError):
    """A setting that is not there: a TypeError in Python's own words, which tools probe for."""
