"""Compiled programs kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from llmgym.core.compile_cache import keep_programs
print(keep_programs())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # this one is small
found = jax.jit(lambda x: jnp.sort(jnp.sin(x) * 3) + jnp.cumsum(x))(jnp.arange(4096.0))
print(float(found.sum()).hex())
"""


def run(**settings: str) -> list[str]:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "LLMGYM", "XDG_CACHE"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_programs_are_kept_in_the_users_cache_and_give_the_same_numbers(tmp_path: Path) -> None:
    folder, first = run(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert Path(folder).is_relative_to(tmp_path)
    kept = sorted(Path(folder).glob("*-cache"))
    assert kept
    assert run(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path)) == [folder, first]
    assert sorted(Path(folder).glob("*-cache")) == kept


@pytest.mark.parametrize("name", ["LLMGYM_COMPILE_CACHE", "JAX_COMPILATION_CACHE_DIR"])
def test_a_folder_of_ones_own(tmp_path: Path, name: str) -> None:
    assert run(**{name: str(tmp_path / "own")})[0] == str(tmp_path / "own")


def test_it_can_be_switched_off_and_does_without_where_nothing_can_be_written(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run(LLMGYM_COMPILE_CACHE="off", HOME=str(tmp_path))[0] == "None"
    assert run(XDG_CACHE_HOME=str(tmp_path / "file"))[0] == "None"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
