"""Make docs/results/rybko-stolyar-learned: the learned network policy beside the classical ones.

    python tools/network_results.py [FILE]

FILE is the checkpoint, by default that of the policy that ships. Environment n of a scenario and load
meets the same jobs under every policy. Raw numbers are kept under raw/; what is already there is not
measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import llmgym
from llmgym import Scenario, baselines
from llmgym.core.files import write
from llmgym.evaluation import benchmark, policies
from llmgym.evaluation.benchmark import Task
from llmgym.evaluation.statistics import mean_interval
from llmgym.scenario import toml_writer
from llmgym.theory.capacity import at_load

FOLDER = Path(__file__).parents[1] / "docs" / "results" / "rybko-stolyar-learned"
NAME, LOAD = "rybko-stolyar", 0.9
AGENT = f"ppo-{NAME}"
PLAIN = FOLDER / "plain.npz"
"""Trained in the same way, but without prior and guard."""

LOADS = (0.7, LOAD, 0.95)
CLASSICAL = ("fbfs", "sarathi")
"""Measured everywhere, the best first; those below at ``LOAD`` only."""

OTHERS = ("spf", "vllm_v1", "max_pressure-0.1", "max_pressure-0.2", "plain")
SLOTS = 320
SETTINGS = {"duration_s": 3.0, "warmup_s": 0.5, "num_envs": 8, "seed": 1000}
LEVELS = {"in_system": "jobs in the system", "backlog_tokens": "backlog in tokens"}


def policy_of(name: str) -> Any:
    """A policy from its name; ``max_pressure-0.1`` is max-pressure with that decode weight."""
    if name == "plain":
        return policies.resolve(str(PLAIN))
    base, dash, weight = name.partition("max_pressure-")
    if dash and not base:
        return baselines.make("max_pressure", decode_weight=float(weight))
    return policies.resolve(name)


def scenarios() -> dict[str, Scenario]:
    """What is measured: the loads, and transfer to a network with the long prompts at the first call.

    ``rybko-stolyar-reversed`` differs in its priorities alone, which none of the policies reads.
    """
    base = llmgym.scenario(NAME, slots=SLOTS)
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
    """Time averages after the warm-up, one of each environment, and jobs dropped."""
    raw = llmgym.simulate(scenario, policy, record=False, **SETTINGS).raw
    ticks = raw["end_clock"] - raw["warm_clock"]
    time = np.where(raw["start"] >= raw["warm_clock"], raw["duration"], 0)
    return {
        "in_system": ((raw["end_request_ticks"] - raw["warm_request_ticks"]) / ticks).tolist(),
        "backlog_tokens": ((raw["backlog"] * time).sum(axis=0) / time.sum(axis=0)).tolist(),
        "dropped": raw["end_dropped"].tolist(),
    }


def verdict(policy: Any) -> dict[str, Any]:
    """Whether the policy is stable at ``LOAD``."""
    scenario = llmgym.scenario(NAME, slots=1024)
    return asdict(llmgym.stability(scenario, policy, load=LOAD, replications=8))


def tasks(agent: Any) -> Iterator[Task]:
    """All measurements, the verdict first."""
    yield Task("verdict", f"{AGENT}: verdict", partial(verdict, agent))
    for where, scenario in scenarios().items():
        others = OTHERS if where == f"{NAME} {LOAD:g}" else ()
        for name in (AGENT, *CLASSICAL, *others):
            file = benchmark.slug(f"{where}-{name}")
            policy = agent if name == AGENT else policy_of(name)
            yield Task(file, f"{name}: {where}", partial(levels, scenario, policy))


def table(results: dict[str, Any]) -> pd.DataFrame:
    """A row per scenario and policy: means, and the learned policy's relative to them, with intervals."""
    rows = []
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
            rows.append(row)
    return pd.DataFrame(rows)


def page(frame: pd.DataFrame, judged: dict[str, Any]) -> str:
    """README.md of the folder."""
    lines = [
        "# The learned network policy",
        "",
        f"Made by `python tools/network_results.py`: {SETTINGS['num_envs']} environments of "
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
        "| scenario, load | policy | jobs | backlog, tokens | learned: jobs | backlog | dropped |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in frame.to_dict("records"):
        cells = [f"{row[x]:.{d}f} ± {row[f'{x}_high'] - row[x]:.{d}f}" for x, d in
                 (("in_system", 2), ("backlog_tokens", 0))]  # fmt: skip
        for level in LEVELS:
            x = f"learned_{level}"
            less = f"{100 * row[x]:+.2f} [{100 * row[x + '_low']:+.2f}, {100 * row[x + '_high']:+.2f}] %"
            cells.append("" if row["policy"] == AGENT else less)
        cells.append(str(row["dropped"]))
        lines.append(f"| {row['scenario']} | `{row['policy']}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, then write results.csv and README.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=AGENT)
    agent = policies.resolve(parser.parse_args().file)
    config = {
        "digest": agent.digest,  # type: ignore[attr-defined]
        "settings": SETTINGS,
        "scenarios": {k: toml_writer.dumps(s) for k, s in scenarios().items()},
        "versions": {name: metadata.version(name) for name in benchmark.VERSIONED},
    }
    told = lambda done, total, label: print(f"{done}/{total} {label}", flush=True)  # noqa: E731
    results = benchmark.measure(config, list(tasks(agent)), FOLDER, told)
    frame = table(results)
    write(FOLDER / "results.csv", frame.to_csv(index=False, float_format="%.6g"))
    write(FOLDER / "README.md", page(frame, results["verdict"]))


if __name__ == "__main__":
    main()
