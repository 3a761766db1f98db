"""The same bytes in every file of results: jobs, flags of XLA, 64 bits, locales, hashes, time zones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bytes_of_results.py"

FAST = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
"""Those of the Makefile."""

USUAL = {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "0", "XLA_FLAGS": FAST}

OTHERS: dict[str, tuple[str, dict[str, str]]] = {
    "two jobs, other hashes, 64 bits and a plain locale": (
        "2",
        {"PYTHONHASHSEED": "1", "JAX_ENABLE_X64": "1", "LC_ALL": "C", "PYTHONUTF8": "0",
         "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    ),
    "XLA as it is, another time, and commas": (
        "1",
        {"XLA_FLAGS": "", "TZ": "Asia/Kolkata", "LC_ALL": "de_DE.UTF-8",
         "PYTHONIOENCODING": "latin-1"},
    ),
    "no optimisation, an older processor, and dotless letters": (
        "1",
        {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
         "--xla_cpu_max_isa=SSE4_2 --xla_force_host_platform_device_count=2",
         "LC_ALL": "tr_TR.UTF-8"},
    ),
}  # fmt: skip
"""Number of jobs, and variables of the environment. A locale that is missing is the plain one."""


def files(folder: Path, jobs: str, variables: dict[str, str]) -> dict[str, bytes]:
    """All files that the commands write, by their names."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO"))}
    found = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), jobs],
        env=kept | {"JAX_ENABLE_X64": "0"} | USUAL | variables,
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr.decode(errors="replace")[-3000:]
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files(tmp_path_factory.mktemp("usual") / "out", "1", {})


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_results_are_the_same_bytes(usual: dict[str, bytes], tmp_path: Path, name: str) -> None:
    jobs, variables = OTHERS[name]
    other = files(tmp_path / "out", jobs, variables)
    assert sorted(other) == sorted(usual)
    kinds = {Path(file).suffix for file in usual}
    assert {".json", ".csv", ".md", ".html", ".svg", ".png", ".toml", ".txt"} <= kinds
    assert [file for file in usual if other[file] != usual[file]] == []
