"""Rendering of one engine: it remembers recent steps and draws text or an image."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax
import numpy as np

from llmgym.engine import simulator
from llmgym.envs.functional import EnvState, FunctionalEngine
from llmgym.envs.interface.arrival_rate import MEMORY_S
from llmgym.envs.rendering.picture import Picture
from llmgym.envs.rendering.text import Frame, Ran, text_panel
from llmgym.theory.capacity import capacity


class Renderer:
    """Remembers recent steps and draws an environment in ``mode``, "ansi" or "rgb_array"."""

    def __init__(self, core: FunctionalEngine, mode: str) -> None:
        self._core = core
        self._load = capacity(core.scenario).load_factor
        self._view = jax.jit(core.view)
        self._history: deque[Ran] = deque(maxlen=8192)
        self._arrived, self._weight = 0.0, 0.0
        if mode == "rgb_array":
            self._draw: Any = Picture()
        else:
            self._draw = text_panel

    def reset(self) -> None:
        """Forget the steps of the last episode."""
        self._history.clear()
        self._arrived, self._weight = 0.0, 0.0

    def record(self, info: dict[str, Any]) -> None:
        """Remember a step by its ``info``."""
        fade = float(np.exp(-info["duration_ms"] / 1000 / MEMORY_S))
        self._arrived = fade * self._arrived + float(info["arrived"])
        self._weight = fade * self._weight + MEMORY_S * (1 - fade)
        self._history.append(
            Ran(
                info["time_s"],
                info["duration_ms"] / 1000,
                info["prefill_tokens"],
                info["decode_tokens"],
                info["in_system"],
            )
        )

    def render(self, state: EnvState) -> Any:
        """Text, or an image (height, width, 3) uint8, of the state and the steps before it."""
        return self._draw(self.frame(state))

    def frame(self, state: EnvState) -> Frame:
        """The facts of the picture, on the host."""
        view = jax.device_get(self._view(state, self._core.params))
        live = view.live
        served = view.started & (view.unserved == 0)  # its last token came at this very instant
        tick_s = self._core.scenario.tick_ms / 1000
        return Frame(
            scenario=self._core.scenario,
            load=self._load,
            time_s=float(simulator.clock_ms(self._core.params, state.engine)) / 1000,
            arrival_rate=self._arrived / max(self._weight, 1e-6),
            completed=int(state.engine.totals.completed),
            dropped=int(state.engine.totals.dropped),
            prompt=view.prompt[live],
            prompt_left=view.prefill[live],
            generated=view.generated[live],
            waited_s=view.waited[live] * tick_s,
            in_batch=served[live],
            history=list(self._history),
        )
