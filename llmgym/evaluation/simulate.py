"""``simulate``: run a policy on a scenario and look at everything that happened."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from llmgym import dynamics, policies
from llmgym import stream as streams
from llmgym.dynamics import Physics
from llmgym.errors import LLMGymError, UnservableWarning, check_number
from llmgym.evaluation import rollout as rollouts
from llmgym.evaluation.statistics import latency_summary
from llmgym.scenario import Scenario, as_scenario
from llmgym.state import State
from llmgym.workload import Replay

Progress = Callable[[float], None]
"""Called with the fraction of a run that is done."""


@dataclass(frozen=True)
class Run:
    """The result of ``simulate``.

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
        raw = self.raw
        ran = (raw["prefill_tokens"] + raw["decode_tokens"]) > 0
        env, step = np.nonzero(ran.T)
        columns: dict[str, Any] = {"env": env, "engine": self.scenario.engine.name}
        for name, source in (("start_ms", "start"), ("duration_ms", "duration")):
            columns[name] = raw[source][step, env] * self.tick_ms
        for name in ("prefill_tokens", "decode_tokens", "requests"):
            columns[name] = raw[name][step, env]
        return pd.DataFrame(columns)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every request that arrived and was not dropped, by environment and time of arrival.

        Columns: env job stage engine job_type prefill_tokens decode_tokens arrival_ms first_token_ms
        finish_ms (NaN where unfinished) preemptions. ``job`` counts within the job type.
        """
        raw = self.raw
        frame = pd.DataFrame(
            {
                "env": raw["request_env"],
                "job": raw["request_number"],
                "stage": 0,
                "engine": self.scenario.engine.name,
                "job_type": np.array(self.scenario.class_names)[raw["request_class"]],
                "prefill_tokens": raw["request_prefill"],
                "decode_tokens": raw["request_decode"],
                "arrival_ms": raw["request_arrival"] * self.tick_ms,
                "first_token_ms": raw["request_first"] * self.tick_ms,
                "finish_ms": raw["request_finish"] * self.tick_ms,
                "preemptions": 0,
            }
        )
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

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Rates and averages over all environments after the warm-up, counts at the end.

        requests_per_s and tokens_per_s are completed or served per second; mean_in_system is a time
        average (Little's law: starved requests count); in_system, backlog_tokens and unfinished are at
        the end, per environment; dropped is a total. ttft_ms, tpot_ms, e2e_ms: {mean, p50, p90, p99,
        low, high} of the requests finished after the warm-up, low and high the 95 % interval of the
        mean over environments (NaN for one).
        """
        raw, tick = self.raw, self.tick_ms
        elapsed_s = (raw["end_clock"] - raw["warm_clock"]).sum() * tick / 1000
        elapsed_ticks = max(raw["end_clock"].sum() - raw["warm_clock"].sum(), 1)

        def during(what: str) -> float:
            return float((raw[f"end_{what}"] - raw[f"warm_{what}"]).sum())

        done = ~np.isnan(raw["request_finish"])
        # A request that finished at the very end of the warm-up is counted in it.
        warm = raw["request_finish"] > raw["warm_clock"][raw["request_env"]]
        chosen = done & warm
        first, finish, arrival = (
            raw[f"request_{c}"][chosen] * tick for c in ("first", "finish", "arrival")
        )
        tokens, env = raw["request_decode"][chosen], raw["request_env"][chosen]
        several = tokens > 1
        tpot = (finish - first)[several] / (tokens[several] - 1)
        return {
            "requests_per_s": during("completed") / elapsed_s if elapsed_s > 0 else 0.0,
            "tokens_per_s": during("served") / elapsed_s if elapsed_s > 0 else 0.0,
            "mean_in_system": during("request_ticks") / float(elapsed_ticks),
            "backlog_tokens": float(raw["end_backlog"].mean()),
            "in_system": float(raw["end_present"].mean()),
            "arrived": int(raw["end_arrived"].sum()),
            "completed": int(raw["end_completed"].sum()),
            "dropped": int(raw["end_dropped"].sum()),
            "unfinished": float(raw["end_present"].mean()),
            "batches": int(raw["end_batches"].sum()),
            "elapsed_s": float(raw["end_clock"].mean() * tick / 1000),
            "ttft_ms": latency_summary(first - arrival, env, self.num_envs),
            "tpot_ms": latency_summary(tpot, env[several], self.num_envs),
            "e2e_ms": latency_summary(finish - arrival, env, self.num_envs),
        }


def simulate(
    scenario: Scenario | str,
    policy: policies.PolicyLike,
    load: float | None = None,
    duration_s: float | None = None,
    num_envs: int = 1,
    seed: int = 0,
    record: bool = True,
    warmup_s: float = 0.0,
    progress: Progress | None = None,
) -> Run:
    """Run ``policy`` on ``num_envs`` independent replications of ``scenario``.

    Args:
        scenario: a Scenario or the name of one.
        policy: a name, an object of llmgym.baselines or llmgym.agents, or a function
            ``policy(key, view) -> Batch``.
        load: fraction of the LP capacity; None: the scenario's own arrival rate.
        duration_s: simulated seconds; None is possible for a replay, which then runs to its end.
        record: keep every request, for ``requests`` and the latencies; without it only counts and
            trajectories are kept, which is faster.
        warmup_s: simulated seconds that the averages of the summary leave out.

    Raises LLMGymError on bad arguments. Warns (UnservableWarning) where the policy can never serve some
    requests of the scenario.
    """
    scenario = as_scenario(scenario).at_load(load)
    chosen = policies.resolve(policy)
    _check_arguments(scenario, duration_s, num_envs, seed, warmup_s)
    problem = policies.check(chosen, scenario.longest_prompt, scenario.engine.token_budget)
    if problem:
        warnings.warn(problem, UnservableWarning, stacklevel=2)
    physics = dynamics.lower(scenario)
    key = rollouts.keys(seed, num_envs)
    ticks_per_s = 1000 / scenario.tick_ms
    horizon = rollouts.FOREVER if duration_s is None else round(duration_s * ticks_per_s)
    state, zero = rollouts.start(physics, key), _levels(rollouts.start(physics, key))
    parts: list[dict[str, np.ndarray]] = []
    warm = zero
    for stop in [round(warmup_s * ticks_per_s), horizon] if warmup_s > 0 else [horizon]:
        for after, steps in rollouts.rollout(physics, chosen, state, key, stop, detail=record):
            state = after
            parts.append(_host(steps))
            if progress is not None and horizon < rollouts.FOREVER:
                progress(min(float(state.clock.to_numpy().min()) / horizon, 1.0))
        warm = _levels(state) if stop < horizon else warm
    raw = {
        k: np.concatenate([p[k] for p in parts]) for k in parts[0] if not k.startswith("request_")
    }
    raw |= {f"warm_{k}": v for k, v in warm.items()}
    raw |= {f"end_{k}": v for k, v in _levels(state).items()}
    raw |= _requests(physics, state, [p for p in parts if record], key)
    return Run(scenario, policies.name_of(policy), seed, num_envs, warmup_s, raw)


def _check_arguments(
    scenario: Scenario, duration_s: float | None, num_envs: int, seed: int, warmup_s: float
) -> None:
    check_number("num_envs", num_envs, low=1, integer=True)
    check_number("seed", seed, low=0, high=2**32 - 1, integer=True)
    check_number("warmup_s", warmup_s, low=0)
    if duration_s is None:
        if not isinstance(scenario.workload, Replay):
            raise LLMGymError("duration_s is needed: this scenario's arrivals never end.")
        return
    check_number("duration_s", duration_s, above=0)
    if warmup_s >= duration_s:
        raise LLMGymError(f"warmup_s = {warmup_s:g} must be below duration_s = {duration_s:g}.")


def _levels(state: State) -> dict[str, np.ndarray]:
    """The running totals of every environment, as int64."""
    totals = state.totals
    served = totals.prefill_tokens.to_numpy() + totals.decode_tokens.to_numpy()
    plain = {
        "backlog": state.backlog,
        "present": state.present,
        "arrived": totals.arrived,
        "completed": totals.completed,
        "dropped": totals.dropped,
        "batches": totals.batches,
    }
    return {k: np.asarray(v).astype(np.int64) for k, v in plain.items()} | {
        "clock": state.clock.to_numpy(),
        "served": served,
        "request_ticks": totals.request_ticks.to_numpy(),
    }


def _host(steps: rollouts.Steps) -> dict[str, np.ndarray]:
    """A chunk as host arrays; finished requests as flat columns."""
    start = steps.start.to_numpy()
    kept: dict[str, np.ndarray] = {"start": start}
    for name in ("duration", "prefill_tokens", "decode_tokens", "requests", "present", "backlog"):
        kept[name] = np.asarray(getattr(steps, name))
    if steps.finished is not None:
        step, row, env = np.nonzero(steps.finished >= 0)
        at = (step, row, env)
        finish = start[step, env] + kept["duration"][step, env]
        columns = (steps.finished, steps.job_class, steps.arrival, steps.first_token)
        kept |= _columns(env, [np.asarray(column)[at] for column in columns], finish)
        kept["request_finish"] = finish.astype(float)
    return kept


def _columns(env: np.ndarray, details: list[np.ndarray], now: np.ndarray) -> dict[str, np.ndarray]:
    """Request columns from number, class, arrival and first token of each.

    The low clock words of the two times become absolute: all lie less than 2**32 ticks before ``now``.
    """
    number, job_class, arrival, first = details

    def absolute(low: np.ndarray) -> np.ndarray:
        return now - ((now - low.astype(np.int64)) & 0xFFFFFFFF)

    return {
        "request_env": env,
        "request_number": number,
        "request_class": job_class,
        "request_arrival": absolute(arrival),
        "request_first": absolute(first).astype(float),
    }


def _requests(
    physics: Physics, state: State, parts: list[dict[str, np.ndarray]], key: jax.Array
) -> dict[str, np.ndarray]:
    """All requests of the run: those that finished, then those still in the table."""
    table = {name: np.asarray(column) for name, column in vars(state.table).items()}
    live = (table["prefill"] > 0) | (table["decode"] > 0)
    row, env = np.nonzero(live) if parts else (np.zeros(0, int), np.zeros(0, int))
    at = (row, env)
    details = [table[name][at] for name in ("request", "job_class", "arrival", "first_token")]
    left = _columns(
        env,
        details,
        state.clock.to_numpy()[env],
    )
    produced = table["decode"][at] < table["output"][at]
    left["request_first"] = np.where(produced, left["request_first"], np.nan)
    left["request_finish"] = np.full(row.shape, np.nan)
    columns = {k: np.concatenate([*(p[k] for p in parts), v]) for k, v in left.items()}
    words = jax.random.key_data(key)[columns["request_env"]].T.astype(jnp.uint32)
    prefill, decode = streams.lengths_of(
        physics.lengths,
        words,
        jnp.asarray(columns["request_class"], jnp.int32),
        jnp.asarray(columns["request_number"], jnp.int32),
    )
    return columns | {
        "request_prefill": np.asarray(prefill),
        "request_decode": np.asarray(decode),
    }
