"""Compiled programs of environments: few arrays in and out, kept for all environments that are alike."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata

from llmgym.core.blocks import COMPILER_OPTIONS, compiled
from llmgym.core.precision import in_32_bits
from llmgym.envs.packing import SMALL, Packing

ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}
"""Marks of a call that XLA compiles for a CPU as one piece of machine code, run by the calling thread. The
two hundred pieces that it makes of a step otherwise are handed to a pool of threads one by one, which takes
longer than a step of a few environments. Versions that do not know the marks ignore them."""

ONE_KERNEL_OPTIONS = COMPILER_OPTIONS | {
    "xla_cpu_use_fusion_emitters": False,  # what those make does not fit into such a piece
    # It calls a library for sums of floats, which such a piece cannot.
    "xla_disable_hlo_passes": "dot-library-rewriter",
}
"""Options of XLA for such pieces."""

SMALL_TABLES = 2**13
"""Rows of all environments below which a sum along the slots is one loop: from it on, two levels pay."""

SMALL_OPTIONS = {
    # Two levels double the scalars of sums, each of which costs an allocation in every call.
    "xla_disable_hlo_passes": "dot-library-rewriter,tree_reduction_rewriter",
    "xla_backend_optimization_level": 1,  # compiled in half the time, and no slower
}
"""What is different for small tables."""

KEPT = 64
"""Programs that are kept for environments of equal settings, the latest."""


class Program:
    """A function of environments, compiled for so many of them when it is first needed.

    ``begin(params, *inputs)`` and ``step(params, state, *inputs)`` give a state and outputs.

    Args:
        function: one of the two.
        params: how they are packed.
        begun: the program whose states a step goes on from; None: this is ``begin``.
        envs: how many environments; None: one, without an axis of environments.
        rows: of the tables of all of them.
        on_cpu: whether it runs there.

    Attributes:
        states, outputs: how they are packed, once it is traced.
        shapes: of the packed states, once ``begin`` is traced.
    """

    states: Packing
    outputs: Packing
    shapes: Any

    def __init__(
        self,
        function: Any,
        params: Packing,
        begun: Program | None,
        envs: int | None,
        rows: int,
        on_cpu: bool,
    ) -> None:
        self._function, self._params, self._begun = function, params, begun
        self._batched = envs is not None
        self._one_kernel = on_cpu
        # States are made seldom: there all that counts is the time to compile.
        self._small = begun is None or rows < SMALL_TABLES
        self._lock = threading.Lock()
        self._lowered: Any = None
        self._call: Any = None
        _ALIVE.add(self)

    def forget(self) -> None:
        """Drop what was compiled; it is compiled again when it is needed."""
        with self._lock:
            self._lowered = self._call = None

    def ready(self, *arguments: Any) -> Any:
        """The compiled program; ``arguments`` as it is called with: states, words of params, inputs."""
        if self._call is None:
            self.lower(*arguments)()
        return self._call

    def lower(self, *arguments: Any) -> Callable[[], None]:
        """Trace, unless that is done; returns what is left to do, for any thread: to compile.

        Args:
            arguments: as of ``ready``, or their shapes.
        """
        with self._lock:
            if self._lowered is None and self._call is None:
                self._lowered = self._lower(arguments)
        return self._compile

    def _lower(self, arguments: Any) -> Any:
        """As one piece, where there is a CPU, and a function that gives the usual pieces."""
        donated = () if self._begun is None else (0,)
        inner = jax.jit(self._packed)
        plain = partial(jax.jit(self._packed, donate_argnums=donated).lower, *arguments)
        if not self._one_kernel:
            return plain(), plain

        def marked(*arguments: Any) -> Any:
            return set_xla_metadata(inner(*arguments), **ONE_KERNEL)

        return jax.jit(marked, donate_argnums=donated).lower(*arguments), plain

    @in_32_bits
    def _compile(self) -> None:
        with self._lock:
            if self._call is None:
                lowered, plain = self._lowered
                try:
                    self._call = lowered.compile(compiler_options=self._options())
                except (
                    jax.errors.JaxRuntimeError
                ):  # options and marks come and go with the versions
                    self._call = compiled(plain())
                self._lowered = None

    def _options(self) -> dict[str, Any]:
        if not self._one_kernel:
            return COMPILER_OPTIONS
        options: dict[str, Any] = ONE_KERNEL_OPTIONS | (SMALL_OPTIONS if self._small else {})
        if jax.config.read("jax_disable_most_optimizations"):  # JAX's switch goes first
            options.pop("xla_backend_optimization_level", None)
        return options

    def _packed(self, before: Any, params: jax.Array, *inputs: Any) -> Any:
        unpacked = self._params.unpack(params, [])
        if self._begun is None:
            state, outputs = self._function(unpacked, *inputs)
            self.states = Packing(state, self._batched, SMALL if self._batched else None)
            self.shapes = jax.eval_shape(self.states.pack, state)
        else:
            self.states = self._begun.states
            state, outputs = self._function(unpacked, self.states.unpack(*before), *inputs)
        self.outputs = Packing(outputs, self._batched)
        return self.states.pack(state), self.outputs.pack(outputs)[0]


_ALIVE: weakref.WeakSet[Program] = weakref.WeakSet()
"""The programs that some environment holds."""

_PROGRAMS: OrderedDict[Hashable, Program] = OrderedDict()
_LOCK = threading.Lock()


def shared_program(key: Hashable, make: Callable[[], Program]) -> Program:
    """The program of a key, of another environment if there is one, else the one that ``make`` makes."""
    with _LOCK:
        if key not in _PROGRAMS:
            _PROGRAMS[key] = make()
        _PROGRAMS.move_to_end(key)
        if len(_PROGRAMS) > KEPT:
            _PROGRAMS.popitem(last=False)
        return _PROGRAMS[key]


def forget_programs() -> None:
    """Drop all compiled programs of environments, as ``jax.clear_caches`` drops those of functions."""
    for program in list(_ALIVE):
        program.forget()
