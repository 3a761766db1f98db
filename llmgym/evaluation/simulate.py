"""``simulate``: run a policy on a scenario and look at everything that happened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd

from llmgym.core.checks import check_callable, check_flag, check_seed
from llmgym.core.errors import (
    LLMGymError,
    TableFullError,
    UnservableWarning,
    answers_other_names,
    check_number,
)
from llmgym.core.precision import in_32_bits
from llmgym.core.user_code import warn
from llmgym.engine import simulator
from llmgym.engine import stream as streams
from llmgym.evaluation import policies
from llmgym.evaluation import rollout as rollouts
from llmgym.evaluation.limits import check_duration, check_envs, check_work
from llmgym.evaluation.metrics.fairness import fairness
from llmgym.evaluation.metrics.jobs import job_table, stage_table
from llmgym.evaluation.metrics.service_levels import service_levels
from llmgym.evaluation.run import Record
from llmgym.evaluation.statistics import latency_summary
from llmgym.scenario.scenario import Scenario
from llmgym.theory.capacity import at_load

Progress = Callable[[float], None]
"""Called with the fraction of a run that is done."""


@dataclass(frozen=True)
class Run(Record):
    """The result of ``simulate``: its tables (see ``Record``), and what they say."""

    @cached_property
    def jobs(self) -> pd.DataFrame:
        """Every job that finished, from its calls: see ``llmgym.evaluation.metrics.jobs``."""
        return job_table(self)

    @cached_property
    def stages(self) -> pd.DataFrame:
        """Every stage: waiting, service and its share of the critical path; see the same module."""
        return stage_table(self)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Rates and averages over all environments after the warm-up, counts at the end.

        requests_per_s and tokens_per_s are completed or served per second; mean_in_system is a time
        average (Little's law: starved requests count); in_system, backlog_tokens and unfinished are at
        the end, per environment; dropped is a total. ttft_ms, tpot_ms, e2e_ms: {mean, p50, p90, p99,
        low, high} of the requests finished after the warm-up, low and high the 95 % interval of the
        mean over environments (NaN for one). Where the scenario has targets, also goodput_per_s,
        slo_attainment and slo, of jobs also job_slo: see ``metrics.service_levels``. Where it weighs
        the service to its clients, also fairness: see ``metrics.fairness``.
        """
        raw, tick = self.raw, self.tick_ms
        elapsed_s = (raw["end_clock"] - raw["warm_clock"]).sum() * tick / 1000
        elapsed_ticks = max(raw["end_clock"].sum() - raw["warm_clock"].sum(), 1)

        def during(what: str) -> float:
            return float((raw[f"end_{what}"] - raw[f"warm_{what}"]).sum())

        done = ~np.isnan(raw["request_finish"])
        # A request that finished at the very end of the warm-up is counted in it.
        warm = raw["request_finish"] > raw["warm_clock"][raw["request_env"]]
        delays = raw["request_station"] >= len(self.scenario.engine_names)
        chosen = done & warm & ~delays
        first, finish, arrival = (
            raw[f"request_{c}"][chosen] * tick for c in ("first", "finish", "arrival")
        )
        tokens, env = raw["request_decode"][chosen], raw["request_env"][chosen]
        several = tokens > 1
        tpot = (finish - first)[several] / (tokens[several] - 1)
        found = {
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
            "e2e_ms": self._end_to_end(finish - arrival, env),
        }
        found |= service_levels(self) if self.judged else {}
        return found | ({} if self.fairness is None else {"fairness": self.fairness})

    @property
    def judged(self) -> bool:
        """Whether requests were recorded, and they or their jobs have targets to be judged by."""
        demand, raw = self.scenario.demand, self.raw
        recorded = raw["request_env"].size > 0 or not raw["end_arrived"].any()
        return recorded and (demand.has_targets or any(demand.job_targets_ms))

    @cached_property
    def fairness(self) -> dict[str, Any] | None:
        """Service to each client and the largest gap; None where the scenario does not weigh it."""
        return fairness(self) if "charged" in self.raw else None

    def _end_to_end(self, calls_ms: np.ndarray, env: np.ndarray) -> dict[str, float]:
        """Latency of jobs; where every job is one call that of the calls."""
        if not self.scenario.is_network:
            return latency_summary(calls_ms, env, self.num_envs)
        warm_ms = self.raw["warm_clock"] * self.tick_ms
        jobs = self.jobs[self.jobs.finish_ms.to_numpy() > warm_ms[self.jobs.env.to_numpy()]]
        return latency_summary(jobs.e2e_ms.to_numpy(), jobs.env.to_numpy(), self.num_envs)


@in_32_bits
@answers_other_names
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
    burst: int = 0,
    refuse_drops: bool = False,
) -> Run:
    """Run ``policy`` on ``num_envs`` independent replications of ``scenario``.

    Args:
        scenario: a Scenario or the name of one.
        policy: a name, an object of llmgym.baselines or llmgym.agents, a function
            ``policy(key, view) -> Batch``, or one with a memory (``baselines.policy.RememberingPolicy``).
        load: fraction of the LP capacity; None: the scenario's own arrival rate.
        duration_s: simulated seconds; None is possible for a replay, which then runs to its end.
        num_envs, seed: number of replications, and the seed of all that is random.
        record: keep every request, for ``requests`` and the latencies; without it only counts and
            trajectories are kept, which is faster.
        warmup_s: simulated seconds that the averages of the summary leave out.
        progress: called with the fraction that is done, where ``duration_s`` is given.
        burst: requests of each job type that are there at time 0: a hot start.
        refuse_drops: stop with TableFullError once a request is dropped; else drops are counted.

    Raises LLMGymError on bad arguments. Warns (UnservableWarning) of requests that can never be served.
    """
    scenario = at_load(scenario, load)
    chosen = policies.resolve(policy)
    duration_s, warmup_s = _times(scenario, duration_s, warmup_s)
    num_envs, seed = check_envs("num_envs", num_envs), check_seed(seed)
    burst = check_number("burst", burst, low=0, high=scenario.slots, integer=True)
    _check_switches(progress, record=record, refuse_drops=refuse_drops)
    check_work(scenario, num_envs, duration_s, record)
    if problem := policies.check(chosen, scenario):
        warn(problem, UnservableWarning)
    physics = simulator.lower(scenario, burst)
    key = rollouts.keys(seed, num_envs)
    ticks_per_s = 1000 / scenario.tick_ms
    horizon = rollouts.FOREVER if duration_s is None else round(duration_s * ticks_per_s)
    carry = rollouts.begin(physics, chosen, key)
    state, warm = carry.state, _levels(carry.state)
    parts: list[dict[str, np.ndarray]] = []
    for stop in [round(warmup_s * ticks_per_s), horizon] if warmup_s > 0 else [horizon]:
        for after, steps in rollouts.rollout(physics, chosen, carry, key, stop, detail=record):
            carry, state = after, after.state
            if refuse_drops and np.any(state.totals.dropped):
                raise _table_full(scenario)
            parts.append(_host(steps))
            if progress is not None and horizon < rollouts.FOREVER:
                progress(min(float(state.clock.to_numpy().min()) / horizon, 1.0))
        warm = _levels(state) if stop < horizon else warm
    kept = [k for k in parts[0] if not k.startswith("request_")]
    raw = {k: np.concatenate([p[k] for p in parts]) for k in kept} | _ends(warm, _levels(state))
    raw |= _requests(physics, state, [p for p in parts if record], key)
    return Run(scenario, policies.name_of(policy), seed, num_envs, warmup_s, raw)


def _check_switches(progress: Any, **flags: Any) -> None:
    check_callable("progress", progress)
    for name, flag in flags.items():
        check_flag(name, flag)


def _ends(warm: dict[str, np.ndarray], end: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The totals at the end of the warm-up and of the run, by name."""
    return {f"warm_{k}": v for k, v in warm.items()} | {f"end_{k}": v for k, v in end.items()}


def _times(
    scenario: Scenario, duration_s: float | None, warmup_s: float
) -> tuple[float | None, float]:
    """The times of a run, as plain numbers. Raises LLMGymError where they do not fit."""
    warmup_s = check_number("warmup_s", warmup_s, low=0)
    if duration_s is None:
        if scenario.demand.end_s is None:
            raise LLMGymError("duration_s is needed: this scenario's arrivals never end.")
        return None, warmup_s
    duration_s = check_duration("duration_s", duration_s, scenario)
    if warmup_s >= duration_s:
        raise LLMGymError(f"warmup_s = {warmup_s:g} must be below duration_s = {duration_s:g}.")
    return duration_s, warmup_s


def _table_full(scenario: Scenario) -> TableFullError:
    return TableFullError(
        f"The table of {scenario.slots} requests is full; use more slots, or less load."
    )


def _levels(state: Any) -> dict[str, np.ndarray]:
    """The running totals of every environment, as int64."""
    totals = state.totals
    served = totals.prefill_tokens.to_numpy() + totals.decode_tokens.to_numpy()
    plain = {
        "present": state.present,
        "arrived": totals.arrived,
        "completed": totals.completed,
        "dropped": totals.dropped,
        "batches": totals.batches,
    }
    if totals.dropped_of_class is not None:
        plain["dropped_of_class"] = totals.dropped_of_class
    return {k: np.asarray(v).astype(np.int64) for k, v in plain.items()} | {
        "clock": state.clock.to_numpy(),
        "backlog": state.backlog.to_numpy(),
        "served": served,
        "request_ticks": totals.request_ticks.to_numpy(),
    }


def _host(steps: rollouts.Steps) -> dict[str, np.ndarray]:
    """A chunk as host arrays; finished requests as flat columns."""
    start = steps.start.to_numpy()
    kept: dict[str, np.ndarray] = {"start": start, "backlog": steps.backlog.to_numpy()}
    of_batches = ("batch_ticks", "prefill_tokens", "decode_tokens", "requests")
    for name in ("duration", *of_batches, "present", "found"):
        kept[name] = np.asarray(getattr(steps, name))
    if steps.service is not None:
        kept |= {k: np.asarray(v) for k, v in vars(steps.service).items()}
    if steps.finished is not None:
        assert steps.details is not None
        at = np.nonzero(steps.finished)
        step, env = at[0], at[-1]
        finish = start[step, env] + kept["duration"][step, env]
        details = {name: np.asarray(column)[at] for name, column in steps.details.items()}
        kept |= _columns(env, _station(at[1:]), details, finish)
        kept["request_finish"] = finish.astype(float)
    return kept


def _station(at: tuple[np.ndarray, ...]) -> np.ndarray:
    """The station of entries (row, [station,] env) of a table."""
    return at[1] if len(at) == 3 else np.zeros_like(at[0])


def _columns(
    env: np.ndarray, station: np.ndarray, details: dict[str, np.ndarray], now: np.ndarray
) -> dict[str, np.ndarray]:
    """Request columns from those of the table.

    Clock words of 48 bits become absolute times: all lie less than 2**48 ticks before ``now``.
    """

    def absolute(low: str, high: str) -> np.ndarray:
        words = (details[high].astype(np.int64) << 32) | details[low].astype(np.int64)
        return now - ((now - words) & 0xFFFFFFFFFFFF)

    found = {
        "request_env": env,
        "request_station": station,
        "request_number": details["request"],
        "request_class": details["job_class"],
        "request_arrival": absolute("arrival", "arrival_high"),
        "request_first": absolute("first_token", "first_high").astype(float),
    }
    for name in ("job_arrival", "service"):
        if name in details:
            found[f"request_{name}"] = absolute(name, f"{name}_high").astype(float)
    kept = {"prefill": "prompt", "decode": "output", "visit": "visit", "preemptions": "preemptions"}
    for name, source in kept.items():
        if source in details:
            found[f"request_{name}"] = details[source]
    return found


def _requests(
    physics: Any, state: Any, parts: list[dict[str, np.ndarray]], key: jax.Array
) -> dict[str, np.ndarray]:
    """All requests of the run: those that finished, then those still in the table."""
    table = {name: np.asarray(column) for name, column in state.table.details().items()}
    live, left_decode = np.asarray(state.table.live), np.asarray(state.table.decode)
    at = np.nonzero(live if parts else np.zeros_like(live))
    left = _columns(
        at[-1],
        _station(at),
        {name: column[at] for name, column in table.items()},
        state.clock.to_numpy()[at[-1]],
    )
    produced = left_decode[at] < np.asarray(state.table.output)[at]
    left["request_first"] = np.where(produced, left["request_first"], np.nan)
    if "request_service" in left:
        begun = np.asarray(state.table.started | (state.table.planned > 0))[at]
        left["request_service"] = np.where(begun, left["request_service"], np.nan)
    left["request_finish"] = np.full(at[0].shape, np.nan)
    columns = {k: np.concatenate([*(p[k] for p in parts), v]) for k, v in left.items()}
    if "request_prefill" in columns:  # a network keeps them
        return _without_delay_tokens(physics, columns)
    prefill, decode = _lengths(physics, key, columns)
    return columns | {"request_prefill": prefill, "request_decode": decode}


_lengths_of = jax.jit(streams.lengths_of)


def _lengths(
    physics: Any, key: jax.Array, columns: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output tokens of the requests, drawn again from their numbers."""
    count = len(columns["request_number"])
    # Padded, so that one program does for many counts.
    padding = (0, (1 << max(count - 1, 255).bit_length()) - count)
    env, job_class, number = (
        np.pad(columns[f"request_{name}"], padding) for name in ("env", "class", "number")
    )
    words = np.asarray(jax.random.key_data(key), np.uint32)[env].T
    drawn = _lengths_of(physics.lengths, words, job_class.astype(np.int32), number.astype(np.int32))
    prefill, decode = (np.asarray(tokens)[:count] for tokens in drawn)
    return prefill, decode


def _without_delay_tokens(physics: Any, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A delay has no tokens and no service: the table only keeps its context there."""
    delay = np.array(physics.plan.is_delay)[columns["request_class"]]
    blank = {k: np.where(delay, 0, columns[f"request_{k}"]) for k in ("prefill", "decode")}
    times = {k: np.where(delay, np.nan, columns[f"request_{k}"]) for k in ("first", "service")}
    return columns | {f"request_{k}": v for k, v in (blank | times).items()}
