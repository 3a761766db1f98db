"""Recorded runs of vLLM: the scenario of a run, and how far a simulation of it is from what was measured.

A run is a folder with two files, as the benchmark of LLMServingSim writes them: requests.jsonl (see
``read_trace``; here also request_id, first_token_ts and last_token_ts, on the clock of queued_ts) and
meta.json, the settings of the engine. What they ask of vLLM's scheduler is simulated, but not that it
plans one iteration ahead (asynchronous scheduling) or shares equal prompt prefixes. ::

    run = read_vllm_run("RTX4090_Llama-3.1-8B")
    simulated = simulate(run.scenario("rtx4090-llama-3.1-8b"), run.policy)
    print(compare(run, simulated))
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from llmgym.baselines.vllm_v1 import VLLMV1
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.reading import BadJSONError, parse_json, read_bytes
from llmgym.scenario.batch_time import BatchTime
from llmgym.scenario.engine import Engine
from llmgym.scenario.kv_cache import KVCache
from llmgym.scenario.replay import Replay
from llmgym.scenario.scenario import Scenario
from llmgym.scenario.toml_tables import load_batch_time
from llmgym.traces.readers import FORMATS
from llmgym.traces.rows import first_line, opened, read_rows

if TYPE_CHECKING:
    from llmgym.evaluation.simulate import Run

REQUESTS = replace(
    FORMATS["vllm"],
    columns=(
        ("queued_ts",),
        ("input_toks",),
        ("output_toks",),
        ("first_token_ts",),
        ("last_token_ts",),
        ("request_id",),
    ),
)
"""The columns of a run: its request file needs every time on one clock."""

SCHEDULER = ("resolved_config.scheduler_config", "engine_kwargs")
CACHE = ("kv_cache", "resolved_config.cache_config")
PARALLEL = ("resolved_config.parallel_config", "engine_kwargs")
"""Tables of meta.json that may hold a setting; the first that has it counts."""

MODELLED = {
    "data_parallel_size": (PARALLEL, 1),
    "pipeline_parallel_size": (PARALLEL, 1),
    "policy": (SCHEDULER, "fcfs"),
    "prefill_schedule_interval": (SCHEDULER, 1),
    "speculative_config": (("resolved_config",), None),
}
"""Settings that may have one value only, which they also have where meta.json leaves them out."""


@dataclass(frozen=True, eq=False)
class VLLMRun:
    """What arrived in a recorded run, the settings of its engine, and what was measured.

    Attributes:
        name: of its folder.
        replay: the requests, by the time at which they were queued.
        token_budget, max_num_seqs, kv_cache: those of the engine; vLLM's null block is not counted.
        policy: vLLM's scheduler with the options of the run.
        measured: a row for each request of the replay: request_id, ttft_ms, tpot_ms (NaN for outputs
            of one token), e2e_ms, all from queued_ts.
        peak: most requests that were in the system at once.
    """

    name: str
    replay: Replay
    token_budget: int
    max_num_seqs: int
    kv_cache: KVCache
    policy: VLLMV1
    measured: pd.DataFrame
    peak: int

    def scenario(self, batch_time: BatchTime | str | Path, slots: int | None = None) -> Scenario:
        """The run as a scenario.

        Args:
            batch_time: that of its GPU and model: an object, a name in PRESETS, or a TOML file.
            slots: by default twice ``peak``, but no more than there are requests, or 32,768.

        Raises:
            LLMGymError: an unknown batch time or a bad file (see ``load_batch_time``).
        """
        known = batch_time if isinstance(batch_time, BatchTime) else load_batch_time(batch_time)
        engine = Engine(
            known,
            self.token_budget,
            self.max_num_seqs,
            "resident",
            kv_cache=self.kv_cache,
            first_token="prefill",
        )
        if slots is None:
            slots = min(len(self.replay), 2 * self.peak, 2**15)
        return Scenario((engine,), self.replay, slots=slots, name=self.name)


def read_vllm_run(folder: str | Path) -> VLLMRun:
    """The run recorded in a folder.

    Raises:
        LLMGymError: a missing or damaged file, setting, row or key, requests that did not finish,
            or a setting of vLLM that is not modelled (such as data parallelism).
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise LLMGymError(f"folder must name a recorded run, got {shown(folder)}.")
    meta, path = _read_meta(Path(folder) / "meta.json"), Path(folder) / "requests.jsonl"
    with opened(path) as file:
        rows = read_rows(path, REQUESTS, first_line(path, file), file)
    queued, first, last = (rows.numbers(column) for column in (0, 3, 4))
    rows.refuse(first < queued, 3, ", before queued_ts: the two need the same clock.")
    rows.refuse(last < first, 4, ", before first_token_ts: the two need the same clock.")
    rows.refuse(pd.Series(map(str, rows.cells[5])).duplicated().to_numpy(), 5, " twice; drop one.")
    order = np.argsort(queued, kind="stable")
    prompts, outputs = (rows.tokens(column, REQUESTS.least_tokens)[order] for column in (1, 2))
    queued, first, last = ((x[order] - queued.min()) * 1000 for x in (queued, first, last))
    measured = _latencies(queued, first, last, outputs)
    measured.insert(0, "request_id", [str(rows.cells[5][row]) for row in order])
    return VLLMRun(
        name=Path(folder).resolve().name,
        replay=Replay(queued / 1000, prompts, outputs),
        **meta,
        measured=measured,
        peak=_peak(queued, last),
    )


def _peak(start: np.ndarray, end: np.ndarray) -> int:
    """Most requests at once; one that starts as another ends counts beside it."""
    return int(np.max(np.arange(1, start.size + 1) - np.searchsorted(np.sort(end), start)))


def _read_meta(path: Path) -> dict[str, Any]:
    """The engine's settings, as the fields of VLLMRun."""
    try:
        meta = parse_json(read_bytes(path, "settings"))
    except BadJSONError as error:
        raise LLMGymError(f"{path} is not one whole JSON object: {error}.") from None
    try:
        for name, (places, only) in MODELLED.items():
            value = _setting(meta, name, places, only)
            if value != only:
                raise LLMGymError(f"{name} = {value!r} is not modelled, only {only!r}.")
        blocks = _count(meta, "num_gpu_blocks", CACHE, low=2)
        return {
            "token_budget": _count(meta, "max_num_batched_tokens", SCHEDULER),
            "max_num_seqs": _count(meta, "max_num_seqs", SCHEDULER),
            "kv_cache": KVCache(blocks - 1, _count(meta, "block_size", CACHE)),
            "policy": VLLMV1(
                chunked_prefill=_setting(meta, "enable_chunked_prefill", SCHEDULER, True),
                long_prefill_cap=_setting(meta, "long_prefill_token_threshold", SCHEDULER, 0),
                reserve_full=_setting(meta, "scheduler_reserve_full_isl", SCHEDULER, True),
                watermark=_setting(meta, "watermark", SCHEDULER, 0.0),
            ),
        }
    except LLMGymError as error:
        raise LLMGymError(f"{path}: {error}") from None


def _setting(meta: dict[str, Any], name: str, places: tuple[str, ...], default: Any) -> Any:
    """A setting from the first of the tables that has it."""
    for place in places:
        table: Any = meta
        for key in place.split("."):
            table = table.get(key) if isinstance(table, dict) else None
        if isinstance(table, dict) and table.get(name) is not None:
            return table[name]
    return default


def _count(meta: dict[str, Any], name: str, places: tuple[str, ...], low: int = 1) -> int:
    """A setting that must be there, a whole number of at least ``low``."""
    value = _setting(meta, name, places, None)
    if value is None:
        raise LLMGymError(f"{name} is missing; it belongs in {' or '.join(places)}.")
    if not isinstance(value, (int, float)):
        raise LLMGymError(f"{name} must be a number, got {shown(value)}.")
    check_number(name, value, low=low, integer=True)
    return int(value)


def _latencies(
    arrival: np.ndarray, first: np.ndarray, last: np.ndarray, outputs: np.ndarray
) -> pd.DataFrame:
    """TTFT, TPOT and E2E from times in milliseconds."""
    tpot = np.where(outputs > 1, (last - first) / np.maximum(outputs - 1, 1), np.nan)
    return pd.DataFrame({"ttft_ms": first - arrival, "tpot_ms": tpot, "e2e_ms": last - arrival})


def compare(run: VLLMRun, simulated: Run) -> pd.DataFrame:
    """What was measured beside what was simulated.

    Args:
        run: the recorded run.
        simulated: one run of its scenario to the end.

    Returns:
        Rows ttft_ms, tpot_ms, e2e_ms (TPOT of requests with two output tokens or more); columns
        measured_mean, simulated_mean, mean_error, measured_p99, simulated_p99, p99_error (times in
        milliseconds, errors relative to what was measured) and correlation, over the requests (NaN
        where all are alike).

    Raises:
        LLMGymError: the simulation is not of these requests, or did not serve them all.
    """
    found = _simulated(run, simulated)
    rows = {}
    for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
        pairs = pd.DataFrame({"measured": run.measured[name], "simulated": found[name]}).dropna()
        mean, p99 = pairs.mean(), pairs.quantile(0.99)
        alike = (pairs.max() - pairs.min() <= 1e-9 * pairs.max()).any()  # but for rounding
        rows[name] = {
            "measured_mean": mean.measured,
            "simulated_mean": mean.simulated,
            "mean_error": mean.simulated / mean.measured - 1,
            "measured_p99": p99.measured,
            "simulated_p99": p99.simulated,
            "p99_error": p99.simulated / p99.measured - 1,
            "correlation": np.nan if alike else pairs.measured.corr(pairs.simulated),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _simulated(run: VLLMRun, simulated: Run) -> pd.DataFrame:
    """The simulated latencies in the order of the replay."""
    check_number("num_envs of the simulated run", simulated.num_envs, low=1, high=1)
    if simulated.summary["dropped"]:
        raise LLMGymError(
            f"The simulation dropped {simulated.summary['dropped']} requests: all "
            f"{simulated.scenario.slots} slots were taken, or a request exceeds the KV memory."
        )
    requests, replay = simulated.requests.sort_values("job", ignore_index=True), run.replay
    columns = ("prefill_tokens", "decode_tokens")
    same = [np.array_equal(requests[name], getattr(replay, name)) for name in columns]
    if not all(same) or requests.finish_ms.isna().any():
        raise LLMGymError(
            f"The simulation has not served the {len(replay)} requests of {run.name}: simulate the "
            "scenario of that run, to its end."
        )
    arrival, first, last, outputs = (
        requests[name].to_numpy()
        for name in ("arrival_ms", "first_token_ms", "finish_ms", "decode_tokens")
    )
    return _latencies(arrival, first, last, outputs)
