"""Break the code in many small ways, one at a time, and list the changes that no test notices.

    pip install cosmic-ray                                      # in an environment of its own
    python tools/mutate.py metrics --cosmic-ray PATH/cosmic-ray --out metrics.json
    python tools/mutate.py metrics --cosmic-ray PATH/cosmic-ray --again metrics.json

A sample of realistic mutants of one package is drawn, and its tests run on each. All happens in throw-away
copies of the working tree, so a run that is killed leaves no mutant behind. A survivor is either a missing
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

PACKAGES: dict[str, tuple[list[str], list[str]]] = {
    "core": (
        ["llmgym/core"],
        [
            *("core", "fuzz/test_arguments.py", "fuzz/test_display.py", "cli/test_output.py"),
            *("engine/test_fill.py", "engine/test_dynamics.py", "engine/test_same_results.py"),
            "evaluation/test_policies.py",
        ],
    ),
    "engine": (
        ["llmgym/engine"],
        [
            *(f"engine/test_{name}.py" for name in ("fill", "dynamics", "ended", "reference")),
            *(f"engine/test_{name}.py" for name in ("kv_cache", "prefix_cache", "network_memory")),
            *(f"engine/test_{name}.py" for name in ("same_results", "rates", "long_waits")),
            *(f"engine/test_{name}.py" for name in ("network_station", "network_reference")),
            "engine/test_network.py",
        ],
    ),
    "metrics": (
        [
            *("llmgym/evaluation/metrics", "llmgym/evaluation/statistics.py"),
            *("llmgym/evaluation/comparison.py", "llmgym/evaluation/stability.py"),
            "llmgym/envs/rewards.py",
        ],
        [
            *(f"evaluation/test_{name}.py" for name in ("comparison", "service_levels")),
            *(
                "envs/test_rewards.py",
                "evaluation/test_job_levels.py",
                "evaluation/test_tenants.py",
            ),
            "engine/test_network.py::test_the_parts_of_a_job_add_up",
            "baselines/test_vtc.py::test_vtc_keeps_the_bound_that_fcfs_breaks",
            "baselines/test_vtc.py::test_bound_of_memory_and_of_none",
            "baselines/test_vtc.py::test_every_engine_of_a_network_has_counters",
            "evaluation/test_stability.py",
        ],
    ),
    "theory": (["llmgym/theory"], ["theory"]),
}
"""Name: modules, and the tests that judge them (in tests/), the quick and strict ones first."""

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

Mutant = tuple[str, str, int]
"""Module, operator, and which of its places in the module."""


class Copy:
    """A throw-away copy of the working tree with the mutants that it is to try."""

    def __init__(self, folder: Path, package: str) -> None:
        self.folder, self.session, self.package = folder, folder / "session.sqlite", package
        hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "site")
        shutil.copytree(ROOT, folder, symlinks=True, ignore=hidden)
        flags = re.search(r"XLA_FLAGS \?= (.*)", (ROOT / "Makefile").read_text())
        self.environment = {
            "XLA_FLAGS": flags[1] if flags else "",
            **os.environ,
            "PYTHONPATH": str(folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # a mutant made within a second could look unchanged
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        }
        tests = [f"tests/{name}" for name in (ALWAYS, *PACKAGES[package][1])]
        self.tests = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]

    def unchanged(self) -> float:
        """Seconds that the tests take on the code as it is; they must pass, or nothing counts."""
        start = time.monotonic()
        if subprocess.run(self.tests, cwd=self.folder, env=self.environment).returncode:
            sys.exit("The tests fail on the unchanged code; nothing can be learned from mutants.")
        return time.monotonic() - start

    def init(self, cosmic_ray: str, limit_s: float) -> None:
        """Let cosmic-ray find all mutants."""
        config = {
            "module-path": PACKAGES[self.package][0],
            "timeout": limit_s,
            "excluded-modules": [],
            "test-command": shlex.join(self.tests),
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in config.items()]
        text = "\n".join(["[cosmic-ray]", *lines, '[cosmic-ray.distributor]\nname = "local"\n'])
        (self.folder / "mutants.toml").write_text(text)
        command = [cosmic_ray, "init", "mutants.toml", str(self.session)]
        subprocess.run(command, cwd=self.folder, env=self.environment, check=True)

    def mutants(self) -> list[Mutant]:
        """The realistic ones, in a fixed order."""
        columns = "module_path, operator_name, occurrence, start_pos_row, start_pos_col"
        with sqlite3.connect(self.session) as session:
            rows = session.execute(f"select {columns} from mutation_specs").fetchall()
        return sorted(
            (module, operator, which)
            for module, operator, which, line, column in rows
            if operator.removeprefix("core/") in REALISTIC
            and not ("_Mul_" in operator and self.is_star(module, line, column))
        )

    def is_star(self, module: str, line: int, column: int) -> bool:
        """Whether the * there is that of ``*args``, not a product."""
        before = (self.folder / module).read_text().splitlines()[line - 1][:column].rstrip()
        return not before or before[-1] in "(,[{="

    def start(self, cosmic_ray: str, chosen: list[Mutant]) -> subprocess.Popen[bytes]:
        """Try the chosen mutants only."""
        with sqlite3.connect(self.session) as session:
            session.execute("create temp table chosen (module, operator, which)")
            session.executemany("insert into chosen values (?, ?, ?)", chosen)
            session.execute(
                "delete from mutation_specs where (module_path, operator_name, occurrence) not in chosen"
            )
            session.execute(
                "delete from work_items where job_id not in (select job_id from mutation_specs)"
            )
        command = [cosmic_ray, "exec", "mutants.toml", str(self.session)]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment)

    def results(self) -> list[dict[str, Any]]:
        """What is known so far of each mutant."""
        columns = (
            "module_path, operator_name, occurrence, start_pos_row, test_outcome, output, diff"
        )
        with sqlite3.connect(self.session, timeout=60) as session:
            rows = session.execute(
                f"select {columns} from work_results natural join mutation_specs"
            ).fetchall()
        names = ("module", "operator", "which", "line", "outcome", "output", "diff")
        return [dict(zip(names, row, strict=True)) for row in rows]


def tried(copies: list[Copy], runs: list[subprocess.Popen[bytes]]) -> Iterator[dict[str, Any]]:
    """The results of all copies, each once, as they come in."""
    seen = set()
    going = True
    while going:
        going = any(run.poll() is None for run in runs)
        for result in (result for copy in copies for result in copy.results()):
            name = result["module"], result["operator"], result["which"]
            if name not in seen:
                seen.add(name)
                yield result
        time.sleep(1)


def survived(result: dict[str, Any]) -> bool:
    """Whether no test noticed the mutant."""
    return result["outcome"] == "SURVIVED"


def show(result: dict[str, Any]) -> None:
    """A line for a mutant, and its diff where it survived."""
    last = (result["output"] or "").strip().splitlines()[-1:] or [""]
    where = f"{result['module']}:{result['line']}"
    print(f"{result['outcome'].lower():9} {where:45} {result['operator']}  {last[0]}", flush=True)
    if survived(result):
        marks = [
            x for x in result["diff"].splitlines() if x[:1] in "+-" and x[:3] not in ("+++", "---")
        ]
        print(*marks, sep="\n", flush=True)


def main() -> None:
    """Read the options; make copies, try the mutants, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", choices=list(PACKAGES))
    parser.add_argument("--sample", type=int, default=40, help="mutants to try")
    parser.add_argument("--seed", type=int, default=15, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="copies that work side by side")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--again", type=Path, help="try only the survivors in this file")
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="the command, or its path")
    given = parser.parse_args()
    cosmic_ray = shutil.which(given.cosmic_ray)
    if cosmic_ray is None:
        sys.exit(
            f"No command {given.cosmic_ray}: pip install cosmic-ray in an environment of its own."
        )
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        if (
            ROOT / ".pytest_cache" / "compiled"
        ).is_dir():  # what is unchanged need not be compiled again
            shutil.copytree(ROOT / ".pytest_cache" / "compiled", Path(folder) / "compiled")
        copies = [Copy(Path(folder) / f"copy{k}", given.package) for k in range(given.jobs)]
        limit_s = 60 + SLACK * given.jobs * copies[0].unchanged()
        for copy in copies:
            copy.init(cosmic_ray, limit_s)
        chosen = copies[0].mutants()
        if given.again:
            before = filter(survived, json.loads(given.again.read_text()))
            again = {(x["module"], x["operator"], x["which"]) for x in before}
            chosen = [mutant for mutant in chosen if mutant in again]
        else:
            chosen = random.Random(given.seed).sample(chosen, min(given.sample, len(chosen)))
        runs = [copy.start(cosmic_ray, chosen[k :: given.jobs]) for k, copy in enumerate(copies)]
        try:
            for result in tried(copies, runs):
                results.append(result)
                show(result)
                if given.out:
                    given.out.write_text(json.dumps(results, indent=1))
        finally:
            for run in runs:
                run.terminate()
    alive = sum(map(survived, results))
    print(f"{len(results) - alive} of {len(results)} mutants of {given.package} died.")
    if len(results) < len(chosen):
        sys.exit(f"{len(chosen) - len(results)} mutants were not tried.")


if __name__ == "__main__":
    main()
