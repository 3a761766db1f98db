"""How much memory environments take. More than the machine has is refused at once."""

from __future__ import annotations

import os

import jax
import numpy as np

from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.scenario.scenario import Scenario

FEW_ENVS = 256
"""That many environments always fit; their memory is not looked at."""


def check_memory(num_envs: int, each: float) -> None:
    """Refuse environments that take more memory than this machine has.

    Args:
        num_envs: how many.
        each: bytes of one.

    Raises:
        LLMGymError: it says how much they would take.
    """
    room = memory_bytes()
    if num_envs * each > room:
        raise LLMGymError(
            f"num_envs = {num_envs:,} environments would take about {num_envs * each / 1e9:,.3g} GB of "
            f"memory, {each / 1e3:,.3g} kB each; this machine has {room / 1e9:,.3g} GB. Use at most "
            f"{int(room / each):,}, or fewer slots."
        )


def bytes_of(scenario: Scenario, record: bool = False) -> float:
    """Bytes of memory that an environment takes, about: its state twice, and the steps that are kept."""
    physics = simulator.lower(scenario)
    state = jax.eval_shape(lambda: simulator.init(physics, jax.random.key(0, impl="threefry2x32")))
    own = sum(int(np.prod(x.shape)) * 4 for x in jax.tree.leaves(state))
    table = sum(int(np.prod(x.shape)) * 4 for x in jax.tree.leaves(state.table))
    return 2.0 * own + (16 * table if record else 0.0)


def memory_bytes() -> float:
    """Bytes of memory that this machine has."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return 64e9
