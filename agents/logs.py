"""Learning curves as they grow, for TensorBoard and for Weights & Biases.

Both are optional: ``pip install 'llmgym[tensorboard]'``, ``'llmgym[wandb]'``.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from llmgym.core.checks import check_name
from llmgym.core.errors import LLMGymError, in_short

Row = Mapping[str, Any]
"""A row of a learning curve by column: a number, or one for each world."""

WRITER = "tensorboard.summary"


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by name; those of the worlds as ``cost/0``, ``cost/1``."""
    found = {}
    for name, value in row.items():
        values = np.asarray(value, float)
        if values.ndim == 0:
            found[name] = float(values)
        else:
            found |= {f"{name}/{n}": float(x) for n, x in enumerate(values)}
    return found


class Log(ABC):
    """Where the learning curve of one seed goes."""

    @abstractmethod
    def write(self, steps: int, row: Row) -> None:
        """A row, after ``steps`` environment steps."""

    @abstractmethod
    def close(self) -> None:
        """All rows are written."""


class TensorBoardLog(Log):
    """Event files in the folder ``OUT/tensorboard/seed-SEED``, for ``tensorboard --logdir OUT``."""

    def __init__(self, seed: int, out: Path | None, header: Mapping[str, Any]) -> None:
        assert out is not None  # see check_log
        folder = str(out / "tensorboard" / f"seed-{seed}")
        self._writer = needed(WRITER, "tensorboard").Writer(folder)

    def write(self, steps: int, row: Row) -> None:
        for name, value in scalars(row).items():
            self._writer.add_scalar(name, value, steps)

    def close(self) -> None:
        self._writer.close()


class WandbLog(Log):
    """A run of Weights & Biases, of the project in WANDB_PROJECT or ``llmgym``; WANDB_MODE=offline keeps
    it on this machine, in the folder ``OUT/wandb``.
    """

    def __init__(self, seed: int, out: Path | None, header: Mapping[str, Any]) -> None:
        wandb = needed("wandb", "wandb")
        label = "train" if out is None else out.resolve().name
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "llmgym"),
                group=label,
                name=f"{label}-seed-{seed}",
                config=dict(header),
                dir=None if out is None else str(out),
                reinit="create_new",  # the seeds of a run train side by side
            )
        except Exception as error:  # of its many kinds none is known without it
            raise LLMGymError(
                f"Weights & Biases cannot begin a run: {in_short(str(error), 200)}. Log in with "
                "'wandb login', or set WANDB_MODE=offline."
            ) from error

    def write(self, steps: int, row: Row) -> None:
        self._run.log(scalars(row), step=steps)

    def close(self) -> None:
        self._run.finish()


LOGS: dict[str, Callable[[int, Path | None, Mapping[str, Any]], Log]] = {
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
}


def needed(module: str, extra: str) -> Any:
    """A module of an optional package. Raises LLMGymError that names the extra which installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise LLMGymError(
            f"log={extra!r} needs {module.partition('.')[0]}: pip install 'llmgym[{extra}]'."
        ) from error


def check_log(log: str | None, out: Path | None) -> None:
    """Refuse, before anything is trained, a log that has no such name, package or folder."""
    if log is None:
        return
    check_name("log", log, LOGS)
    if log == "tensorboard":
        needed(WRITER, "tensorboard")
        if out is None:
            raise LLMGymError("log='tensorboard' writes into the folder of results: give out=.")
    else:
        needed(log, log)


class Logged:
    """Writes the rows that a training run tells of, each seed into a log of its own.

    Args:
        log: a name in LOGS; None: nowhere.
        out: the folder of results.
        header: of a seed: what its policy depends on.
        iteration_steps: environment steps of an iteration.
    """

    def __init__(
        self,
        log: str | None,
        out: Path | None,
        header: Callable[[int], Mapping[str, Any]],
        iteration_steps: int,
    ) -> None:
        check_log(log, out)
        self._log, self._out, self._header = log, out, header
        self._steps = iteration_steps
        self._open: dict[int, Log] = {}
        self._lock = RLock()

    def row(self, seed: int, iterations: int, row: Row) -> None:
        """A row of a learning curve.

        Args:
            seed: of the policy.
            iterations: that it has made.
            row: the numbers by column.
        """
        if self._log is None:
            return
        with self._lock:
            if seed not in self._open:
                self._open[seed] = LOGS[self._log](seed, self._out, self._header(seed))
            self._open[seed].write(iterations * self._steps, row)

    def __enter__(self) -> Logged:
        return self

    def __exit__(self, *_: object) -> None:
        for log in self._open.values():
            log.close()
