"""Fairness of a run: the service that each client had, and how far two that both wait drift apart.

Service is counted as in ``llmgym.engine.service``; clients are request classes. VTC keeps the service of two
clients, over any time in which requests of both wait, within 2 * max(w_p * L, w_q * M) of one another: L
is the longest prompt, M the most tokens that a running batch may hold (arXiv:2401.00588, Theorem 4.4).
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from llmgym.scenario.request_size import longest_call

if TYPE_CHECKING:
    from llmgym.evaluation.run import Record
    from llmgym.scenario.engine import Engine
    from llmgym.scenario.scenario import Scenario


def fairness(run: Record) -> dict[str, Any]:
    """What ``run.summary`` says of fairness, after the warm-up.

    Returns:
        service_per_s: weighted tokens per second of each class; gap: the largest difference of service
        between two classes at one engine over a time in which both had requests waiting there (0 where
        that never was); bound: that of VTC, infinite where neither memory nor seats limit the batch.
    """
    raw = run.raw
    steps, classes, envs = len(raw["start"]), len(run.scenario.classes), run.num_envs

    def by_engine(name: str) -> np.ndarray:
        """(steps, classes, engines, envs), with one class where there is no such axis."""
        return raw[name].reshape(steps, -1 if name == "looked" else classes, engines, envs)

    engines = raw["looked"].size // (steps * envs)
    after = (raw["start"] >= raw["warm_clock"])[:, None, None]
    elapsed_s = float((raw["end_clock"] - raw["warm_clock"]).sum() * run.tick_ms / 1000)
    charged = np.where(after, by_engine("charged"), 0).astype(np.int64)
    service = charged.sum(axis=(0, 2, 3)) / max(elapsed_s, 1e-9)
    columns = charged, by_engine("waiting") & after, by_engine("stayed") & after
    looked = by_engine("looked")[:, 0]
    gaps = [
        service_gap(*(x[looked[:, engine, env]][:, pair, engine, env] for x in columns))
        for pair in map(list, combinations(range(classes), 2))
        for engine in range(engines)
        for env in range(envs)
    ]
    return {
        "service_per_s": dict(zip(run.scenario.class_names, service.tolist(), strict=True)),
        "gap": max(gaps, default=0),
        "bound": bound(run.scenario),
    }


def service_gap(charged: np.ndarray, waiting: np.ndarray, stayed: np.ndarray) -> int:
    """The largest difference of service over a time in which two clients both wait.

    Args:
        charged: service of each step (steps, 2).
        waiting, stayed: whether requests of each waited at the start of each step, and whether one of
            them still did when its batch was formed (steps, 2).
    """
    ahead = np.diff(charged, axis=1)[:, 0]
    ahead = np.cumsum(ahead) - ahead  # by how much the second leads when a step starts
    both, still = np.min(waiting, axis=1), np.min(stayed, axis=1)
    goes_on = np.concatenate([[False], still[:-1]]) & both
    window = np.cumsum(~goes_on)  # a new number wherever the time before is cut off
    ahead, window = ahead[both], window[both]
    if not ahead.size:
        return 0
    starts = np.flatnonzero(np.diff(window, prepend=-1))
    return int((np.maximum.reduceat(ahead, starts) - np.minimum.reduceat(ahead, starts)).max())


def bound(scenario: Scenario) -> float:
    """2 * max(w_p * L, w_q * M), weighted tokens, of the engine with the most; infinite where L or M is."""
    return max(_bound(scenario, engine) for engine in scenario.engines)


def _bound(scenario: Scenario, engine: Engine) -> float:
    assert scenario.service_weights is not None
    held = np.inf if engine.kv_cache is None else float(engine.kv_cache.tokens)
    if engine.max_num_seqs is not None and engine.seq_limit == "resident":
        held = min(held, engine.max_num_seqs * longest_call(scenario, engine))
    prompt, output = scenario.service_weights
    longest = min(scenario.longest_prompt(engine), held)  # what is longer is never served
    most = [w * n if w else 0.0 for w, n in ((prompt, longest), (output, held))]
    return 2 * float(max(most))
