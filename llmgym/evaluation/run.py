"""What a run recorded: arrays of steps and requests, and the tables made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from llmgym.scenario.scenario import Scenario


@dataclass(frozen=True)
class Record:
    """What a run recorded, with its tables; ``Run`` adds what can be said about it.

    Attributes:
        scenario: what ran, at its final arrival rate.
        policy: label of the policy.
        seed, num_envs: replications differ in their arrivals only.
        warmup_s: time left out of the averages of ``summary``.
        raw: arrays behind the tables: per step ``start``, ``duration`` (ticks) and so on (steps, envs),
            per request ``request_*`` columns, per environment ``end_*`` values.
    """

    scenario: Scenario
    policy: str
    seed: int
    num_envs: int
    warmup_s: float
    raw: dict[str, np.ndarray]

    @property
    def tick_ms(self) -> float:
        """Milliseconds of a clock tick."""
        return self.scenario.tick_ms

    @cached_property
    def batches(self) -> pd.DataFrame:
        """Every batch run: env engine start_ms duration_ms prefill_tokens decode_tokens requests."""
        raw = {k: v[:, None] if v.ndim == 2 else v for k, v in self.raw.items() if v.ndim >= 2}
        ran = raw["batch_ticks"] > 0
        env, step, engine = np.nonzero(np.moveaxis(ran, -1, 0))
        at = (step, engine, env)
        columns: dict[str, Any] = {
            "env": env,
            "engine": _names(self.scenario.engine_names, engine),
            "start_ms": raw["start"][step, 0, env] * self.tick_ms,
            "duration_ms": raw["batch_ticks"][at] * self.tick_ms,
        }
        for name in ("prefill_tokens", "decode_tokens", "requests"):
            columns[name] = raw[name][at]
        return pd.DataFrame(columns)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every request that arrived and was not dropped, by environment and time of arrival.

        Columns: env job stage engine job_type prefill_tokens decode_tokens arrival_ms first_token_ms
        finish_ms (NaN where unfinished) preemptions. ``job`` counts within the job type. Of a network
        every call is a request, and there are also job_arrival_ms, service_ms (start of its first
        batch) and visit; delays are among them, with no engine and no tokens.
        """
        raw = self.raw
        classes = [(one.job, one.stage) for one in self.scenario.classes]
        job_type, stage = np.array(classes)[raw["request_class"]].T
        frame = pd.DataFrame(
            {
                "env": raw["request_env"],
                "job": raw["request_number"],
                "stage": stage,
                "engine": _names((*self.scenario.engine_names, ""), raw["request_station"]),
                "job_type": _names(self.scenario.job_names, job_type),
                "prefill_tokens": raw["request_prefill"],
                "decode_tokens": raw["request_decode"],
                "arrival_ms": raw["request_arrival"] * self.tick_ms,
                "first_token_ms": raw["request_first"] * self.tick_ms,
                "finish_ms": raw["request_finish"] * self.tick_ms,
                "preemptions": raw.get("request_preemptions", 0),
            }
        )
        for name, what in (("job_arrival_ms", "job_arrival"), ("service_ms", "service")):
            if f"request_{what}" in raw:
                frame[name] = raw[f"request_{what}"] * self.tick_ms
        if "request_visit" in raw:
            frame["visit"] = raw["request_visit"]
        order = np.lexsort((raw["request_number"], raw["request_arrival"], raw["request_env"]))
        return frame.iloc[order].reset_index(drop=True)

    @cached_property
    def trajectory(self) -> pd.DataFrame:
        """The system at every decision: env time_ms in_system backlog_tokens."""
        raw = self.raw
        env, step = np.nonzero((raw["duration"] > 0).T)
        return pd.DataFrame(
            {
                "env": env,
                "time_ms": raw["start"][step, env] * self.tick_ms,
                "in_system": raw["present"][step, env],
                "backlog_tokens": raw["backlog"][step, env],
            }
        )


def _names(names: Sequence[str], index: np.ndarray) -> np.ndarray:
    """The name at each index, as objects: an array of strings would drop NULs at the end."""
    return np.array(names, dtype=object)[index]
