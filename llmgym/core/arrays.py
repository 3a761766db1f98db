"""Array helpers for tables whose first axis is the slot and whose other axes are batches.

Batch axes stand last, so scalars and per-environment numbers broadcast against a table as they are,
and a pass along the slots works on contiguous rows of environments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def rows(like: jax.Array) -> jax.Array:
    """Slot numbers 0, 1, ... along axis 0, shaped to broadcast against ``like``."""
    count = jnp.arange(like.shape[0], dtype=jnp.int32)
    return count.reshape((-1,) + (1,) * (like.ndim - 1))


GROUP = 16
"""Rows that one group of a prefix sum holds; tables whose rows are a multiple of it need no padding."""


def _grouped_sum(x: jax.Array) -> jax.Array:
    """Prefix sum in two levels: inside all groups at once, then over the groups."""
    count = x.shape[0]
    padding = -count % GROUP
    if padding:
        x = jnp.concatenate([x, jnp.zeros((padding, *x.shape[1:]), x.dtype)])
    groups = x.reshape(-1, GROUP, *x.shape[1:])

    def add(row: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, sums = carry
        total = total + jax.lax.dynamic_index_in_dim(groups, row, 1, keepdims=False)
        return total, jax.lax.dynamic_update_index_in_dim(sums, total, row, 1)

    none = jnp.zeros_like(groups[:, 0])
    totals, inside = jax.lax.fori_loop(0, GROUP, add, (none, jnp.zeros_like(groups)))

    def shift(before: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
        return before + total, before

    _, before = jax.lax.scan(shift, none[0], totals)
    return (inside + before[:, None]).reshape(x.shape)[:count]


def prefix_sum(x: jax.Array) -> jax.Array:
    """Inclusive sum along axis 0 of an int32 table.

    On a CPU ``jnp.cumsum`` costs 10 times more than two short sequential passes that are vectorised
    over groups of slots and over environments; on a GPU the parallel form wins.
    """
    x = x.astype(jnp.int32)
    return jax.lax.platform_dependent(x, cpu=_grouped_sum, default=lambda x: jnp.cumsum(x, axis=0))


def once(wanted: jax.Array, change: Callable[[T], T], state: T) -> T:
    """The state after a change, if it is ``wanted``; else the state as it is.

    A loop of at most one round: ``lax.cond`` would copy the state even when there is nothing to do, and
    the compiler computes the result of a loop once, not again for everything that reads it.

    Args:
        wanted: () bool, one answer for all environments.
        change: from the state to a new one of the same structure, shapes and dtypes.
        state: any pytree of arrays.
    """

    def body(carry: tuple[T, jax.Array]) -> tuple[T, jax.Array]:
        return change(carry[0]), jnp.zeros_like(wanted)

    return jax.lax.while_loop(lambda c: c[1], body, (state, wanted))[0]


def rounded(product: jax.Array, zero: jax.Array) -> jax.Array:
    """A float32 product as it is rounded, also where something is added to it next.

    Compilers turn ``a * b + c`` into one instruction, which rounds once, in some programs and not in others;
    sums of such products would depend on how an environment was compiled.

    Args:
        product: float32.
        zero: int32 zeros of its shape, of which the compiler does not know that they are.
    """
    bits = jax.lax.bitcast_convert_type(product, jnp.int32) | zero
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def float_sum(x: jax.Array) -> jax.Array:
    """Sum along axis 0 of int32 that are not negative, as float32: the same whatever the order of adding.

    Of fewer than 2**15 rows: the upper and the lower halves of the numbers are summed apart, exactly.
    """
    low, high = (jnp.sum(part, axis=0).astype(jnp.float32) for part in (x & 0xFFFF, x >> 16))
    return high * 2.0**16 + low


def select(options: jax.Array, index: jax.Array) -> jax.Array:
    """``options[index]`` along a short axis 0, elementwise: masks beat a gather there."""
    picked = jnp.zeros_like(options[0])
    for i in range(options.shape[0]):
        picked = jnp.where(index == i, options[i], picked)
    return picked


def of_class(values: Sequence[Any], job_class: jax.Array) -> jax.Array:
    """The entry of ``values`` for the class of each element; where classes are few, without a gather."""
    if len(values) > 16:
        return jnp.asarray(values)[job_class]
    usual = max(set(values), key=list(values).count)
    found = jnp.broadcast_to(jnp.asarray(usual), job_class.shape)
    for k, value in enumerate(values):
        if value != usual:
            found = jnp.where(job_class == k, value, found)
    return found


def class_sums(job_class: jax.Array, values: jax.Array, count: int) -> jax.Array:
    """Sums (count, ...) over the slots of each class, int32.

    Args:
        job_class: (slots, ...) class of each slot.
        values: (slots, ...) numbers or a mask.
        count: number of classes; slots of other classes are left out.
    """
    mine = (jnp.where(job_class == k, values, 0) for k in range(count))
    return jnp.stack([jnp.sum(m.astype(jnp.int32), axis=0) for m in mine])


def compacted(live: jax.Array) -> jax.Array:
    """For each row of the compacted table the row it comes from; -1 past the last request.

    Every request moves up by the number of empty rows before it, one bit of that number at a time.
    With the lowest bit first, no two requests ever collide (the parallel "compress" of bit manipulation).
    """
    count, row = live.shape[0], rows(live)
    shift = prefix_sum(~live)
    packed = jnp.where(live, (shift << 16) | (row + 1), 0)
    for bit in range((count - 1).bit_length()):
        distance = 1 << bit
        padded = jnp.concatenate([packed, jnp.zeros((distance, *live.shape[1:]), jnp.int32)])
        padded = jax.lax.optimization_barrier(padded)  # or every pass recomputes those before it
        here, ahead = padded[:count], padded[distance:]
        moves, arrives = (here >> 16) & distance, (ahead >> 16) & distance
        packed = jnp.where(arrives > 0, ahead, jnp.where(moves > 0, 0, here))
    return jnp.where(packed > 0, (packed & 0xFFFF) - 1, -1)


def word_of(mask: jax.Array) -> jax.Array:
    """The rows of a mask, at most 32, as the bits of one word (uint32) for each environment."""
    word = jnp.zeros(mask.shape[1:], jnp.uint32)
    for n in range(mask.shape[0]):
        word = word | (mask[n].astype(jnp.uint32) << n)
    return word


def nth_bit(word: jax.Array, rank: jax.Array) -> jax.Array:
    """The position of the set bit that has ``rank`` set bits below it, if there is one; by halving."""
    place = jnp.zeros(jnp.broadcast_shapes(word.shape, rank.shape), jnp.int32)
    for half in (16, 8, 4, 2, 1):
        low = (word >> place.astype(jnp.uint32)) & jnp.uint32((1 << half) - 1)
        below = jax.lax.population_count(low).astype(jnp.int32)
        above = rank >= below
        place, rank = jnp.where(above, place + half, place), jnp.where(above, rank - below, rank)
    return place


def counted(mask: jax.Array) -> jax.Array:
    """Inclusive prefix sum of a mask of at most 32 rows, int32; ``jnp.cumsum`` is slow at that."""
    upto = jnp.uint32(0xFFFFFFFF) >> (31 - rows(mask)).astype(jnp.uint32)
    return jax.lax.population_count(word_of(mask)[None] & upto).astype(jnp.int32)


def first_rows(mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Slots of the first ``count`` rows where ``mask`` holds (count, ...), and whether each exists."""
    row, size = rows(mask), mask.shape[0]
    if size <= 32:
        rank = jnp.arange(count, dtype=jnp.int32).reshape(-1, *[1] * (mask.ndim - 1))
        word = word_of(mask)
        there = rank < jax.lax.population_count(word).astype(jnp.int32)
        return jnp.where(there, nth_bit(word, rank), size - 1), there
    found = [jnp.full(mask.shape[1:], -1, jnp.int32)]
    for _ in range(count):
        found.append(jnp.min(jnp.where(mask & (row > found[-1]), row, size), axis=0))
    slot = jnp.stack(found[1:])
    return jnp.minimum(slot, size - 1), slot < size


def one_by_one(function: Callable[..., Any], shape: tuple[int, ...], *arguments: Any) -> Any:
    """Call a function of one engine for every engine along the last axes of its arguments, in turn.

    For long loops over few rows: in parallel (vmap) every round would copy all that they carry.
    ``shape`` is the shape of those last axes, which all arguments have.
    """
    if not shape:
        return function(*arguments)
    if len(shape) > 1:
        axes = len(shape)
        flat = jax.tree.map(lambda x: x.reshape(*x.shape[: x.ndim - axes], -1), arguments)
        found = one_by_one(function, (math.prod(shape),), *flat)
        return jax.tree.map(lambda x: x.reshape(*x.shape[:-1], *shape), found)
    if all(x.shape[-1] == 1 for x in jax.tree.leaves(arguments)):
        one = jax.tree.map(lambda x: x[..., 0], arguments)
        return jax.tree.map(lambda x: x[..., None], function(*one))
    first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arguments)
    found = jax.lax.map(lambda each: function(*each), first)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), found)


def first_of(mask: jax.Array, *keys: jax.Array) -> jax.Array:
    """The slot of a mask (slots,) with the smallest first key; at a tie with the smallest second, ..."""
    for key in keys:
        mask = mask & (key == jnp.min(jnp.where(mask, key, jnp.iinfo(jnp.int32).max)))
    return jnp.argmax(mask)
