"""Training runs: worlds from scenarios, seeds side by side, learning curves, resuming to the bit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from llmgym.agents import checkpoint
from llmgym.agents.learner import Learner, stalled
from llmgym.agents.logs import Logged
from llmgym.agents.ppo import PPO, iterate
from llmgym.agents.threads import in_threads
from llmgym.agents.trained import TrainedPolicy
from llmgym.agents.training_plan import CHUNK, Training
from llmgym.agents.worlds import worlds_of
from llmgym.core.checks import check_callable, check_kind, check_path
from llmgym.core.errors import LLMGymError
from llmgym.core.files import to_json, write
from llmgym.core.folders import alone_in
from llmgym.core.precision import in_32_bits
from llmgym.evaluation.fleet import compiled, cores

SAVE_EVERY_S = 30.0

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called with a seed, its iterations so far, and the last row of its learning curve by column."""


def begin(training: Training, seed: int) -> tuple[tuple[Any, ...], Learner]:
    """Physics, and a learner that has learned nothing."""
    key = jax.random.key(seed, impl="threefry2x32")
    physics, worlds = worlds_of(training.scenarios, training.settings, jax.random.fold_in(key, 0))
    params = training.settings.params(jax.random.fold_in(key, 1), len(training.scenarios))
    state = training.settings.optimizer(training.iterations).init(params)
    words = jax.random.key_data(jax.random.fold_in(key, 2))
    return physics, Learner(params, state, worlds, words, jnp.int32(0))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _chunk(
    settings: PPO, iterations: int, physics: tuple[Any, ...], learners: Learner
) -> tuple[Learner, dict[str, jax.Array]]:
    """CHUNK iterations of learners; they and their learning curves have the axis of seeds first."""

    def one(learner: Learner) -> tuple[Learner, dict[str, jax.Array]]:
        step = lambda learner, _: iterate(settings, iterations, physics, learner)  # noqa: E731
        return jax.lax.scan(step, learner, None, length=CHUNK)

    if learners.iteration.size > 1:
        return jax.vmap(one)(learners)
    alone = jax.tree.map(lambda x: x[0], learners)
    return jax.tree.map(lambda x: x[None], one(alone))


@dataclass
class Run:
    """The learners of some seeds in training: their state and learning curves (seeds, iterations, ...)."""

    training: Training
    seeds: tuple[int, ...]
    physics: tuple[Any, ...]
    learners: Learner
    curve: dict[str, np.ndarray]

    @classmethod
    def start(cls, training: Training, seeds: tuple[int, ...]) -> Run:
        """Learners that have learned nothing."""
        begun = [begin(training, seed) for seed in seeds]
        learners = jax.tree.map(lambda *x: jnp.stack(x), *(learner for _, learner in begun))
        return cls(training, seeds, begun[0][0], learners, {})

    @property
    def done(self) -> int:
        """Iterations so far."""
        return next(iter(self.curve.values())).shape[1] if self.curve else 0

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do: all iterations are done, or all seeds have stalled."""
        patience = self.training.patience
        if self.done >= self.training.iterations or patience is None or not self.done:
            return self.done >= self.training.iterations
        return all(stalled(cost, patience) for cost in self.curve["cost"])

    def advance(self, program: Any) -> None:
        """CHUNK more iterations. Raises LLMGymError where a seed diverges, and before it is saved."""
        self.learners, rows = program(self.physics, self.learners)
        rows = {name: np.asarray(x) for name, x in rows.items()}
        if self.curve and self.curve.keys() != rows.keys():
            raise LLMGymError(
                "The learning curve that was read is damaged. Delete its training-*.npz."
            )
        self.curve = {
            name: np.concatenate([self.curve[name], x], axis=1) if self.curve else x
            for name, x in rows.items()
        }
        self._check_finite()

    def _check_finite(self) -> None:
        """Refuse seeds with weights, or numbers of the last chunk, that are not finite.

        Weights as well as losses: a policy of NaN still acts, and leaves the critic's loss finite.
        """
        weights = jax.device_get(jax.tree.leaves(self.learners.params))
        recent = [x[:, -CHUNK:] for x in self.curve.values()]
        for n, seed in enumerate(self.seeds):
            if not all(np.isfinite(x[n]).all() for x in (*weights, *recent)):
                raise LLMGymError(
                    f"Seed {seed} diverged by iteration {self.done}: its numbers are no longer finite. "
                    "What was saved before is kept. Take lower loads, a shorter horizon_s or a lower "
                    "learning_rate."
                )

    def save(self, path: Path) -> None:
        """Everything that ``resume`` needs."""
        leaves = jax.tree.leaves(jax.device_get(self.learners))
        arrays = {f"state/{n}": x for n, x in enumerate(leaves)}
        arrays |= {f"curve/{name}": x for name, x in self.curve.items()}
        checkpoint.write_arrays(path, arrays, self._header())

    def resume(self, path: Path) -> None:
        """Go on from a file of ``save``. Raises LLMGymError where it is of another training run."""
        leaves, structure = jax.tree.flatten(self.learners)
        most = checkpoint.MOST_OF_AN_AGENT + 2 * sum(x.nbytes for x in leaves)
        arrays, header = checkpoint.read_arrays(path, most)
        if header != json.loads(to_json(self._header())):
            raise LLMGymError(
                f"{path} belongs to a training run with other settings, scenarios or versions; "
                "choose another --out folder, or delete it."
            )
        found = [arrays.get(f"state/{n}") for n in range(len(leaves))]
        for x, leaf in zip(found, leaves, strict=True):
            if x is None or x.shape != leaf.shape or x.dtype != leaf.dtype:
                raise LLMGymError(f"{path} is damaged: a part of its state is missing. Delete it.")
        self.learners = jax.tree.unflatten(structure, list(map(jnp.asarray, found)))
        self.curve = {
            name.removeprefix("curve/"): x
            for name, x in arrays.items()
            if name.startswith("curve/")
        }
        done = {x.shape[:2] for x in self.curve.values()}
        if done != {(len(self.seeds), int(self.learners.iteration[0]))}:
            raise LLMGymError(f"{path} is damaged: its learning curve is cut. Delete it.")

    def _header(self) -> dict[str, Any]:
        return {"format": checkpoint.FORMAT, "kind": "training"} | self.training.header(
            self.seeds[0]
        )

    def finish(self, out: Path | None) -> list[TrainedPolicy]:
        """The policies, written to ``out`` with their learning curves; none where one has diverged."""
        self._check_finite()
        found = []
        for n, seed in enumerate(self.seeds):
            actor = jax.device_get(jax.tree.map(lambda x, n=n: x[n], self.learners.params["actor"]))
            choice, header = self.training.settings.choice, self.training.header(seed)
            header["iterations"] = self.done
            policy = checkpoint.policy_of(choice, actor, header, f"ppo-{seed}")
            found.append(policy)
            if out is not None:
                checkpoint.save_agent(out / f"agent-{seed}.npz", policy)
                write(out / f"curve-{seed}.csv", self._table(n).to_csv(index=False))
        return found

    def _table(self, n: int) -> pd.DataFrame:
        """The learning curve of a seed, a row for each iteration and a column for each world."""
        columns: dict[str, np.ndarray] = {
            "steps": self.training.iteration_steps * np.arange(1, self.done + 1)
        }
        for name, x in self.curve.items():
            if x.ndim == 2:
                columns[name] = x[n]
            else:
                columns |= {f"{name}_{w}": x[n, :, w] for w in range(x.shape[2])}
        return pd.DataFrame(columns)


@in_32_bits
def train(
    training: Training,
    out: Path | str | None = None,
    progress: Progress | None = None,
    together: bool | None = None,
    log: str | None = None,
) -> list[TrainedPolicy]:
    """Train one policy for each seed.

    Args:
        training: what to do.
        out: folder for agent-SEED.npz, curve-SEED.csv and training-SEED.npz. From the last a run that
            was killed goes on, with the same result to the bit.
        progress: called after every chunk of iterations, for each of its seeds.
        together: run all seeds in one vmapped program; else as many at a time as there are cores, with
            results that do not depend on the other seeds. None: together on an accelerator.
        log: "tensorboard" or "wandb": the learning curves go there as well, a row for each chunk.

    Raises LLMGymError where ``out`` holds another training run, another process writes there or nothing can
    be written, or a seed diverges.
    """
    check_kind("training", training, Training)
    out = None if out is None else check_path("out", out)
    check_callable("progress", progress)
    if together is None:
        together = jax.default_backend() != "cpu"
    groups = [training.seeds] if together else [(seed,) for seed in training.seeds]

    logged = Logged(log, out, training.header, training.iteration_steps)

    def told(seed: int, done: int, row: dict[str, Any]) -> None:
        logged.row(seed, done, row)
        if progress is not None:
            progress(seed, done, row)

    def one(seeds: tuple[int, ...], stop: Event) -> list[TrainedPolicy]:
        run = first if seeds == first.seeds else Run.start(training, seeds)
        return _train(run, program, out, told, stop)

    with alone_in(out), logged:
        first = Run.start(training, groups[0])
        static = (training.settings, training.iterations)
        program = compiled(_chunk.lower(*static, first.physics, first.learners))
        found = in_threads(one, groups, min(cores(), len(groups)))
    return [policy for several in found for policy in several]


def _train(
    run: Run, program: Any, out: Path | None, progress: Progress, stop: Event
) -> list[TrainedPolicy]:
    path = None if out is None else out / f"training-{run.seeds[0]}.npz"
    if path is not None and path.exists():
        run.resume(path)
    saved = time.monotonic()
    while not run.over:
        run.advance(program)
        for n, seed in enumerate(run.seeds):
            progress(seed, run.done, {k: v[n, -1] for k, v in run.curve.items()})
        due = run.over or stop.is_set() or time.monotonic() > saved + SAVE_EVERY_S
        if path is not None and due:
            run.save(path)
            saved = time.monotonic()
        if stop.is_set():
            return []
    return run.finish(out)
