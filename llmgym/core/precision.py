"""32 bits, whatever JAX's switch for 64 says; and no computing where JAX would hang.

All that must be exact is kept in pairs of 32-bit words (``llmgym.core.wide``), and all results rest on the
bits of float32. ``JAX_ENABLE_X64`` would make sums and random draws 64 bits wide, and runs would
differ. So whatever llmgym computes is traced with the switch off; what a caller computes is left alone.
The switch belongs to a thread: what other threads run is wrapped once more. As all computing passes here, a
process in which JAX cannot compute is refused here as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from llmgym.core.forked import refuse_forked

F = TypeVar("F", bound=Callable[..., Any])


def in_32_bits(function: F) -> F:
    """The same function, computed in 32 bits where JAX is set to 64.

    It raises LLMGymError in a process that was forked after JAX had started.
    """

    @functools.wraps(function)
    def narrow(*arguments: Any, **named: Any) -> Any:
        refuse_forked()
        if not jax.config.read("jax_enable_x64"):
            return function(*arguments, **named)
        with jax.enable_x64(False):
            return function(*arguments, **named)

    return narrow  # type: ignore[return-value]
