"""Never run anything: the negative control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax

from llmgym.baselines.policy import Policy
from llmgym.engine.view import Batch, View


@dataclass(frozen=True)
class Idle(Policy):
    """Idle whenever that is possible, which is always: its backlog grows at the rate of the arrivals.

    A test or a metric that does not call this policy unstable is broken.
    """

    name: ClassVar[str] = "idle"

    def __call__(self, key: jax.Array, view: View) -> Batch:
        return view.empty()
