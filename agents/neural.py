"""Small networks and their distributions over choices, as plain functions; features in the last axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

Layers = Sequence[Mapping[str, Any]]
"""Weight (inputs, outputs) and bias of each layer."""


def init_mlp(key: jax.Array, sizes: Sequence[int], last: float) -> Layers:
    """Layers of these sizes: orthogonal weights of gain sqrt(2), ``last`` at the end, and no bias."""
    layers = []
    for n, (inputs, outputs) in enumerate(pairwise(sizes)):
        gain = last if n == len(sizes) - 2 else 2**0.5
        weight = jax.nn.initializers.orthogonal(gain)(jax.random.fold_in(key, n), (inputs, outputs))
        layers.append({"weight": weight, "bias": jnp.zeros(outputs)})
    return layers


def mlp(layers: Layers, x: jax.Array) -> jax.Array:
    """Outputs (..., outputs) for inputs (..., inputs); tanh between the layers."""
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ layers[-1]["weight"] + layers[-1]["bias"]


def log_probs(parts: tuple[int, ...], logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Log probabilities of the allowed choices (..., choices), each part for itself."""
    logits, start, found = jnp.where(mask, logits, -1e9), 0, []
    for size in parts:
        found.append(jax.nn.log_softmax(logits[..., start : start + size]))
        start += size
    return jnp.concatenate(found, axis=-1)


def log_prob_of(parts: tuple[int, ...], log_p: jax.Array, choice: jax.Array) -> jax.Array:
    """Log probability of a choice (..., parts)."""
    start, total = 0, jnp.zeros(log_p.shape[:-1])
    for n, size in enumerate(parts):
        chosen = jax.nn.one_hot(choice[..., n], size)
        total += jnp.sum(chosen * log_p[..., start : start + size], axis=-1)
        start += size
    return total


def best_choice(parts: tuple[int, ...], log_p: jax.Array) -> jax.Array:
    """The likeliest choice (..., parts)."""
    start, found = 0, []
    for size in parts:
        found.append(jnp.argmax(log_p[..., start : start + size], axis=-1))
        start += size
    return jnp.stack(found, axis=-1).astype(jnp.int32)


def nearest_choice(parts: tuple[int, ...], mask: jax.Array, choice: jax.Array) -> jax.Array:
    """The allowed choice (..., parts) nearest to one that may not be allowed, the smaller of two."""
    start, found = 0, []
    for n, size in enumerate(parts):
        far = jnp.abs(jnp.arange(size) - choice[..., n, None])
        far = jnp.where(mask[..., start : start + size], far, size)
        found.append(jnp.argmin(far, axis=-1))
        start += size
    return jnp.stack(found, axis=-1).astype(jnp.int32)
