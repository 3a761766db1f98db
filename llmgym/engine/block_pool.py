"""The blocks of KV memory one by one: who holds them, what they hold, and which is taken next.

Needed for prefix caching alone: a block whose request is gone keeps what it holds until it is taken
again, and a request that begins the same way takes it over without computing. Free blocks stand in a queue,
the longest free first, as in vLLM. All functions but ``empty_pool`` work on one engine of one environment (no
batch axes). On a CPU a step costs in proportion to the number of blocks, so take large ones where prompts
share long stretches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from llmgym.core.pytree import register


@register
@dataclass(frozen=True)
class BlockPool:
    """Blocks (axis 0), and those of each request; a state to carry, batch axes last."""

    content: (
        jax.Array
    )  # (size, ...) what a full block holds, uint32: see ``llmgym.scenario.prefixes``
    since: jax.Array  # (size, ...) order in which they were filled; 0: holds nothing to be found
    bucket: (
        jax.Array
    )  # (buckets, ...) of the blocks that can be found, by content: the first of each
    link: jax.Array  # (size, ...) the next in the bucket; -1 ends it
    back: jax.Array  # (size, ...) the one before it in the bucket, likewise
    users: jax.Array  # (size, ...) requests that hold it
    after: jax.Array  # (size + 1, ...) in the queue of free blocks; the last entry is its two ends
    before: jax.Array  # (size + 1, ...)
    free: jax.Array  # (...) length of the queue
    filled: jax.Array  # (...) blocks filled so far
    table: jax.Array  # (rows, most, ...) blocks of each request, in order

    @property
    def size(self) -> int:
        """Length of the arrays: at least the number of blocks, the others are never in the queue."""
        return self.users.shape[0]


def empty_pool(
    blocks: jax.Array, size: int, rows: int, most: int, shape: tuple[int, ...]
) -> BlockPool:
    """A pool in which all blocks are free.

    Args:
        blocks: () number of blocks, int32.
        size: length of the arrays, at least ``blocks``: it is static, and shared by engines of
            different sizes.
        rows: requests that may hold blocks: the rows of the request table.
        most: most blocks of one request.
        shape: batch axes.
    """

    def full(values: jax.Array) -> jax.Array:
        return jnp.broadcast_to(values.reshape(-1, *[1] * len(shape)), (values.size, *shape))

    none = jnp.zeros((size, *shape), jnp.int32)
    number = jnp.arange(size + 1, dtype=jnp.int32)
    after = jnp.where(number + 1 < blocks, number + 1, size)
    before = jnp.where(number > 0, number - 1, size)
    return BlockPool(
        content=none.astype(jnp.uint32),
        since=none,
        bucket=jnp.full((1 << (size - 1).bit_length(), *shape), -1, jnp.int32),
        link=none,
        back=none,
        users=none,
        after=full(after.at[size].set(0)),
        before=full(before.at[size].set(blocks - 1)),
        free=jnp.broadcast_to(blocks, shape),
        filled=jnp.zeros(shape, jnp.int32),
        table=jnp.zeros((rows, most, *shape), jnp.int32),
    )


def _put(
    column: jax.Array,
    place: jax.Array | int,
    value: jax.Array | int,
    really: jax.Array | bool = True,
) -> jax.Array:
    """Write one entry, or leave it."""
    value = jnp.where(really, jnp.asarray(value, column.dtype), column[place])
    return jax.lax.dynamic_update_index_in_dim(column, value, place, axis=0)


def _unlink(pool: BlockPool, block: jax.Array, really: jax.Array | bool = True) -> BlockPool:
    """Take a block out of the queue, wherever it stands."""
    behind, ahead = pool.after[block], pool.before[block]
    return replace(
        pool,
        after=_put(pool.after, ahead, behind, really),
        before=_put(pool.before, behind, ahead, really),
        free=pool.free - really,
    )


def _append(pool: BlockPool, block: jax.Array, really: jax.Array) -> BlockPool:
    """Put a block at the end of the queue."""
    end = pool.size
    last = pool.before[end]
    after = _put(_put(pool.after, last, block, really), block, end, really)
    before = _put(_put(pool.before, end, block, really), block, last, really)
    return replace(pool, after=after, before=before, free=pool.free + really)


def release(pool: BlockPool, row: jax.Array, held: jax.Array) -> BlockPool:
    """A request gives back its blocks, the last first, so that its beginning is forgotten last.

    Args:
        pool: of one engine.
        row: () of the request.
        held: () number of blocks that it has.
    """

    def one(n: jax.Array, pool: BlockPool) -> BlockPool:
        block = pool.table[row, held - 1 - n]
        users = pool.users[block] - 1
        return _append(replace(pool, users=_put(pool.users, block, users)), block, users == 0)

    return jax.lax.fori_loop(0, held, one, pool)


def _bucket(pool: BlockPool, content: jax.Array) -> jax.Array:
    """The bucket of a content: the upper bits of a product that mixes them (Knuth)."""
    bits = (pool.bucket.shape[0] - 1).bit_length()
    mixed = content * jnp.uint32(2654435769)
    return (mixed >> jnp.uint32(32 - bits)).astype(jnp.int32) if bits else jnp.int32(0)


def _holder(pool: BlockPool, content: jax.Array) -> jax.Array:
    """The block that has held a content for the longest; -1 if none does."""

    def look(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        block, best = carry
        older = (best < 0) | (pool.since[block] < pool.since[best])
        best = jnp.where((pool.content[block] == content) & older, block, best)
        return pool.link[block], best

    first = pool.bucket[_bucket(pool, content)]
    return jax.lax.while_loop(lambda c: c[0] >= 0, look, (first, jnp.int32(-1)))[1]


def _forget(pool: BlockPool, block: jax.Array) -> BlockPool:
    """What a block holds can no longer be found."""
    known = pool.since[block] > 0
    place, rest, before = _bucket(pool, pool.content[block]), pool.link[block], pool.back[block]
    return replace(
        pool,
        since=_put(pool.since, block, 0),
        bucket=_put(pool.bucket, place, rest, known & (before < 0)),
        link=_put(pool.link, jnp.maximum(before, 0), rest, known & (before >= 0)),
        back=_put(pool.back, jnp.maximum(rest, 0), before, known & (rest >= 0)),
    )


def _enter(pool: BlockPool, row: jax.Array, n: jax.Array, block: jax.Array) -> jax.Array:
    """The table with a block as the n-th of a request."""
    return jax.lax.dynamic_update_slice(pool.table, block[None, None], (row, n))


def find(
    pool: BlockPool, contents: jax.Array, tokens: jax.Array, block_size: int
) -> tuple[jax.Array, jax.Array]:
    """Blocks that hold the beginning of a request.

    Whole blocks only, and at least one of its ``tokens`` is left to compute. Of several blocks that
    hold the same, the one that was filled first counts.

    Args:
        pool: of one engine.
        contents: (most,) what the blocks of the request hold, in order, uint32.
        tokens: () that the request has to compute, int32.
        block_size: tokens of a block.

    Returns:
        The blocks (most,), of which the first are real, and how many are: ().
    """

    def holder(n: jax.Array) -> tuple[jax.Array, jax.Array]:
        block = _holder(pool, contents[n])
        return block, (block >= 0) & ((n + 1) * block_size < tokens)

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return carry[2]

    def look(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        found, count, _ = carry
        block, hit = holder(count)
        found = _put(found, count, block, hit)
        count = count + hit
        return found, count, hit & (count < found.size)

    none = jnp.zeros(contents.shape, jnp.int32)
    found, count, _ = jax.lax.while_loop(goes_on, look, (none, jnp.int32(0), jnp.array(True)))
    return found, count


def idle(pool: BlockPool, found: jax.Array, count: jax.Array) -> jax.Array:
    """How many of the found blocks are free: they leave the queue as new ones do.

    Args:
        pool: of one engine.
        found: (most,) blocks.
        count: () how many of them are real, as ``find`` gives them.
    """
    real = jnp.arange(found.size) < count
    return jnp.sum((real & (pool.users[found] == 0)).astype(jnp.int32))


def share(pool: BlockPool, row: jax.Array, found: jax.Array, count: jax.Array) -> BlockPool:
    """A request without blocks begins with those found, which leave the queue if they were free.

    Args:
        pool: of one engine.
        row: () of the request.
        found: (most,) blocks.
        count: () how many of them are real, as ``find`` gives them.
    """

    def one(n: jax.Array, pool: BlockPool) -> BlockPool:
        block = found[n]
        pool = _unlink(pool, block, pool.users[block] == 0)
        users = _put(pool.users, block, pool.users[block] + 1)
        return replace(pool, users=users, table=_enter(pool, row, n, block))

    return jax.lax.fori_loop(0, count, one, pool)


def grow(pool: BlockPool, row: jax.Array, held: jax.Array, upto: jax.Array) -> BlockPool:
    """A request takes the blocks that have been free the longest; what they held is forgotten.

    Args:
        pool: of one engine, with enough free blocks.
        row: () of the request.
        held: () number of blocks that it has.
        upto: () number that it is to have; nothing happens if it has them.
    """

    def one(n: jax.Array, pool: BlockPool) -> BlockPool:
        block = pool.after[pool.size]
        pool = _forget(_unlink(pool, block), block)
        return replace(
            pool,
            users=_put(pool.users, block, 1),
            table=_enter(pool, row, n, block),
        )

    return jax.lax.fori_loop(held, upto, one, pool)


def keep(
    pool: BlockPool, row: jax.Array, contents: jax.Array, begin: jax.Array, end: jax.Array
) -> BlockPool:
    """Make what the full blocks of a request hold available to others; blocks known already stay as they are.

    Args:
        pool: of one engine.
        row: () of the request.
        contents: (most,) what its blocks hold, in order, uint32.
        begin, end: () its blocks that became full: from number ``begin`` up to but without ``end``.
    """

    def one(n: jax.Array, pool: BlockPool) -> BlockPool:
        block = pool.table[row, n]
        new = pool.since[block] == 0
        place = _bucket(pool, contents[n])
        head = pool.bucket[place]
        return replace(
            pool,
            content=_put(pool.content, block, contents[n], new),
            since=_put(pool.since, block, pool.filled + 1, new),
            bucket=_put(pool.bucket, place, block, new),
            link=_put(pool.link, block, head, new),
            back=_put(
                _put(pool.back, jnp.maximum(head, 0), block, new & (head >= 0)), block, -1, new
            ),
            filled=pool.filled + new,
        )

    return jax.lax.fori_loop(begin, end, one, pool)
