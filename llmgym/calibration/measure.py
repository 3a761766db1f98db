"""Measuring the time of batches on a CPU or a GPU, for ``llmgym calibrate``.

A batch holds one token of each of ``decodes`` requests that have ``context`` tokens in their KV
cache, and a prefill chunk of ``chunk`` tokens of one request that has ``prefix`` tokens in its cache. All
combinations of the four lists are measured, each as the median of several passes after a warm-up, with
the device synchronised before and after each. A pass is the forward pass with attention over the caches,
and the choice of the next token for every request that gets one.

Without a model by name, the model is a decoder of the Llama family with random weights (times do not
depend on their values): RMS norms, grouped-query attention, SwiGLU, no rotation of positions. The tokens
of a batch go through its linear layers together, as in an inference engine. With a name, it is a causal
language model of Hugging Face transformers. Its forward pass takes either decodes or prefill, so mixed
batches are left out.

The order is random, so that a device that slows down as it warms up affects all sizes equally. Rows are
appended as they come, and a run that was stopped continues where it was. Needs PyTorch.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmgym.calibration.batches import Pass, Settings, Shape, grid
from llmgym.calibration.data import MOST_BYTES
from llmgym.core.errors import LLMGymError
from llmgym.core.files import csv_cell, write
from llmgym.core.folders import alone_in
from llmgym.core.reading import read_text
from llmgym.core.text import one_line

COLUMNS = (
    "tokens", "ms", "decode_context", "prefill_pairs",
    "decodes", "context", "chunk", "prefix", "model", "device",
)  # fmt: skip
SHAPE = ("decodes", "context", "chunk", "prefix")

Progress = Callable[[int, int, str], None]
"""Called with how many batches are done, how many there are, and what comes next."""


@dataclass(frozen=True)
class Measured:
    """What a call of ``measure`` did: batches of the file before, those added, those too large for memory."""

    before: int
    added: int
    left_out: int


def measure(settings: Settings, path: Path, progress: Progress | None = None) -> Measured:
    """Measure the batches that are missing in a file.

    Args:
        settings: which batches, and of what model.
        path: the CSV file; a missing one is started, with its folder.
        progress: told before each batch and at the end.

    Raises:
        LLMGymError: no PyTorch or device, a file that cannot be read or written, one that holds
            something else, or a folder that another process writes to.
    """
    torch = _torch(settings.device)
    torch.manual_seed(settings.seed)
    cuda = settings.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else settings.device
    try:
        with alone_in(path.parent):
            there = _rows_there(path, _cell(settings.name), _cell(where))
            shapes = [shape for shape in grid(settings) if shape not in there]
            added = _measure(settings, path, shapes, where, progress or (lambda *_: None))
    except OSError as error:
        raise LLMGymError(f"Cannot read or write {path}: {error.strerror}.") from None
    return Measured(len(there), added, len(shapes) - added)


def _measure(
    settings: Settings, path: Path, shapes: list[Shape], where: str, progress: Progress
) -> int:
    """Append a row for each of the batches that fit into memory, and return their number."""
    from llmgym.calibration.torch_models import model_of, torch

    if not shapes:
        return 0
    model, added = model_of(settings), 0
    with path.open("a", newline="") as file, torch.inference_mode():
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for n, shape in enumerate(shapes):
            progress(n, len(shapes), f"{shape.decodes} decodes, {shape.chunk} prefill tokens")
            try:
                run = model.prepare(shape)
                ms = _time_ms(run, settings.device, settings.warmup, settings.repeats)
            except torch.OutOfMemoryError:
                continue
            identity = {"model": _cell(settings.name), "device": _cell(where)}
            writer.writerow(shape.measures | vars(shape) | identity | {"ms": f"{ms:.6g}"})
            file.flush()
            added += 1
    progress(len(shapes), len(shapes), "done")
    return added


def _cell(name: str) -> str:
    """A name as the file holds it: in one line, so that it is the same when it is read again."""
    return str(csv_cell(one_line(name)))


def _torch(device: str) -> Any:
    """PyTorch with the device."""
    try:
        import torch
    except ImportError:
        raise LLMGymError("Measuring needs PyTorch: pip install torch") from None
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LLMGymError("PyTorch finds no CUDA device here. Choose --device cpu.")
    try:
        # "meta" holds no numbers, so that nothing is computed there.
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError):  # the second: built without the device
        raise LLMGymError(
            f"PyTorch cannot compute on the device {device!r} here. Choose --device cpu, or cuda."
        ) from None
    return torch


def first_device() -> str:
    """``"cuda"`` where PyTorch finds a GPU, else ``"cpu"``."""
    try:
        import torch
    except ImportError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _time_ms(run: Pass, device: str, warmup: int, repeats: int) -> float:
    """Median time of a pass in milliseconds."""

    def finish() -> None:
        import torch

        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    times = []
    for n in range(warmup + repeats):
        finish()
        start = time.perf_counter()
        run()
        finish()
        if n >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def _rows_there(path: Path, model: str, device: str) -> set[Shape]:
    """The batches that the file holds. A new file is started; a damaged last row is cut off."""
    header = ",".join(COLUMNS) + "\n"
    text = read_text(path, "measurements", MOST_BYTES) if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] or header
    try:
        rows = list(csv.DictReader(whole.splitlines()))
        there = {Shape(*(int(row[k]) for k in SHAPE)) for row in rows}
    except (csv.Error, KeyError, TypeError, ValueError):
        rows, whole = [], ""
    if not whole.startswith(header) or any(None in row.values() for row in rows):
        raise LLMGymError(f"{path} is damaged, or not a file of measured batches. Name a new file.")
    if {(row["model"], row["device"]) for row in rows} - {(model, device)}:
        raise LLMGymError(f"{path} holds times of another model or device. Name a new file.")
    if whole != text:
        write(path, whole)
    return there
