"""Forked processes: JAX does not work in them once it has started, and what calls it waits for ever.

Its threads are not copied by ``fork``, and what they held stays locked. So a process that was forked after
JAX had started refuses to compute; one that was forked before, or that was spawned, computes as usual.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from typing import Any

from llmgym.core.errors import LLMGymError

try:
    from jax._src.xla_bridge import backends_are_initialized
except ImportError:  # JAX may rename what it does not publish: then no fork is trusted

    def backends_are_initialized() -> bool:
        """Whether JAX has started its threads."""
        return True


ASYNC = "gymnasium.vector.async_vector_env"

_FORKED = False
"""Whether this process was forked after JAX had started."""


def refuse_forked() -> None:
    """Raise LLMGymError where JAX would hang."""
    if _FORKED:
        raise LLMGymError(
            "This process was forked after JAX had started, and JAX would hang in it. Start processes "
            "afresh: multiprocessing.get_context('spawn'), ProcessPoolExecutor(mp_context=...), or "
            "AsyncVectorEnv(..., context='spawn'); gym.make_vec runs many environments in one process."
        )


def refuse_async_fork() -> None:
    """Raise LLMGymError in a constructor of Gymnasium that is about to fork its environments.

    AsyncVectorEnv makes an environment in the process that called it, to see its spaces. Refused only in its
    workers, the user would see a broken pipe, and the reason somewhere above.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        of_gymnasium = (
            frame.f_globals.get("__name__") == ASYNC and frame.f_code.co_name == "__init__"
        )
        if of_gymnasium and _method(frame.f_locals.get("context")) == "fork":
            raise LLMGymError(
                "AsyncVectorEnv would fork its processes, and JAX hangs in forked ones. Give it "
                "context='spawn' (gym.make_vec: vector_kwargs={'context': 'spawn'}), or leave out "
                "vectorization_mode: gym.make_vec runs many environments in one process."
            )


def _method(context: Any) -> str:
    """The start method of a context; none is chosen where the user has not chosen one."""
    if context is not None:
        return str(context)
    chosen = multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]


def _note_fork() -> None:
    global _FORKED
    _FORKED = _FORKED or backends_are_initialized()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_note_fork)
