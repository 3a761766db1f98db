"""Which batches are measured, and with what: the settings of ``llmgym.calibration.measure``."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from llmgym.core.checks import MOST_SEED, as_list, check_name, check_text, keep_number
from llmgym.core.errors import LLMGymError, check_number

DTYPES = ("float32", "bfloat16", "float16")

MOST = 2**24
"""Largest size of a decoder or of a batch."""

Pass = Callable[[], object]
"""Runs one batch; it may be called many times."""


@dataclass(frozen=True)
class Shape:
    """What a batch is made of: decodes with their context, a prefill chunk with its prefix, in tokens."""

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


@dataclass(frozen=True)
class Settings:
    """What is measured, and on what.

    Attributes:
        model: a causal language model of Hugging Face, by name or folder; None: a decoder of the sizes below.
        layers, width, heads, kv_heads, feed_forward, vocabulary: sizes of that decoder; 0 for ``kv_heads``
            means as many as ``heads``, 0 for ``feed_forward`` 4 times ``width``.
        device, dtype: of PyTorch, such as ``"cuda"``, and a name in DTYPES.
        decodes, context, chunk, prefix: the lists whose combinations are measured, see ``measure``.
        warmup, repeats: passes before the timing, and passes whose median counts.
        seed: of the weights and of the order.

    Raises LLMGymError for an unknown dtype, and for numbers out of range or that do not fit together.
    """

    model: str | None = None
    layers: int = 4
    width: int = 512
    heads: int = 8
    kv_heads: int = 0
    feed_forward: int = 0
    vocabulary: int = 32000
    device: str = "cpu"
    dtype: str = "float32"
    decodes: tuple[int, ...] = (0, 1, 8, 32, 128)
    context: tuple[int, ...] = (128, 1024)
    chunk: tuple[int, ...] = (0, 32, 128, 512)
    prefix: tuple[int, ...] = (0, 1024)
    warmup: int = 3
    repeats: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("kv_heads", "feed_forward"):
            keep_number(self, name, low=0, high=MOST, integer=True)
        for name in ("layers", "width", "heads", "vocabulary", "repeats"):
            keep_number(self, name, low=1, high=MOST, integer=True)
        object.__setattr__(self, "kv_heads", self.kv_heads or self.heads)
        object.__setattr__(self, "feed_forward", self.feed_forward or 4 * self.width)
        check_name("dtype", self.dtype, DTYPES)
        check_text("device", self.device)
        if self.model is not None:
            check_text("model", self.model)
        for name in ("decodes", "context", "chunk", "prefix"):
            self._keep_counts(name)
        keep_number(self, "warmup", low=0, high=MOST, integer=True)
        keep_number(self, "seed", low=0, high=MOST_SEED, integer=True)
        if self.width % self.heads or self.heads % self.kv_heads:
            raise LLMGymError("heads must divide width, and kv_heads must divide heads.")

    def _keep_counts(self, name: str) -> None:
        """Check one of the four lists, and keep it as a tuple of whole numbers."""
        given = as_list(name, getattr(self, name), what="whole numbers")
        counts = tuple(check_number(name, x, high=MOST, integer=True) for x in given)
        if min(counts, default=-1) < 0:
            raise LLMGymError(f"{name} must be one number or more, each at least 0.")
        object.__setattr__(self, name, counts)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes of the decoder."""
        return ("layers", "width", "heads", "kv_heads", "feed_forward", "vocabulary")

    @property
    def name(self) -> str:
        """The model as the file names it."""
        decoder = "decoder-" + "-".join(str(getattr(self, size)) for size in self.sizes)
        return f"{self.model or decoder} {self.dtype}"


def grid(settings: Settings) -> list[Shape]:
    """The different batches of the four lists, in random order; without mixed ones for a named model."""
    found = {
        Shape(decodes, context if decodes else 0, chunk, prefix if chunk else 0)
        for decodes, context, chunk, prefix in product(
            settings.decodes, settings.context, settings.chunk, settings.prefix
        )
        if decodes + chunk and not (settings.model and decodes and chunk)
    }
    shapes = sorted(found, key=lambda s: (s.tokens, s.decodes, s.context, s.prefix))
    return random.Random(settings.seed).sample(shapes, len(shapes))
