"""The states of environments, moved on by compiled programs in blocks on all cores: NumPy in, NumPy out.

What comes out is what the functions would give if they were jitted and called, to the bit, whatever the
blocks and threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.blocks import Crew, block_sizes, cores
from llmgym.core.errors import LLMGymError
from llmgym.core.precision import in_32_bits
from llmgym.envs.packing import Packing
from llmgym.envs.program import Program, shared_program


class Runner:
    """One environment or many: ``begin(params, *inputs)`` and ``step(params, state, action)``, compiled.

    Both give a state and outputs. Everything but ``params`` has the environments on its last axis when it
    comes in, as in llmgym.envs.functional, and on its first when it comes out. With ``num_envs`` None there
    is one environment, and no such axis. Shapes and types must be the same in every call.

    Args:
        begin: makes the states.
        step: changes them.
        params: arrays that all environments share; ``params`` of this object may be set to others of equal
            shapes, and nothing is compiled again.
        same: says what the functions are: runners with equal ``same`` share programs wherever shapes
            are equal too. None: shared with nobody.
        num_envs: how many environments.
        slots: rows of an environment's tables, over all its engines: they say how wide blocks are.
        block: most environments of a block; threads: that run blocks. None: as suits the machine.
    """

    @in_32_bits
    def __init__(
        self,
        begin: Callable[..., Any],
        step: Callable[..., Any],
        params: Any,
        same: Hashable = None,
        num_envs: int | None = None,
        slots: int = 256,
        block: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._on_cpu = jax.default_backend() == "cpu"
        self.threads = threads or (cores() if self._on_cpu else 1)
        self._functions = {"begin": begin, "step": step}
        self._same, self._num_envs = object() if same is None else same, num_envs
        self._rows = slots
        sizes = _sizes(num_envs, slots, self.threads, block, self._on_cpu)
        ends = np.cumsum(sizes).tolist()
        self._parts = [slice(end - n, end) for n, end in zip(sizes, ends, strict=True)]
        self._states: list[Any] | None = None
        self._programs: dict[tuple[str, int], Program] = {}
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
    def begin(self, *inputs: Any) -> Any:
        """Make new states; returns the outputs of ``begin``. They are the caller's to keep and to change."""
        new, outputs = self._run("begin", [None] * len(self._parts), inputs, self._all)
        self._states = new
        return outputs

    @in_32_bits
    def begin_some(self, some: np.ndarray, *inputs: Any) -> Any:
        """Make new states in some environments; the others stay.

        Args:
            some: the environments, bool (num_envs,).
            inputs: of all.

        Returns:
            The outputs of ``begin``, of which the rows of ``some`` are to be used.
        """
        self._check_started()
        states: Any = self._states
        touched = [n for n in self._all if some[self._parts[n]].any()]
        new, outputs = self._run("begin", [None] * len(states), inputs, touched)
        for n in touched:
            states[n] = _merged(some[self._parts[n]], new[n], states[n])
        return outputs

    @in_32_bits
    def step(self, action: Any) -> Any:
        """Change the states; returns the outputs of ``step``. They are the caller's to keep and to change.

        Args:
            action: array, of several environments with those on the last axis.
        """
        self._check_started()
        before: Any = self._states
        self._states = None  # what fails half way leaves nothing to go on from
        self._states, outputs = self._run("step", before, (action,), self._all)
        return outputs

    @in_32_bits
    def compile(self, inputs: tuple[Any, ...], action: Any) -> None:
        """Compile at once, side by side, what would be compiled when it is first called.

        Args:
            inputs: as of ``begin``.
            action: as of ``step``.
        """
        jobs = []
        for part in {part.stop - part.start: part for part in self._parts}.values():
            begun, stepped = self._program("begin", part), self._program("step", part)
            jobs.append(begun.lower(None, self._words, *self._of_block(part, inputs)))
            mine = self._of_block(part, (action,))
            jobs.append(stepped.lower(begun.shapes, self._words, *mine))
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
        layout = self._program("begin", self._parts[0]).states
        unpacked = [layout.read_state(*jax.device_get(state)) for state in self._states]
        if len(unpacked) == 1:
            return unpacked[0]
        return jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1), *unpacked)

    def restore(self, state: Any, *inputs: Any) -> None:
        """Go on from ``state``, as an attribute of that name gave it.

        Args:
            state: of as many environments.
            inputs: any with which ``begin`` works: what it makes says how states are packed.
        """
        self.begin(*inputs)
        pack = jax.jit(self._program("begin", self._parts[0]).states.pack)
        self._states = [pack(*self._of_block(part, (state,))) for part in self._parts]

    def _check_started(self) -> None:
        if self._states is None:
            raise LLMGymError("Call reset() first: there is no state yet.")

    @property
    def _all(self) -> range:
        return range(len(self._parts))

    def _run(self, name: str, before: list[Any], inputs: Any, blocks: Any) -> tuple[Any, Any]:
        """The new states and the outputs of some of the blocks; nothing, and zeros, of the others."""
        if len(self._parts) == 1:
            return self._run_one(name, before[0], inputs)
        words, mine = self._words, [self._of_block(part, inputs) for part in self._parts]
        programs = [self._program(name, part) for part in self._parts]
        calls = {n: programs[n].ready(before[n], words, *mine[n]) for n in blocks}
        new: list[Any] = [None] * len(self._parts)
        rows = np.zeros((programs[blocks[0]].outputs.words, self._num_envs or 1), np.uint32)

        def advance(which: int) -> None:
            n = blocks[which]
            new[n], made = calls[n](before[n], words, *mine[n])
            rows[:, self._parts[n]] = made

        _crew(self.threads).run(advance, len(blocks))
        return new, programs[blocks[0]].outputs.read(rows)

    def _run_one(self, name: str, before: Any, inputs: Any) -> tuple[Any, Any]:
        """As ``_run``, where there is one block."""
        program = self._program(name, self._parts[0])
        state, made = program.ready(before, self._words, *inputs)(before, self._words, *inputs)
        return [state], program.outputs.read(np.array(made))  # a copy: JAX's cannot be written to

    def _of_block(self, part: slice, inputs: Any) -> Any:
        if len(self._parts) == 1:
            return inputs
        return jax.tree.map(lambda x: x[..., part], inputs)

    def _program(self, name: str, part: slice) -> Program:
        size = part.stop - part.start
        program = self._programs.get((name, size))
        if program is None:
            begun = None if name == "begin" else self._program("begin", part)
            envs = None if self._num_envs is None else size
            rows, function = size * self._rows, self._functions[name]
            program = self._programs[name, size] = shared_program(
                (self._same, self._packing.key, name, envs),
                lambda: Program(function, self._packing, begun, envs, rows, self._on_cpu),
            )
        return program


def _sizes(
    envs: int | None, slots: int, threads: int, block: int | None, on_cpu: bool
) -> list[int]:
    """Environments of each block."""
    if envs is None:
        return [1]
    if block is None:
        # A call costs some 150 us whatever it does, and a second thread a third of that.
        few = envs * slots <= 2**15
        block = envs if few or not on_cpu else max(min(256, 2**16 // slots), 16)
        threads = 1 if few else threads
    return block_sizes(envs, slots, threads, block)


@jax.jit
def _merged(some: jax.Array, new: Any, old: Any) -> Any:
    """New states, packed, in the environments that ``some`` names."""
    return jax.tree.map(lambda new, old: jnp.where(some, new, old), new, old)


_CREWS: dict[int, Crew] = {}
_LOCK = threading.Lock()


def _crew(threads: int) -> Crew:
    with _LOCK:
        if threads not in _CREWS:
            _CREWS[threads] = Crew(threads)
        return _CREWS[threads]
