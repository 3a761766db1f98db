"""Training runs: worlds from scenarios, seeds side by side, learning curves, resuming to the bit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.ppo import PPO, iterate
from llmgym.agents.threads import in_threads
from llmgym.agents.trained import TrainedPolicy
from llmgym.agents.worlds import worlds_of
from llmgym.core.checks import check_callable, check_kind, check_path, keep_list, keep_number
from llmgym.core.errors import LLMGymError, check_number, shown
from llmgym.core.files import to_json, write
from llmgym.core.folders import alone_in
from llmgym.core.precision import in_32_bits
from llmgym.envs.rewards import ServiceLevels
from llmgym.evaluation.fleet import compiled, cores
from llmgym.scenario import toml_writer
from llmgym.scenario.arrivals import Poisson
from llmgym.scenario.scenario import Scenario

CHUNK = 5
"""Iterations between two returns to Python: a run stops and resumes at multiples of it."""

SAVE_EVERY_S = 30.0

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called with a seed, its iterations so far, and the last row of its learning curve by column."""


@dataclass(frozen=True)
class Training:
    """What a training run does.

    Args:
        scenarios: one world each; several loads of a scenario are several scenarios. Fewer slots
            train faster; an engine that fills its table starts again, empty.
        settings: of the learner.
        steps: environment steps of each seed, rounded up to whole chunks of iterations.
        seeds: one policy each. A seed gives the same policy alone and beside others.
        patience: stop when the smoothed mean cost has not fallen by 0.1 % for more than this many
            iterations; None: never.
    """

    scenarios: tuple[Scenario, ...]
    settings: PPO = field(default_factory=PPO)
    steps: int = 10_000_000
    seeds: tuple[int, ...] = (0,)
    patience: int | None = None

    def __post_init__(self) -> None:
        keep_list(self, "scenarios", Scenario, "scenarios")
        keep_list(self, "seeds", what="seeds")
        if not isinstance(self.settings, PPO):
            raise LLMGymError(f"settings must be PPO(...), got {shown(self.settings)}.")
        if not self.scenarios or not self.seeds:
            raise LLMGymError("A training run needs at least one scenario and one seed.")
        keep_number(self, "steps", low=1, high=2**50, integer=True)
        seeds = tuple(
            check_number("seed", s, low=0, high=2**32 - 1, integer=True) for s in self.seeds
        )
        object.__setattr__(self, "seeds", seeds)
        if self.patience is not None:
            keep_number(self, "patience", low=1, integer=True)
        for scenario in self.scenarios:
            self._check(scenario)
        if self.settings.warm_up > 1 - 1 / self.iterations:
            raise LLMGymError(
                f"warm_up = {self.settings.warm_up:g} of {self.iterations} iterations leaves none in which "
                f"the policy learns. Use at most {1 - 1 / self.iterations:g}, or more steps."
            )

    def _check(self, scenario: Scenario) -> None:
        if scenario.is_network != isinstance(self.settings.choice, NetworkChoice):
            raise LLMGymError(
                f"Scenario {scenario.name!r} is {'a network' if scenario.is_network else 'no network'} "
                "of engines; networks are trained with a NetworkChoice, one engine with a TileChoice."
            )
        if scenario.demand.end_s is not None:
            raise LLMGymError(
                f"Scenario {scenario.name!r} replays a list of requests, which ends; train on one "
                "whose arrivals go on."
            )
        levels = self.settings.levels
        if levels is not None and (
            scenario.is_network or not scenario.has_targets or ServiceLevels.of(scenario) != levels
        ):
            raise LLMGymError(
                f"The service levels of the learner are not those of {scenario.name!r}: take "
                "ServiceLevels.of(scenario), and train on scenarios with the same targets."
            )
        others = [j.name for j in scenario.job_types if not isinstance(j.arrivals, Poisson)]
        if self.settings.control and others:
            raise LLMGymError(
                f"control=True is for Poisson arrivals, and those of {', '.join(others)} in "
                f"{scenario.name!r} are not; set control=False."
            )

    @property
    def iteration_steps(self) -> int:
        """Environment steps of an iteration."""
        return len(self.scenarios) * self.settings.num_envs * self.settings.steps

    @property
    def iterations(self) -> int:
        """Iterations of a run that is not stopped early."""
        return CHUNK * math.ceil(self.steps / self.iteration_steps / CHUNK)

    def header(self, seed: int) -> dict[str, Any]:
        """Everything that the policy of a seed depends on, as JSON."""
        return {
            "algorithm": "ppo",
            "scenarios": [toml_writer.dumps(s) for s in self.scenarios],
            "settings": asdict(self.settings),
            "steps": self.steps,
            "patience": self.patience,
            "seed": seed,
            "versions": checkpoint.versions(),
        }


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
) -> list[TrainedPolicy]:
    """Train one policy for each seed.

    Args:
        training: what to do.
        out: folder for agent-SEED.npz, curve-SEED.csv and training-SEED.npz. From the last a run that
            was killed goes on, with the same result to the bit.
        progress: called after every chunk of iterations, for each of its seeds.
        together: run all seeds in one vmapped program; else as many at a time as there are cores, with
            results that do not depend on the other seeds. None: together on an accelerator.

    Raises LLMGymError where ``out`` holds another training run, another process writes there or nothing can
    be written, or a seed diverges.
    """
    check_kind("training", training, Training)
    out = None if out is None else check_path("out", out)
    check_callable("progress", progress)
    if together is None:
        together = jax.default_backend() != "cpu"
    groups = [training.seeds] if together else [(seed,) for seed in training.seeds]

    def one(seeds: tuple[int, ...], stop: Event) -> list[TrainedPolicy]:
        run = first if seeds == first.seeds else Run.start(training, seeds)
        return _train(run, program, out, progress or (lambda done, total, row: None), stop)

    with alone_in(out):
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
