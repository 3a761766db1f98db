"""What both the measurements of the study ``optimum`` and its page use."""

from __future__ import annotations

from typing import Any

SEARCH_RATES = (10.0, 12.0, 13.0)
"""Requests per second over which the tile index is tuned."""

SIMULATION: dict[str, Any] = {"num_envs": 32, "duration_s": 800.0, "warmup_s": 100.0, "seed": 7}
LEARNED = "ppo-latency"
