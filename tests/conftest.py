"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Most of the time goes into compiling, much of it the same in several modules and in every run.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Programs that run briefly are compiled without optimisation, which takes half the time.
QUICK_COMPILING = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402 - it reads them
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from llmgym.envs.program import forget_programs  # noqa: E402

# The same examples in every run; `pytest --hypothesis-profile=explore` tries new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", settings.get_profile("default"))
settings.load_profile("repeatable")

MOST_MAPPINGS = 10_000
# Tracing makes many objects that live on; looking for circles among them took a twentieth of the time.
gc.set_threshold(200_000, 20, 50)


@pytest.hookimpl(tryfirst=True)  # before any fixture of the test compiles
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Optimise what runs long, here and in the commands that a test starts."""
    runs_long = any(item.get_closest_marker(name) for name in ("slow", "long_runs"))
    quick = "0" if runs_long else QUICK_COMPILING
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = quick
    jax.config.update("jax_disable_most_optimizations", quick.lower() in ("1", "true"))


def _mappings() -> int:
    """Stretches of memory of this process; 0 where the system does not tell."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    """Compiled programs of all modules together take more mappings than Linux allows.

    Past that limit (vm.max_map_count, usually 65,530) the compiler crashes.
    """
    yield
    if _mappings() > MOST_MAPPINGS:
        jax.clear_caches()
        forget_programs()
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of data that tests read but the project does not ship; skips where it is missing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LLMGYM_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; set LLMGYM_SHARED_DATA to the folder that holds it")
    return folder
