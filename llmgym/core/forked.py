"""Forked processes: JAX does not work in them once it has started, and what calls it waits for ever.

Its threads are not copied by ``fork``, and what they held stays locked. So a process that was forked after
JAX had started refuses to compute; one that was forked before, or that was spawned, computes as usual.
"""

from __future__ import annotations

import os

from llmgym.core.errors import LLMGymError

try:
    from jax._src.xla_bridge import backends_are_initialized
except ImportError:  # JAX may rename what it does not publish: then no fork is trusted

    def backends_are_initialized() -> bool:
        """Whether JAX has started its threads."""
        return True


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


def _note_fork() -> None:
    global _FORKED
    _FORKED = _FORKED or backends_are_initialized()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_note_fork)
