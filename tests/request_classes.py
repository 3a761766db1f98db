"""A stand-in for the request classes of hand-made views."""

from __future__ import annotations

import jax.numpy as jnp

from llmgym.engine.view import Classes


def one_class(shape: tuple[int, ...]) -> Classes:
    """One class of one-call jobs with no request, for batch axes ``shape``."""
    none, one = jnp.zeros((1, *shape), jnp.int32), jnp.ones((1, *shape))
    return Classes(one, one, none, none, none, one, none, none, none, none == 0, most=1)
