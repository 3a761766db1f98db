"""Compiled programs behind the Gymnasium environments: few arrays in and out, blocks on all cores.

A ``Runner`` keeps the states of one environment or of many and moves them by pure functions. It gives what
those functions would give if they were jitted and called, to the bit, whatever the blocks and threads.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from llmgym.core.blocks import COMPILER_OPTIONS, Crew, block_sizes, compiled, cores
from llmgym.core.errors import LLMGymError
from llmgym.core.precision import in_32_bits
from llmgym.envs.packing import SMALL, Packing

Begin = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``begin(params, keys, extra) -> (state, outputs)``."""

Move = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
"""``move(params, state, action, extra) -> (state, outputs)``."""

ONE_KERNEL = {"xla_cpu_small_call": "true", "inlineable": "false"}
"""Marks of a call that XLA compiles for a CPU as one piece of machine code, run by the calling thread. The
two hundred pieces that it makes of a step otherwise are handed to a pool of threads one by one, which for
one environment takes five times as long as the step. Versions that do not know the marks ignore them."""

ONE_KERNEL_OPTIONS = COMPILER_OPTIONS | {
    "xla_cpu_use_fusion_emitters": False,  # what those make does not fit into such a piece
    # The first doubles the scalars of reductions, each of which costs an allocation in every call; the second
    # calls a library for sums of floats, which such a piece cannot.
    "xla_disable_hlo_passes": "tree_reduction_rewriter,dot-library-rewriter",
}
"""Options of XLA for such pieces."""

QUICKLY = {"xla_backend_optimization_level": 1}
"""They compile in half the time with it, and are no slower. JAX's switch against optimising goes first."""

NARROW = 32
"""Most environments of a block that steps as one piece; wider ones are faster in many."""

KEPT = 64
"""Programs that are kept for environments of equal settings, the latest."""


_ALIVE: weakref.WeakSet[Any] = weakref.WeakSet()
"""The programs that some environment holds."""


class _Program:
    """A function of environments, compiled for so many of them when it is first needed.

    Args:
        function: a Begin or a Move.
        params: how they are packed.
        begun: the program whose states a Move goes on from; None: this is a Begin.
        batched: whether there are several environments.
        one_kernel: whether to compile it as one piece of machine code, where XLA can.

    Attributes:
        states, outputs: how they are packed, once it is traced.
        shapes: of the packed states, once a Begin is traced.
    """

    states: Packing
    outputs: Packing
    shapes: Any

    def __init__(
        self,
        function: Any,
        params: Packing,
        begun: _Program | None,
        batched: bool,
        one_kernel: bool,
    ) -> None:
        self._function, self._params, self._begun = function, params, begun
        self._batched, self._one_kernel = batched, one_kernel
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
        donated = () if self._begun is None else (0,)
        inner = jax.jit(self._packed, donate_argnums=donated)
        plain = partial(inner.lower, *arguments)
        if not self._one_kernel:
            return plain(), None

        def marked(*arguments: Any) -> Any:
            return set_xla_metadata(inner(*arguments), **ONE_KERNEL)

        return jax.jit(marked).lower(*arguments), plain

    @in_32_bits
    def _compile(self) -> None:
        with self._lock:
            if self._call is not None:
                return
            lowered, plain = self._lowered
            try:
                options: dict[str, Any] = COMPILER_OPTIONS if plain is None else ONE_KERNEL_OPTIONS
                if plain is not None and not jax.config.read("jax_disable_most_optimizations"):
                    options = options | QUICKLY
                self._call = lowered.compile(compiler_options=options)
            except jax.errors.JaxRuntimeError:  # options and marks come and go with the versions
                self._call = compiled(lowered if plain is None else plain())
            self._lowered = None

    def _packed(self, before: Any, params: jax.Array, first: Any, extra: Any) -> Any:
        unpacked = self._params.unpack(params, [])
        if self._begun is None:
            state, outputs = self._function(unpacked, first, extra)
            self.states = Packing(state, self._batched, SMALL if self._batched else None)
            self.shapes = jax.eval_shape(self.states.pack, state)
        else:
            self.states = self._begun.states
            state, outputs = self._function(unpacked, self.states.unpack(*before), first, extra)
        self.outputs = Packing(outputs, self._batched)
        return self.states.pack(state), self.outputs.pack(outputs)[0]


class Runner:
    """Environments and their compiled programs: NumPy in, NumPy out.

    Everything but ``params`` has the environments on its last axis when it comes in, as in
    llmgym.envs.functional, and on its first when it comes out. With ``num_envs`` None there is one
    environment, and no such axis. Shapes and types must be the same in every call of a function.

    Args:
        begin: makes the states; see Begin.
        moves: what changes them, by name; see Move.
        params: arrays that all environments share; ``params`` of this object may be set to others of equal
            shapes, and nothing is compiled again.
        same: says what the functions are: runners with equal ``same`` share programs wherever shapes
            are equal too. None: shared with nobody.
        num_envs: how many environments.
        slots: rows of an environment's tables, over all its engines: they say how wide blocks are.
        block: most environments of a block; threads: that run blocks. None: see ``block_sizes``.
    """

    @in_32_bits
    def __init__(
        self,
        begin: Begin,
        moves: Mapping[str, Move],
        params: Any,
        same: Hashable = None,
        num_envs: int | None = None,
        slots: int = 256,
        block: int | None = None,
        threads: int | None = None,
    ) -> None:
        on_cpu = jax.default_backend() == "cpu"
        self.threads = threads or (cores() if on_cpu else 1)
        self._functions: dict[str, Any] = {"": begin, **moves}
        self._same = object() if same is None else same
        self._batched, self._on_cpu = num_envs is not None, on_cpu
        most = block or (None if on_cpu else num_envs)
        sizes = [1] if num_envs is None else block_sizes(num_envs, slots, self.threads, most)
        ends = np.cumsum(sizes).tolist()
        self._parts = [slice(end - n, end) for n, end in zip(sizes, ends, strict=True)]
        self._states: list[Any] | None = None
        self._programs: dict[tuple[str, int], _Program] = {}
        self._packing = Packing(params, batched=False)
        self.params = params

    @property
    def params(self) -> Any:
        """The parameters that all environments share."""
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params, self._words = params, jax.device_put(self._packing.write(params))

    @in_32_bits
    def begin(self, keys: Any, extra: Any = None) -> Any:
        """Make new states; returns the outputs of ``begin``, as ``move`` does.

        Args:
            keys, extra: arrays, of several environments with those on the last axis.
        """
        return self._run("", keys, extra)

    @in_32_bits
    def move(self, name: str, action: Any, extra: Any = None) -> Any:
        """Change the states; returns the outputs of the move. They are the caller's to keep and to change.

        Args:
            name: of the move.
            action, extra: arrays, of several environments with those on the last axis.
        """
        self._check_started()
        return self._run(name, action, extra)

    @in_32_bits
    def compile(self, keys: Any, extra: Any, moves: Mapping[str, tuple[Any, Any]]) -> None:
        """Compile at once what would be compiled when it is first called; the programs side by side.

        Args:
            keys, extra: as of ``begin``.
            moves: by name, an action and what goes with it.
        """
        jobs = []
        for part in {part.stop - part.start: part for part in self._parts}.values():
            program = self._program("", part)
            mine = (keys, extra) if len(self._parts) == 1 else self._of_block(part, (keys, extra))
            jobs.append(program.lower(None, self._words, *mine))
            for name, inputs in moves.items():
                mine = inputs if len(self._parts) == 1 else self._of_block(part, inputs)
                jobs.append(self._program(name, part).lower(program.shapes, self._words, *mine))
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: job(), jobs))

    @property
    def started(self) -> bool:
        """Whether there are states."""
        return self._states is not None

    @property
    def state(self) -> Any:
        """The states as the functions see them, in NumPy, environments last: a copy."""
        self._check_started()
        assert self._states is not None
        layout = self._program("", self._parts[0]).states
        unpacked = [layout.read_state(*jax.device_get(state)) for state in self._states]
        if len(unpacked) == 1:
            return unpacked[0]
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *unpacked)

    def restore(self, state: Any, keys: Any, extra: Any = None) -> None:
        """Go on from ``state``, as an attribute of that name gave it.

        Args:
            state: of as many environments.
            keys, extra: any with which ``begin`` works: what it makes says how states are packed.
        """
        self.begin(keys, extra)
        pack = jax.jit(self._program("", self._parts[0]).states.pack)
        parts = (
            [state] if len(self._parts) == 1 else [self._of_block(p, state) for p in self._parts]
        )
        self._states = [pack(part) for part in parts]

    def _check_started(self) -> None:
        if self._states is None:
            raise LLMGymError("Call reset() first: there is no state yet.")

    def _run(self, name: str, *inputs: Any) -> Any:
        if len(self._parts) == 1:
            return self._run_one(name, inputs)
        count, states, words = len(self._parts), self._states, self._words
        mine = [self._of_block(part, inputs) for part in self._parts]
        before = [None] * count if name == "" or states is None else states
        calls = [
            self._program(name, part).ready(before[n], words, *mine[n])
            for n, part in enumerate(self._parts)
        ]
        new: list[Any] = [None] * count
        found: list[Any] = [None] * count

        def advance(number: int) -> None:
            new[number], made = calls[number](before[number], words, *mine[number])
            found[number] = np.asarray(made)

        self._states = None  # what fails half way leaves nothing to go on from
        _crew(self.threads).run(advance, count)
        self._states = new
        return self._program(name, self._parts[0]).outputs.read(np.concatenate(found, axis=-1))

    def _run_one(self, name: str, inputs: Any) -> Any:
        """As ``_run``, where there is one block."""
        program = self._program(name, self._parts[0])
        before = None if name == "" or self._states is None else self._states[0]
        call = program.ready(before, self._words, *inputs)
        self._states = None
        state, made = call(before, self._words, *inputs)
        self._states = [state]
        return program.outputs.read(np.array(made))  # a copy: JAX's memory cannot be written to

    def _of_block(self, part: slice, inputs: Any) -> Any:
        return tuple(
            None
            if each is None
            else each[..., part]
            if isinstance(each, np.ndarray)
            else jax.tree.map(lambda x: x[..., part], each)
            for each in inputs
        )

    def _program(self, name: str, part: slice) -> _Program:
        size = part.stop - part.start
        program = self._programs.get((name, size))
        if program is None:
            begun = None if name == "" else self._program("", part)
            # States are made seldom: there all that counts is the time to compile.
            one_kernel = self._on_cpu and (size <= NARROW or name == "")
            program = self._programs[name, size] = _shared(
                (self._same, self._packing.key, self._batched, name, size),
                lambda: _Program(
                    self._functions[name], self._packing, begun, self._batched, one_kernel
                ),
            )
        return program


def forget_programs() -> None:
    """Drop all compiled programs of environments, as ``jax.clear_caches`` drops those of functions."""
    for program in list(_ALIVE):
        program.forget()


_PROGRAMS: OrderedDict[Hashable, _Program] = OrderedDict()
_CREWS: dict[int, Crew] = {}
_LOCK = threading.Lock()


def _shared(key: Hashable, make: Callable[[], _Program]) -> _Program:
    """The program of a key, of another runner if there is one."""
    with _LOCK:
        if key not in _PROGRAMS:
            _PROGRAMS[key] = make()
        _PROGRAMS.move_to_end(key)
        if len(_PROGRAMS) > KEPT:
            _PROGRAMS.popitem(last=False)
        return _PROGRAMS[key]


def _crew(threads: int) -> Crew:
    with _LOCK:
        if threads not in _CREWS:
            _CREWS[threads] = Crew(threads)
        return _CREWS[threads]
