"""Runs commands that write results into a folder; ``test_same_bytes`` compares the bytes of such runs.

python bytes_of_results.py FOLDER JOBS
"""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

SCENARIO = """
name = "é \\u0131 \\u0130 ß"
slots = 32
[engine]
token_budget = 64
[engine.batch_time]
kind = "roofline"
c_ms = 11.0
a_ms_per_token = 0.37
free_tokens = 8
kv_ms_per_kilotoken = 0.3
prefill_ms_per_megapair = 4.1
[[job_types]]
name = "I"
ttft_ms = 300.0
tpot_ms = 60.0
arrivals = { kind = "mmpp", rate_per_s = 5.0, weights = [1.0, 6.0], sojourn_s = [2.0, 0.5] }
prefill = { kind = "lognormal", mean_tokens = 30.0, cv = 1.2 }
decode = { kind = "geometric", mean_tokens = 7.0 }
"""

NETWORK = ("--set", "slots=32", "--load", "0.8", "--duration-s", "2", "--num-envs", "2")


def commands(scenario: Path, jobs: str) -> dict[str, tuple[str, ...]]:
    """What is run, by the folder that it writes."""
    one = ("-s", str(scenario))
    small = ("-p", "random", "--load", "0.6", "--jobs", jobs)
    return {
        "simulate": ("simulate", *one, "--load", "0.8", "--duration-s", "4", "--num-envs", "2"),
        "network": ("simulate", "-s", "react-loop", "-p", "random", *NETWORK),
        "memory": ("simulate", "-s", "paper-gpu-memory", "-p", "vllm_v1", *NETWORK),
        "benchmark": ("benchmark", *one, *small, "--replications", "2", "--arrivals", "40", "--report"),
        "evaluate": (
            "evaluate", *one, *small, "--budget", "64", "--seeds", "2", "--arrivals", "100"
        ),
    }  # fmt: skip


def main() -> None:
    from llmgym import cli

    folder, jobs = Path(sys.argv[1]), sys.argv[2]
    scenario = folder / "mine.toml"
    folder.mkdir()
    scenario.write_bytes(SCENARIO.encode())
    for name, command in commands(scenario, jobs).items():
        for more in ((), ("--json",)) if name in ("simulate", "network", "memory") else ((),):
            said = io.StringIO()
            out = folder / f"{name}{len(more)}"
            sys.argv = ["llmgym", *command, "--out", str(out), *more]
            with redirect_stdout(said), pytest.raises(SystemExit) as stop:
                cli.main()
            assert stop.value.code == 0, name
            text = said.getvalue().replace(str(folder), "FOLDER")
            (out / "printed.txt").write_bytes(text.encode())


if __name__ == "__main__":  # processes of several jobs import this file
    main()
