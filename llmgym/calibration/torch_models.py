"""Models in PyTorch whose batches are timed: a decoder with random weights, and those of transformers.

Nothing else of llmgym imports this module at its top, so PyTorch is needed only to measure.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from llmgym.calibration.batches import Pass, Settings, Shape
from llmgym.core.errors import LLMGymError

Place = dict[str, Any]
"""Device and type of tensors."""


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a norm and with a residual connection."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, place: Place) -> None:
        super().__init__()
        linear: Any = partial(nn.Linear, bias=False, **place)
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.norm_1, self.norm_2 = nn.RMSNorm(width, **place), nn.RMSNorm(width, **place)
        self.qkv = linear(width, (heads + 2 * kv_heads) * self.size)
        self.out = linear(heads * self.size, width)
        self.gate_up = linear(width, 2 * inner)
        self.down = linear(inner, width)

    def forward(
        self, x: torch.Tensor, decodes: int, caches: list[torch.Tensor], mask: torch.Tensor
    ) -> torch.Tensor:
        """What the layer makes of a batch, (tokens, width). Its keys and values enter the caches.

        Args:
            x: (tokens, width): one token of each decode, then the chunk.
            decodes: how many decodes there are.
            caches: keys and values (2, requests, kv_heads, length, size) of the decodes, and of the
                request with the chunk. The last places are those of the new tokens.
            mask: which places each token of the chunk sees, (chunk, length) bool.
        """
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = self.qkv(self.norm_1(x)).view(len(x), -1, self.size).split(heads, dim=1)
        kv, parts = torch.stack((k, v)), []
        if decodes:
            caches[0][:, :, :, -1] = kv[:, :decodes]
            parts.append(self._attend(q[:decodes, None], caches[0], None))
        if len(x) > decodes:
            caches[1][:, 0, :, -(len(x) - decodes) :] = kv[:, decodes:].transpose(1, 2)
            parts.append(self._attend(q[None, decodes:], caches[1], mask))
        x = x + self.out(torch.cat(parts))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)

    def _attend(
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

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.place: Place = {
            "device": settings.device,
            "dtype": getattr(torch, settings.dtype),
        }
        # KV heads, and numbers of each, that a cache keeps of a token.
        self.kept = (settings.kv_heads, settings.width // settings.heads)
        sizes = (settings.width, settings.heads, settings.kv_heads, settings.feed_forward)
        self.embedding = nn.Embedding(settings.vocabulary, settings.width, **self.place)
        self.layers = nn.ModuleList(Layer(*sizes, self.place) for _ in range(settings.layers))
        self.norm = nn.RMSNorm(settings.width, **self.place)
        self.head = nn.Linear(settings.width, settings.vocabulary, bias=False, **self.place)

    def prepare(self, shape: Shape) -> Pass:
        """Fill the caches for a batch, and return its pass."""
        device, (heads, size) = self.place["device"], self.kept
        lengths = ((shape.decodes, shape.context + 1), (1, shape.prefix + shape.chunk))
        caches = [
            [torch.randn(2, n, heads, length, size, **self.place) for n, length in lengths]
            for _ in self.layers
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
    """A causal language model of transformers, by name or folder.

    Raises LLMGymError without transformers, and where the model cannot be loaded.
    """

    def __init__(self, name: str, device: str, dtype: torch.dtype) -> None:
        try:
            from transformers import AutoModelForCausalLM, DynamicCache
        except ImportError:
            raise LLMGymError("--model needs transformers: pip install transformers") from None
        try:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
        except (OSError, ValueError) as error:
            raise LLMGymError(f"Cannot load {name}: {str(error).splitlines()[0]}") from None
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


def model_of(settings: Settings) -> Decoder | HuggingFace:
    """The model that the settings describe."""
    if settings.model is not None:
        return HuggingFace(settings.model, settings.device, getattr(torch, settings.dtype))
    return Decoder(settings)
