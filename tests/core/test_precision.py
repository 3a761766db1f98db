"""JAX's switch for 64 bits changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from bits_of_runs import RUNS

from llmgym.core.precision import in_32_bits

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiling is most of the time; both runs are compiled alike."""

SCRIPT = Path(__file__).parents[1] / "bits_of_runs.py"


def bits(names: Sequence[str], switch: str) -> dict[str, str]:
    """What the runs print with JAX_ENABLE_X64 set."""
    found = subprocess.run(
        [sys.executable, str(SCRIPT), *names],
        env=os.environ | {"JAX_ENABLE_X64": switch, "XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return dict(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "names",
    [["engine"], pytest.param([n for n in RUNS if n != "engine"], marks=pytest.mark.slow)],
    ids=len,
)
def test_runs_are_the_same_bit_by_bit_with_64_bits_switched_on(names: Sequence[str]) -> None:
    narrow = bits(names, "0")
    assert list(narrow) == names
    assert bits(names, "1") == narrow


def test_what_a_caller_computes_keeps_its_64_bits() -> None:
    @in_32_bits
    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(x) + jnp.zeros(())

    with jax.enable_x64(True):
        inside, outside = total(jnp.ones(3, jnp.int32)), jnp.sum(jnp.ones(3, jnp.int32))
        assert (inside.dtype, outside.dtype) == (jnp.float32, jnp.int64)
    assert total(jnp.ones(3, jnp.int32)).dtype == jnp.float32
