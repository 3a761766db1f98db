r"""Measure the time of batches on a CPU or a GPU, for ``llmgym calibrate``.

    python tools/measure_batch_time.py times.csv --device cuda --dtype bfloat16 \
        --layers 32 --width 4096 --heads 32 --kv-heads 8 --feed-forward 14336 --vocabulary 128256
    llmgym calibrate times.csv --out calibrated

A batch holds one token of each of ``decodes`` requests that have ``context`` tokens in their KV
cache, and a prefill chunk of ``chunk`` tokens of one request that has ``prefix`` tokens in its cache. All
combinations of the four lists are measured, each as the median of several passes after a warm-up, with
the device synchronised before and after each. A pass is the forward pass with attention over the caches,
and the choice of the next token for every request that gets one.

Without --model, the model is a decoder of the Llama family with random weights (times do not depend on
their values): RMS norms, grouped-query attention, SwiGLU, no rotation of positions. The tokens of a
batch go through its linear layers together, as in an inference engine. With --model, it is a causal
language model of Hugging Face transformers. Its forward pass takes either decodes or prefill, so mixed
batches are left out.

The order is random, so that a device that slows down as it warms up affects all sizes equally. Rows are
appended as they come, and a run that was stopped continues where it was. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn import functional

COLUMNS = (
    "tokens", "ms", "decode_context", "prefill_pairs",
    "decodes", "context", "chunk", "prefix", "model", "device",
)  # fmt: skip
Pass = Callable[[], object]
"""Runs one batch; it may be called many times."""

Place = dict[str, Any]
"""Device and type of tensors."""


@dataclass(frozen=True)
class Shape:
    """What a batch is made of."""

    decodes: int
    context: int
    chunk: int
    prefix: int

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.decodes + self.chunk

    @property
    def measures(self) -> dict[str, float]:
        """The inputs of the batch-time models."""
        pairs = self.chunk * (self.prefix + self.chunk / 2)
        context = self.decodes * self.context
        return {"tokens": self.tokens, "decode_context": context, "prefill_pairs": pairs}


def grid(options: argparse.Namespace) -> list[Shape]:
    """The different batches of the four lists, in random order."""
    found = {
        Shape(decodes, context if decodes else 0, chunk, prefix if chunk else 0)
        for decodes, context, chunk, prefix in product(
            options.decodes, options.context, options.chunk, options.prefix
        )
        if decodes + chunk and not (options.model and decodes and chunk)
    }
    shapes = sorted(found, key=lambda s: (s.tokens, s.decodes, s.context, s.prefix))
    return random.Random(options.seed).sample(shapes, len(shapes))


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a norm and with a residual connection."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, place: Place) -> None:
        super().__init__()
        linear = partial(nn.Linear, bias=False, **place)
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, **place), nn.RMSNorm(width, **place)
        self.qkv = linear(width, (heads + 2 * kv_heads) * self.size)
        self.out = linear(heads * self.size, width)
        self.gate_up = linear(width, 2 * inner)
        self.down = linear(inner, width)

    def forward(
        self, x: torch.Tensor, decodes: int, caches: list[torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """``x`` (tokens, width): the decodes, then the chunk; ``caches``: one for each of the two parts."""
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(self.norm_1(x)).view(len(x), -1, self.size).split(heads, dim=1)
        kv, parts = torch.stack((k, v)), []
        if decodes:
            caches[0][:, :, :, -1] = kv[:, :decodes]
            parts.append(self.attend(q[:decodes, None], caches[0], None))
        if len(x) > decodes:
            caches[1][:, 0, :, -(len(x) - decodes) :] = kv[:, decodes:].transpose(1, 2)
            parts.append(self.attend(q[None, decodes:], caches[1], mask))
        x = x + self.out(torch.cat(parts))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)

    def attend(
        self, q: torch.Tensor, cache: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Queries (requests, tokens, heads, size) on a cache (2, requests, kv_heads, length, size)."""
        requests, tokens = q.shape[:2]
        # Heads that share keys and values are placed one after another, as if they were more queries.
        q = q.view(requests, tokens, self.kv_heads, -1, self.size).permute(0, 2, 3, 1, 4)
        group = q.shape[2]
        mask = None if mask is None else mask.repeat(group, 1)
        found = functional.scaled_dot_product_attention(
            q.flatten(2, 3), cache[0], cache[1], attn_mask=mask
        )
        found = found.view(requests, self.kv_heads, group, tokens, self.size)
        return found.permute(0, 3, 1, 2, 4).reshape(requests * tokens, -1)


class Decoder(nn.Module):
    """A decoder with random weights."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.place: Place = {
            "device": options.device,
            "dtype": getattr(torch, options.dtype),
        }
        sizes = (options.width, options.heads, options.kv_heads, options.feed_forward)
        self.embedding = nn.Embedding(options.vocabulary, options.width, **self.place)
        self.layers = nn.ModuleList(Layer(*sizes, self.place) for _ in range(options.layers))
        self.norm = nn.RMSNorm(options.width, **self.place)
        self.head = nn.Linear(options.width, options.vocabulary, bias=False, **self.place)

    def prepare(self, shape: Shape) -> Pass:
        """Fill the caches for a batch, and return its pass."""
        device = self.place["device"]
        lengths = ((shape.decodes, shape.context + 1), (1, shape.prefix + shape.chunk))
        caches = [
            [
                torch.randn(2, n, layer.kv_heads, length, layer.size, **self.place)
                for n, length in lengths
            ]
            for layer in self.layers
        ]
        ids = torch.randint(self.embedding.num_embeddings, (shape.tokens,), device=device)
        seen = torch.ones(shape.chunk, shape.prefix + shape.chunk, dtype=torch.bool, device=device)
        mask = seen.tril(shape.prefix)
        ends = [*range(shape.decodes), *[shape.tokens - 1] * bool(shape.chunk)]
        last = torch.tensor(ends, device=device)

        def run() -> torch.Tensor:
            x = self.embedding(ids)
            for layer, cache in zip(self.layers, caches, strict=True):
                x = layer(x, shape.decodes, cache, mask)
            return self.head(self.norm(x[last])).argmax(dim=-1)

        return run


class HuggingFace:
    """A causal language model of transformers."""

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        try:
            from transformers import AutoModelForCausalLM, DynamicCache
        except ImportError:
            raise SystemExit("--model needs transformers: pip install transformers") from None
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            raise SystemExit(f"Cannot load {name}: {str(error).splitlines()[0]}") from None
        self.model, self.cache = model.to(device).eval(), DynamicCache

    def prepare(self, shape: Shape) -> Pass:
        """Fill the cache for a batch, and return its pass."""
        rows, new = (shape.decodes, 1) if shape.decodes else (1, shape.chunk)
        before = shape.context if shape.decodes else shape.prefix
        vocabulary, device = self.model.config.get_text_config().vocab_size, self.model.device
        cache = self.cache()
        if before:
            ids = torch.randint(vocabulary, (1, before), device=device)
            self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(rows)
        ids = torch.randint(vocabulary, (rows, new), device=device)

        def run() -> torch.Tensor:
            out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-new)
            return out.logits[:, -1].argmax(dim=-1)

        return run


def time_ms(run: Pass, device: str, warmup: int, repeats: int) -> float:
    """Median time of a pass in milliseconds."""

    def finish() -> None:
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


def rows_there(path: Path, model: str, device: str) -> set[Shape]:
    """The batches that the file holds. A new file is started; a damaged last row is cut off."""
    header = ",".join(COLUMNS) + "\n"
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1] or header
    rows = list(csv.DictReader(whole.splitlines()))
    if not whole.startswith(header) or any(None in row.values() for row in rows):
        raise SystemExit(f"{path} is damaged or was not written by this tool. Name a new file.")
    if {(row["model"], row["device"]) for row in rows} - {(model, device)}:
        raise SystemExit(f"{path} holds times of another model or device. Name a new file.")
    if whole != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(whole)
    return {
        Shape(*(int(row[k]) for k in ("decodes", "context", "chunk", "prefix"))) for row in rows
    }


def measure(options: argparse.Namespace, console: Console) -> None:
    """Measure the batches that are missing in the file."""
    path = Path(options.file)
    torch.manual_seed(options.seed)
    sizes = ("layers", "width", "heads", "kv_heads", "feed_forward", "vocabulary")
    name = options.model or "decoder-" + "-".join(str(getattr(options, s)) for s in sizes)
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else options.device
    there = rows_there(path, f"{name} {options.dtype}", where)
    shapes = [shape for shape in grid(options) if shape not in there]
    console.print(f"{len(there)} batches in {path}, {len(shapes)} to measure.")
    if not shapes:
        return
    model = (
        HuggingFace(options.model, options.device, getattr(torch, options.dtype))
        if options.model
        else Decoder(options)
    )
    left_out = 0
    with path.open("a", newline="") as file, torch.inference_mode():
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        for shape in track(shapes, "measuring", console=console, transient=True):
            try:
                ms = time_ms(model.prepare(shape), options.device, options.warmup, options.repeats)
            except torch.OutOfMemoryError:
                left_out += 1
                continue
            identity = {"model": f"{name} {options.dtype}", "device": where}
            writer.writerow(shape.measures | vars(shape) | identity | {"ms": f"{ms:.6g}"})
            file.flush()
    if left_out:
        console.print(f"{left_out} batches did not fit into the memory of {where}.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        description="Measure the time of batches, for `llmgym calibrate`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("file", help="CSV to write or to continue")
    add("--model", help="causal language model of Hugging Face, by name or folder")
    for name, size in (("layers", 4), ("width", 512), ("heads", 8), ("vocabulary", 32000)):
        add(f"--{name}", type=int, default=size)
    add("--kv-heads", type=int, help="default: as many as --heads")
    add("--feed-forward", type=int, help="inner width; default: 4 x width")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    add("--decodes", type=int, nargs="+", default=[0, 1, 8, 32, 128], help="requests that decode")
    add("--context", type=int, nargs="+", default=[128, 1024], help="tokens in the cache of each")
    add("--chunk", type=int, nargs="+", default=[0, 32, 128, 512], help="tokens of prefill")
    add("--prefix", type=int, nargs="+", default=[0, 1024], help="tokens in the cache before it")
    add("--warmup", type=int, default=3)
    add("--repeats", type=int, default=10)
    add("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    options.kv_heads = options.kv_heads or options.heads
    options.feed_forward = options.feed_forward or 4 * options.width
    lists = (options.decodes, options.context, options.chunk, options.prefix)
    sizes = (options.layers, options.width, options.heads, options.kv_heads, options.vocabulary)
    if min(map(min, lists)) < 0 or options.warmup < 0:
        parser.error("numbers of requests, tokens and warm-up passes must not be negative")
    if min(*sizes, options.feed_forward, options.repeats) < 1:
        parser.error("sizes of the model and --repeats must be at least 1")
    if options.width % options.heads or options.heads % options.kv_heads:
        parser.error("--heads must divide --width, and --kv-heads must divide --heads")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device here")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, with a progress bar on standard error."""
    console = Console(stderr=True)
    try:
        measure(parse(arguments), console)
    except OSError as error:
        raise SystemExit(f"Cannot read or write {error.filename}: {error.strerror}.") from None
    except KeyboardInterrupt:
        console.print("Stopped. The same command continues from here.")
        sys.exit(130)


if __name__ == "__main__":
    main()
