"""Compiled programs run in the thread that calls them.

JAX hands them to a thread of its own otherwise, so that Python can go on. Environments wait for every step:
for them that is only a detour, of about as much time as the step of one environment takes.
"""

from __future__ import annotations

import os

import jax

from llmgym.core.forked import backends_are_initialized

SETTING = "jax_cpu_enable_async_dispatch"
"""Of JAX; as an environment variable in capitals. Who sets it chooses."""


def run_in_the_calling_thread() -> bool:
    """Tell JAX to, unless it has started, when it is too late, or the user has chosen; whether it does.

    Results are the same to the bit. It holds for all programs of the process on a CPU.
    """
    if SETTING.upper() not in os.environ and not backends_are_initialized():
        jax.config.update(SETTING, False)
    return not jax.config.read(SETTING)
