"""Compiled programs kept between runs, so that a command waits for the compiler once.

The command line keeps them; in Python ``keep_programs()`` does, called before the first environment is made.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax

SWITCH = "LLMGYM_COMPILE_CACHE"
"""Environment variable: a folder of one's own for the programs, or ``off``."""


def keep_programs(folder: Path | str | None = None) -> Path | None:
    """Keep what JAX compiles in a folder, and take it from there when it is needed again.

    JAX's own settings (``JAX_COMPILATION_CACHE_DIR``) go first. Results are the same to the bit: what is kept
    is the machine code. It may be deleted at any time.

    Args:
        folder: where; None: what LLMGYM_COMPILE_CACHE says, else ``llmgym/programs-...`` in the user's cache
            folder, named by the versions and the processor: code made for another one may not run.

    Returns:
        The folder in use; None where nothing is kept.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir:
        return Path(config.jax_compilation_cache_dir)
    wanted = str(folder or os.environ.get(SWITCH, ""))
    if wanted.lower() == "off":
        return None
    chosen = Path(wanted) if wanted else _user_cache() / "llmgym" / f"programs-{_made_for()}"
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, a full disk, a file in the way: then every run compiles
        return None
    if not os.access(chosen, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(chosen))
    # JAX keeps only what took a second; environments are made of many smaller programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return chosen


def _user_cache() -> Path:
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _made_for() -> str:
    """Letters that differ where programs of one processor or version may not run."""
    told = [jax.__version__, platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told += sorted(
            {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        )
    except OSError:
        pass
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
