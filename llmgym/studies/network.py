"""A learned policy in the Rybko-Stolyar network, beside the classical ones.

Environment n of a scenario and load meets the same jobs under every policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmgym import baselines
from llmgym.core.files import csv_of
from llmgym.evaluation import benchmark, policies
from llmgym.evaluation.benchmark import Task
from llmgym.evaluation.simulate import simulate
from llmgym.evaluation.stability import stability
from llmgym.evaluation.statistics import mean_interval
from llmgym.reporting.table import Cell, Column, Table
from llmgym.scenario import library, toml_writer
from llmgym.scenario.scenario import Scenario
from llmgym.studies.study import Progress
from llmgym.theory.capacity import at_load

NAME, LOAD = "rybko-stolyar", 0.9
AGENT = f"ppo-{NAME}"
PLAIN = "plain.npz"
"""In the folder, where there is one: a policy trained in the same way, but without prior and guard."""

LOADS = (0.7, LOAD, 0.95)
CLASSICAL = ("fbfs", "sarathi")
"""Measured everywhere, the best first; ``OTHERS`` only at ``LOAD``."""

OTHERS = ("spf", "vllm_v1", "max_pressure-0.1", "max_pressure-0.2", "plain")
SLOTS = 320
SETTINGS: dict[str, Any] = {"duration_s": 3.0, "warmup_s": 0.5, "num_envs": 8, "seed": 1000}
LEVELS = {"in_system": "jobs in the system", "backlog_tokens": "backlog in tokens"}


@dataclass(frozen=True)
class Network:
    """See the module."""

    name: str = "rybko-stolyar-learned"
    title: str = "a learned policy in the Rybko-Stolyar network, beside the classical ones"
    policy: str = AGENT

    def measure(self, out: Path, policy: str, progress: Progress) -> None:
        agent = policies.resolve(policy)
        config = {
            "digest": agent.digest,  # type: ignore[union-attr]
            "settings": SETTINGS,
            "scenarios": {k: toml_writer.dumps(s) for k, s in scenarios().items()},
            "versions": {name: metadata.version(name) for name in benchmark.VERSIONED},
        }
        benchmark.measure(config, list(tasks(agent, out)), out, progress)

    def pages(self, out: Path, policy: str) -> dict[str, str]:
        raw = {p.stem: benchmark.read_result(p) for p in sorted((out / "raw").glob("*.json"))}
        frame = rows(raw)
        return {
            "results.csv": csv_of(frame, float_format="%.6g"),
            "README.md": page(frame, raw["verdict"]),
        }


def policy_of(name: str, out: Path) -> Any:
    """A policy from its name; ``max_pressure-0.1`` is max-pressure with that decode weight."""
    if name == "plain":
        return policies.resolve(str(out / PLAIN))
    base, dash, weight = name.partition("max_pressure-")
    if dash and not base:
        return baselines.make("max_pressure", decode_weight=float(weight))
    return policies.resolve(name)


def scenarios() -> dict[str, Scenario]:
    """What is measured: the loads, and transfer to a network with the long prompts at the first call.

    ``rybko-stolyar-reversed`` differs in its priorities alone, which none of the policies reads.
    """
    base = library.scenario(NAME, slots=SLOTS)
    found = {f"{NAME} {load:g}": at_load(base, load) for load in LOADS}
    exchanged = tuple(
        replace(
            job,
            stages=tuple(
                replace(stage, prefill=other.prefill, decode=other.decode)
                for stage, other in zip(job.stages, reversed(job.stages), strict=True)
            ),
        )
        for job in base.job_types
    )
    long_first = replace(base, workload=exchanged)
    found[f"{NAME}, long prompts first {LOAD:g}"] = at_load(long_first, LOAD)
    return found


def levels(scenario: Scenario, policy: Any) -> dict[str, Any]:
    """Time averages after the warm-up, one for each environment, and jobs dropped."""
    raw = simulate(scenario, policy, record=False, **SETTINGS).raw
    ticks = raw["end_clock"] - raw["warm_clock"]
    time = np.where(raw["start"] >= raw["warm_clock"], raw["duration"], 0)
    return {
        "in_system": ((raw["end_request_ticks"] - raw["warm_request_ticks"]) / ticks).tolist(),
        "backlog_tokens": ((raw["backlog"] * time).sum(axis=0) / time.sum(axis=0)).tolist(),
        "dropped": raw["end_dropped"].tolist(),
    }


def verdict(policy: Any) -> dict[str, Any]:
    """Whether the policy is stable at ``LOAD``."""
    scenario = library.scenario(NAME, slots=1024)
    return asdict(stability(scenario, policy, load=LOAD, replications=8))


def tasks(agent: Any, out: Path) -> Iterator[Task]:
    """All measurements, the verdict first."""
    yield Task("verdict", f"{AGENT}: verdict", partial(verdict, agent))
    for where, scenario in scenarios().items():
        others = list(OTHERS) if where == f"{NAME} {LOAD:g}" else []
        if others and not (out / PLAIN).exists():
            others.remove("plain")
        for name in (AGENT, *CLASSICAL, *others):
            file = benchmark.slug(f"{where}-{name}")
            policy = agent if name == AGENT else policy_of(name, out)
            yield Task(file, f"{name}: {where}", partial(levels, scenario, policy))


def rows(results: dict[str, Any]) -> pd.DataFrame:
    """A row per scenario and policy: means, and the learned policy's relative to them, with intervals."""
    found_rows = []
    for where in scenarios():
        mine = results[benchmark.slug(f"{where}-{AGENT}")]
        for name in (AGENT, *CLASSICAL, *OTHERS):
            found = results.get(benchmark.slug(f"{where}-{name}"))
            if found is None:
                continue
            row = {"scenario": where, "policy": name, "dropped": sum(found["dropped"])}
            for level in LEVELS:
                own = mean_interval(np.array(found[level]))
                ratio = mean_interval(np.array(mine[level]) / np.array(found[level]) - 1)
                ends = ("", "_low", "_high")
                row |= {f"{level}{end}": x for end, x in zip(ends, own, strict=True)}
                row |= {f"learned_{level}{end}": x for end, x in zip(ends, ratio, strict=True)}
            found_rows.append(row)
    return pd.DataFrame(found_rows)


def table(frame: pd.DataFrame) -> Table:
    """The figures of the page."""
    columns = (
        Column("scenario, load", text=True, key="scenario"),
        Column("policy", text=True, code=True),
        *(Column(name, f".{digits}f") for name, digits in (("jobs", 2), ("backlog, tokens", 0))),
        Column("learned: jobs", missing="", key="learned_in_system"),
        Column("backlog", missing="", key="learned_backlog_tokens"),
        Column("dropped"),
    )
    shown = []
    for row in frame.to_dict("records"):
        cells: list[Any] = []
        for level, digits in (("in_system", 2), ("backlog_tokens", 0)):
            half = row[f"{level}_high"] - row[level]
            cells.append(Cell(row[level], note=f" ± {half:.{digits}f}"))
        for level in LEVELS:
            less, low, high = (100 * row[f"learned_{level}{end}"] for end in ("", "_low", "_high"))
            text = f"{less:+.2f} [{low:+.2f}, {high:+.2f}] %"
            cells.append(None if row["policy"] == AGENT else Cell(less / 100, text))
        shown.append((row["scenario"], row["policy"], *cells, row["dropped"]))
    return Table(columns, tuple(shown))


def page(frame: pd.DataFrame, judged: dict[str, Any]) -> str:
    """README.md of the folder."""
    lines = [
        "# The learned network policy",
        "",
        f"Made by `llmgym study rybko-stolyar-learned`: {SETTINGS['num_envs']} environments of "
        f"{SETTINGS['duration_s']:g} s (the first {SETTINGS['warmup_s']:g} s left out), the same jobs for "
        "every policy. A batch takes 1 ms. "
        "Means over time with 95 % intervals; the last two columns say how far the learned policy's mean is "
        "above (+) or below (-) that of the row, in the same environments. Where jobs were dropped, the "
        f"table of {SLOTS} jobs was full at times, and the means are too low. `plain` was trained in the "
        "same way, but without prior and guard: `llmgym train --scenario rybko-stolyar --set slots=256 "
        "--option prior=0 --option guard=none --steps 800000`.",
        "",
        f"`{AGENT}` at load {LOAD:g}: **{judged['verdict']}** ({judged['reason']}; growth "
        f"{judged['growth_tokens_per_ms']:.2f} [{judged['low']:.2f}, {judged['high']:.2f}] tokens/ms, "
        f"from a backlog {judged['hot_growth_tokens_per_ms']:.1f} [{judged['hot_low']:.1f}, "
        f"{judged['hot_high']:.1f}], {judged['replications']} replications).",
        "",
        table(frame).to_markdown(),
    ]
    return "\n".join(lines) + "\n"
