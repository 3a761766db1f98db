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
    """Initial layers of ``mlp``: orthogonal weights and biases of 0.

    Args:
        key: random key of the weights.
        sizes: units of the inputs, of each hidden layer and of the outputs.
        last: gain of the last layer; that of the others is sqrt(2).
    """
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
    """Log probabilities of the choices (..., choices), each part for itself.

    Args:
        parts: number of choices in each part.
        logits: (..., choices), part after part.
        mask: whether each choice is allowed (..., choices); the others get a probability of 0.
    """
    logits, start, found = jnp.where(mask, logits, -1e9), 0, []
    for size in parts:
        found.append(jax.nn.log_softmax(logits[..., start : start + size]))
        start += size
    return jnp.concatenate(found, axis=-1)


def log_prob_of(parts: tuple[int, ...], log_p: jax.Array, choice: jax.Array) -> jax.Array:
    """Log probability (...) of a choice in every part.

    Args:
        parts: number of choices in each part.
        log_p: of ``log_probs`` (..., choices).
        choice: the number chosen in each part (..., parts), int32.
    """
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
    """The allowed choice (..., parts), int32, nearest to a given one; the smaller of two.

    Args:
        parts: number of choices in each part.
        mask: whether each choice is allowed (..., choices), part after part.
        choice: the number wanted in each part (..., parts).
    """
    start, found = 0, []
    for n, size in enumerate(parts):
        far = jnp.abs(jnp.arange(size) - choice[..., n, None])
        far = jnp.where(mask[..., start : start + size], far, size)
        found.append(jnp.argmin(far, axis=-1))
        start += size
    return jnp.stack(found, axis=-1).astype(jnp.int32)
