"""The command ``llmgym measure-batch-time``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llmgym.calibration.batches import DTYPES, Settings
from llmgym.cli import common as cli
from llmgym.core.errors import LLMGymError

app = typer.Typer()


@app.command("measure-batch-time")
def measure_batch_time(
    file: Annotated[Path, typer.Argument(help="CSV to write or to continue.")],
    model: Annotated[
        str | None, typer.Option(help="Causal language model of Hugging Face, by name or folder.")
    ] = None,
    layers: Annotated[int, typer.Option(help="Layers of the decoder without --model.")] = 4,
    width: Annotated[int, typer.Option(help="Its width.")] = 512,
    heads: Annotated[int, typer.Option(help="Its heads.")] = 8,
    kv_heads: Annotated[int, typer.Option(help="0: as many as --heads.")] = 0,
    feed_forward: Annotated[int, typer.Option(help="Inner width; 0: 4 x --width.")] = 0,
    vocabulary: Annotated[int, typer.Option(help="Size of its vocabulary.")] = 32000,
    device: Annotated[
        str | None, typer.Option(help="PyTorch device; cuda by default where there is a GPU.")
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "float32",
    decodes: Annotated[str, typer.Option(help="Requests that decode.")] = "0,1,8,32,128",
    context: Annotated[str, typer.Option(help="Tokens in the cache of each.")] = "128,1024",
    chunk: Annotated[str, typer.Option(help="Tokens of prefill.")] = "0,32,128,512",
    prefix: Annotated[str, typer.Option(help="Tokens in the cache before it.")] = "0,1024",
    warmup: Annotated[int, typer.Option(help="Passes before the timing.")] = 3,
    repeats: Annotated[int, typer.Option(help="Passes whose median counts.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order.")] = 0,
    as_json: cli.Json = False,
) -> None:
    """Time batches of a model on this machine, for `llmgym calibrate`. Resumes; needs PyTorch."""
    from llmgym.calibration import measure as measuring

    lists = {"decodes": decodes, "context": context, "chunk": chunk, "prefix": prefix}
    settings = Settings(
        model=model, layers=layers, width=width, heads=heads, kv_heads=kv_heads,
        feed_forward=feed_forward, vocabulary=vocabulary, warmup=warmup, repeats=repeats, seed=seed,
        device=device or measuring.first_device(), dtype=dtype,
        **{name: _numbers(name, text) for name, text in lists.items()},
    )  # fmt: skip
    with cli.counter(as_json) as progress:
        found = measuring.measure(settings, file, progress)
    if as_json:
        return cli.print_json({"file": str(file), **asdict(found)})
    cli.show(f"{file}: {found.before} batches were there, {found.added} were added.")
    if found.left_out:
        cli.show(f"{found.left_out} batches did not fit into the memory of {settings.device}.")
    cli.show(f"Fit: {shlex.join(['llmgym', 'calibrate', str(file), '--out', 'calibrated'])}")


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise LLMGymError(f"--{name} {text}: write whole numbers, such as 0,8,32.") from None
