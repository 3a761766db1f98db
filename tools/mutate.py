"""Break the code in many small ways, one at a time, and list the changes that no test notices.

    pip install cosmic-ray                                      # in an environment of its own
    python tools/mutate.py metrics --cosmic-ray PATH/cosmic-ray --out metrics.json
    python tools/mutate.py metrics --cosmic-ray PATH/cosmic-ray --again metrics.json

A sample of realistic mutants of one package is drawn, and its tests run on each. All happens in a throw-away
copy of the working tree, so a run that is killed leaves no mutant behind. A survivor is either a missing
test or changes nothing that a user can see.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

PACKAGES: dict[str, list[tuple[str, str]]] = {
    "core": [
        (
            "core/arrays.py core/wide.py core/precision.py core/pytree.py",
            "core/test_arrays.py core/test_wide.py engine/test_fill.py engine/test_dynamics.py "
            "engine/test_same_results.py core/test_precision.py",
        ),
        (
            "core",
            "fuzz/test_arguments.py fuzz/test_display.py cli/test_output.py cli/test_any_name.py "
            "core/test_hostile_files.py core/test_folders.py core/test_written_files.py "
            "evaluation/test_comparison.py evaluation/test_policies.py core/test_forked.py",
        ),
    ],
    "engine": [
        (
            "engine/memory engine/block_pool.py",
            "engine/test_kv_cache.py engine/test_prefix_cache.py engine/test_network_memory.py",
        ),
        (
            "engine/calls.py engine/ended.py engine/entering.py engine/jobs.py engine/mixed_times.py "
            "engine/plan.py engine/queues.py engine/routing.py",
            "engine/test_ended.py engine/test_dynamics.py engine/test_network_reference.py",
        ),
        (
            "engine",
            "engine/test_fill.py engine/test_dynamics.py engine/test_reference.py engine/test_rates.py "
            "engine/test_same_results.py engine/test_long_waits.py "
            "engine/test_kv_cache.py::test_batch_times_see_the_context "
            "engine/test_prefix_cache.py::test_swapping_costs_time_and_loses_nothing "
            "engine/test_network.py::test_calls_follow_the_workflow",
        ),
    ],
    "metrics": [
        (
            "evaluation/comparison.py evaluation/statistics.py",
            "evaluation/test_comparison.py fuzz/test_functions.py",
        ),
        (
            "evaluation/metrics",
            "evaluation/test_jobs.py evaluation/test_fairness.py evaluation/test_service_levels.py "
            "evaluation/test_job_levels.py "
            "engine/test_network.py::test_the_parts_of_a_job_add_up "
            "baselines/test_vtc.py::test_vtc_keeps_the_bound_that_fcfs_breaks "
            "baselines/test_vtc.py::test_bound_of_memory_and_of_none "
            "baselines/test_vtc.py::test_every_engine_of_a_network_has_counters",
        ),
        ("envs/rewards.py", "envs/test_rewards.py"),
        ("evaluation/stability.py", "evaluation/test_stability.py"),
    ],
    "theory": [("theory", "theory")],
}
"""Name: groups of modules (in llmgym/), each with the tests that judge it (in tests/), the quick and strict
ones first. A module belongs to the first group that names it or its folder."""

ALWAYS = "test_house.py::test_dataclasses_are_frozen"

SWAPS = [("Lt", "LtE"), ("Gt", "GtE"), ("Lt", "Gt"), ("Eq", "NotEq"), ("Is", "IsNot")]
REALISTIC = {
    *("NumberReplacer", "AddNot", "ZeroIterationForLoop"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *(f"ReplaceUnaryOperator_Delete_{name}" for name in ("USub", "Not", "Invert")),
    *(f"ReplaceBinaryOperator_{a}_{b}" for a, b in permutations(("Add", "Sub"))),
    *(f"ReplaceBinaryOperator_{a}_{b}" for a, b in permutations(("Mul", "Div"))),
    "ReplaceBinaryOperator_Mul_Add",
    *(f"ReplaceComparisonOperator_{a}_{b}" for swap in SWAPS for a, b in permutations(swap)),
}
"""Operators of cosmic-ray whose mutants look like mistakes that people make."""

SLACK = 5
"""Tests may take this many times as long as on the unchanged code before they count as hanging."""

LEFT_OUT = [
    *(".git", ".venv", ".mypy_cache", ".ruff_cache"),
    *("__pycache__", "*.egg-info", "build", "dist", "site"),
]
"""What the copy does without. It has the compiled programs, so that only what changes is compiled again."""

Mutant = tuple[str, str, int]
"""Module, operator, and which of its places in the module."""


class Group:
    """Some modules in a throw-away copy of the working tree, and the tests that judge them."""

    def __init__(self, folder: Path, modules: str, tests: str) -> None:
        self.folder, self.modules = folder, [f"llmgym/{name}" for name in modules.split()]
        self.session = folder / f"{self.modules[0].replace('/', '-')}.sqlite"
        self.config = self.session.with_suffix(".toml")
        flags = re.search(r"XLA_FLAGS \?= (.*)", (ROOT / "Makefile").read_text())
        self.environment = {
            "XLA_FLAGS": flags[1] if flags else "",
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant made within a second could look unchanged
            "JAX_COMPILATION_CACHE_DIR": str(folder / ".pytest_cache" / "compiled"),
        }
        chosen = [f"tests/{name}" for name in (ALWAYS, *tests.split())]
        self.tests = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *chosen]

    def unchanged(self) -> float:
        """Seconds that the tests take on the code as it is; they must pass, or nothing counts."""
        start = time.monotonic()
        if subprocess.run(self.tests, cwd=self.folder, env=self.environment).returncode:
            sys.exit("The tests fail on the unchanged code; nothing can be learned from mutants.")
        return time.monotonic() - start

    def write_config(self, limit_s: float) -> None:
        """For cosmic-ray: what to change, what to run, and when to give up."""
        values = {
            "module-path": self.modules,
            "timeout": limit_s,
            "excluded-modules": [],
            "test-command": shlex.join(self.tests),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        lines = ["[cosmic-ray]", *lines, "[cosmic-ray.distributor]", 'name = "local"']
        self.config.write_text("\n".join(lines))

    def mutants(self, cosmic_ray: str) -> set[Mutant]:
        """All that are realistic."""
        self.write_config(0)
        command = [cosmic_ray, "init", str(self.config), str(self.session)]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)
        columns = "module_path, operator_name, occurrence, start_pos_row, start_pos_col"
        with sqlite3.connect(self.session) as session:
            rows = session.execute(f"select {columns} from mutation_specs").fetchall()
        return {
            (module, operator, which)
            for module, operator, which, line, column in rows
            if operator.removeprefix("core/") in REALISTIC
            and not ("_Mul_" in operator and self.is_star(module, line, column))
        }

    def is_star(self, module: str, line: int, column: int) -> bool:
        """Whether the * there is that of ``*args``, not a product."""
        before = (self.folder / module).read_text().splitlines()[line - 1][:column].rstrip()
        return not before or before[-1] in "(,[{="

    def keep(self, chosen: list[Mutant]) -> None:
        """Forget all other mutants."""
        here = "(module_path, operator_name, occurrence)"
        with sqlite3.connect(self.session) as session:
            session.execute("create temp table chosen (module, operator, which)")
            session.executemany("insert into chosen values (?, ?, ?)", chosen)
            session.execute(f"delete from mutation_specs where {here} not in chosen")
            left = "select job_id from mutation_specs"
            session.execute(f"delete from work_items where job_id not in ({left})")

    def results(self) -> list[dict[str, Any]]:
        """What is known so far of each mutant."""
        query = """
            select module_path as module, operator_name as operator, occurrence as which,
                start_pos_row as line, test_outcome as outcome, output, diff
            from work_results natural join mutation_specs order by work_results.rowid
        """
        with sqlite3.connect(self.session, timeout=60) as session:
            session.row_factory = sqlite3.Row
            return [dict(row) for row in session.execute(query)]

    def tried(self, cosmic_ray: str) -> Iterator[dict[str, Any]]:
        """The results, each as soon as it is there."""
        self.write_config(60 + SLACK * self.unchanged())
        command = [cosmic_ray, "exec", str(self.config), str(self.session)]
        run = subprocess.Popen(command, cwd=self.folder, env=self.environment)
        known, going = 0, True
        try:
            while going:
                going = run.poll() is None
                results = self.results()
                yield from results[known:]
                known = len(results)
                time.sleep(1)
        finally:
            run.terminate()


def survived(result: dict[str, Any]) -> bool:
    """Whether no test noticed the mutant."""
    return result["outcome"] == "SURVIVED"


def show(result: dict[str, Any]) -> None:
    """A line for a mutant, and its diff where it survived."""
    last = (result["output"] or "").strip().splitlines()[-1:] or [""]
    where = f"{result['module']}:{result['line']}"
    print(f"{result['outcome'].lower():9} {where:45} {result['operator']}  {last[0]}", flush=True)
    if survived(result):
        print(
            *re.findall(r"^[+-](?![+-]{2} ).*", result["diff"], re.MULTILINE), sep="\n", flush=True
        )


def draw(groups: list[Group], given: argparse.Namespace, cosmic_ray: str) -> list[list[Mutant]]:
    """The mutants to try, for each group."""
    found: list[set[Mutant]] = []
    claimed: set[Mutant] = set()
    for group in groups:
        mine = group.mutants(cosmic_ray) - claimed
        claimed |= mine
        found.append(mine)
    if given.again:
        before = filter(survived, json.loads(given.again.read_text()))
        chosen = {(x["module"], x["operator"], x["which"]) for x in before}
    else:
        sample = min(given.sample, len(claimed))
        chosen = set(random.Random(given.seed).sample(sorted(claimed), sample))
    return [sorted(mine & chosen) for mine in found]


def main() -> None:
    """Read the options; copy the tree, try the mutants, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=list(PACKAGES))
    parser.add_argument("--sample", type=int, default=40, help="mutants to try")
    parser.add_argument("--seed", type=int, default=15, help="of the sample")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--again", type=Path, help="try only the survivors in this file")
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the command, or its path")
    given = parser.parse_args()
    cosmic_ray = shutil.which(given.cosmic_ray)
    if cosmic_ray is None:
        sys.exit(
            f"No command {given.cosmic_ray}: pip install cosmic-ray in an environment of its own."
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # and leave nothing behind
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        groups = [Group(copy, *group) for group in PACKAGES[given.package]]
        for group, chosen in zip(groups, draw(groups, given, cosmic_ray), strict=True):
            group.keep(chosen)
            for result in group.tried(cosmic_ray) if chosen else ():
                results.append(result)
                show(result)
                if given.out:
                    given.out.write_text(json.dumps(results, indent=1))
    alive = sum(map(survived, results))
    print(f"{len(results) - alive} of {len(results)} mutants of {given.package} died.")


if __name__ == "__main__":
    main()
