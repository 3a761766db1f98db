"""Compiled programs run in the thread that calls them, unless it is too late or the user has chosen."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOW = "; print(jax.config.read('jax_cpu_enable_async_dispatch'))"


@pytest.mark.parametrize(
    ("program", "chosen", "expected"),
    [
        ("import llmgym, jax", {}, "False"),
        ("import llmgym, jax", {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}, "True"),
        ("import jax; jax.devices(); import llmgym", {}, "True"),
    ],
)
def test_programs_run_in_the_calling_thread(
    program: str, chosen: dict[str, str], expected: str
) -> None:
    kept = {k: v for k, v in os.environ.items() if k != "JAX_CPU_ENABLE_ASYNC_DISPATCH"}
    found = subprocess.run(
        [sys.executable, "-c", program + SHOW],
        env=kept | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == expected
