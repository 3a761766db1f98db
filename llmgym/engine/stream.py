"""Drawing the requests that have arrived: the next few of every job type, merged in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym.core.arrays import select
from llmgym.core.pytree import register
from llmgym.engine.state import Stream
from llmgym.scenario.arrivals import FAR, NEVER
from llmgym.scenario.gap_samplers import Gap, lift


@register
@dataclass(frozen=True)
class Drawn:
    """Requests to come, in order of arrival (axis 0); only the first ``count`` are real."""

    count: jax.Array
    wait: jax.Array  # ticks from now until arrival, negative if overdue
    prefill: jax.Array
    decode: jax.Array
    request: jax.Array
    job_class: jax.Array


@register
@dataclass(frozen=True)
class Unsized:
    """Requests without lengths: jobs, whose calls have them. Those of a list still have their classes."""

    request_class: jax.Array | None

    @classmethod
    def of(cls, lengths: Any) -> Unsized:
        """The classes that lengths tell apart, if they are listed."""
        return cls(getattr(lengths, "request_class", None))

    def __call__(self, index: jax.Array, words: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Nothing to prefill, nothing to decode."""
        return jnp.zeros_like(index), jnp.zeros_like(index)

    def classes(self, index: jax.Array) -> jax.Array:
        """The class of each request."""
        assert self.request_class is not None
        return jnp.take(self.request_class, jnp.minimum(index, len(self.request_class) - 1))


def words(
    key: jax.Array,
    job_class: int | jax.Array,
    index: jax.Array,
    pairs: int,
    visit: jax.Array | None = None,
) -> jax.Array:
    """Random words (2 * pairs, ...) of the requests ``index``: a function of seed, class and number.

    Counter-based (Threefry 2x32), so that any policy, in any order, in any batch, meets the same
    requests.

    Args:
        key: (2, ...) words of the seed, uint32.
        job_class: of all, or (...) of each; 128 and above: see ``plan.CHOICE``.
        index: (...) number of each request within its class, int32.
        pairs: pairs of words to draw, at most 2.
        visit: (...) how often the job had been through the call before: it draws again each time.
    """
    source = jnp.broadcast_to(jnp.asarray(job_class, jnp.uint32), index.shape)
    if visit is not None:
        source = source | (visit.astype(jnp.uint32) << 8)
    pair = np.arange(pairs, dtype=np.uint32).reshape(-1, *[1] * index.ndim)
    drawn = jnp.stack(threefry(key[0], key[1], index.astype(jnp.uint32), 2 * source + pair), axis=1)
    # Behind a barrier; without it whatever uses them would compute them again.
    return jax.lax.optimization_barrier(drawn.reshape(2 * pairs, *index.shape))


ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(
    key_0: jax.Array, key_1: jax.Array, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Threefry 2x32 with 20 rounds (Salmon et al., SC 2011, doi:10.1145/2063384.2063405), uint32.

    The words of JAX's own generator. Written out here: JAX compiles its own to a loop, which takes as
    long for a thousand numbers as this does for ten thousand.

    Args:
        key_0, key_1: the words of the key.
        x, y: the words of the counter. All four have shapes that broadcast against each other.

    Returns:
        Two random words of that shape.
    """
    keys = (key_0, key_1, key_0 ^ key_1 ^ jnp.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << distance) | (y >> (32 - distance)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def lengths_of(
    lengths: tuple[Any, ...], key: jax.Array, job_class: jax.Array, request: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Prompt and output tokens of given requests: they depend on nothing but key, class and number.

    Args:
        lengths: the samplers of ``Params.lengths``.
        key: (2, ...) words of the stream, uint32.
        job_class: (...) of each request; ignored where there is one sampler for all.
        request: (...) number of each within its job type, int32.
    """
    if len(lengths) == 1:  # a replay has several classes in one list
        return lengths[0](request, words(key, 0, request, 2)[1:3])
    prefill, decode = jnp.zeros_like(request), jnp.zeros_like(request)
    for k, length in enumerate(lengths):
        drawn = length(request, words(key, k, request, 2)[1:3])
        prefill = jnp.where(job_class == k, drawn[0], prefill)
        decode = jnp.where(job_class == k, drawn[1], decode)
    return prefill, decode


def start(
    processes: tuple[Any, ...], key: jax.Array, burst: jax.Array, first: jax.Array | int = 0
) -> Stream:
    """The stream at time 0.

    Args:
        processes: the sampler of gaps of each job type.
        key: (2, ...) words of the seed, uint32.
        burst, first: see ``draw``.
    """
    waits, memories = [], []
    at_once = (burst > 0) | (first > 0)
    for job_class, process in enumerate(processes):
        # The gap before the first arrival belongs to "arrival -1".
        word = words(key, job_class, jnp.full(key.shape[1:], -1, jnp.int32), 1)[0]
        gap, memory = process.first(word)
        gap = jax.tree.map(lambda ticks: jnp.where(at_once, 0, ticks), gap)
        waits.append(lift(gap.ticks, gap.later))
        memories.append(memory)
    wait, later = (jnp.stack(words) for words in zip(*waits, strict=True))
    index = jnp.broadcast_to(first, wait.shape).astype(jnp.int32)
    return Stream(key, index, wait, later, jnp.stack(memories))


def pass_time(stream: Stream, ticks: jax.Array) -> Stream:
    """Let ``ticks`` pass: waits become shorter, and negative for arrivals that are overdue."""
    wait, later = lift(stream.wait - ticks, stream.later)
    return replace(stream, wait=jnp.where(stream.wait >= NEVER, NEVER, wait), later=later)


def draw(
    processes: tuple[Any, ...],
    lengths: tuple[Any, ...],
    stream: Stream,
    burst: jax.Array,
    most: int,
    limit: jax.Array,
    first: jax.Array | int = 0,
) -> tuple[Drawn, Stream]:
    """Take the next requests off the stream, in order of arrival.

    Args:
        processes, lengths: the samplers of gaps and of lengths, one of each for every job type.
        stream: as it is now.
        burst: (...) requests of each job type that are there at time 0: a start from a backlog.
        most: length of the result, whatever the limit.
        limit: (...) how many to take, at most ``most``; fewer are real where no more will come within
            2**30 ticks.
        first: (...) number of the request with which a list of them begins.

    Returns:
        The requests, and the stream without them.
    """
    ahead = jnp.arange(most, dtype=jnp.int32).reshape((-1,) + (1,) * limit.ndim)
    times, laters, memories, fields = [], [], [], []
    for k, (process, length) in enumerate(zip(processes, lengths, strict=True)):
        index = stream.index[k] + ahead
        random = words(stream.key, k, index, 2)
        gaps, memory = process.gaps(stream.memory[k], stream.index[k], random[0])
        in_burst = index + 1 < first + burst
        gaps = jax.tree.map(lambda ticks, now=in_burst: jnp.where(now, 0, ticks), gaps)
        start = stream.wait[k], stream.later[k]
        _, after = jax.lax.scan(_after, start, gaps)
        time, later = (jnp.concatenate([a[None], b]) for a, b in zip(start, after, strict=True))
        times.append(time)
        laters.append(later)
        prefill, decode = length(index, random[1:3])
        memories.append(memory)
        listed = getattr(length, "request_class", None) is not None
        own_class = length.classes(index) if listed else jnp.full_like(index, k)
        fields.append((prefill, decode, index, own_class))

    if len(times) == 1:
        taken = [jnp.sum(((times[0][:-1] < FAR) & (ahead < limit)).astype(jnp.int32), axis=0)]
        drawn = Drawn(taken[0], times[0][:-1], *fields[0])
    else:
        drawn, taken = _merge(times, fields, most, limit)

    def at(columns: list[jax.Array]) -> jax.Array:
        return jnp.stack([_pick(c, n) for c, n in zip(columns, taken, strict=True)])

    index = stream.index + jnp.stack(taken)
    return drawn, Stream(stream.key, index, at(times), at(laters), at(memories))


Pair = tuple[jax.Array, jax.Array]


def _after(now: Pair, gap: Gap) -> tuple[Pair, Pair]:
    """The time after a gap, in ticks and periods; past FAR it stands still, as such arrivals wait."""
    time, later = now
    coming, periods = lift(time + gap.ticks, gap.later)
    coming = jnp.where(gap.ticks == NEVER, NEVER, coming)
    stands = time >= FAR
    now = jnp.where(stands, time, coming), jnp.where(stands, later, periods)
    return now, now


def _pick(column: jax.Array, index: jax.Array) -> jax.Array:
    """Entry ``index`` (...) of a column (count, ..., ...)."""
    index = index.reshape((1,) * (column.ndim - index.ndim) + index.shape)
    return jnp.take_along_axis(column, index, axis=0)[0]


def _merge(
    times: list[jax.Array], fields: Sequence[tuple[jax.Array, ...]], most: int, limit: jax.Array
) -> tuple[Drawn, list[jax.Array]]:
    """The first ``limit`` requests over several job types; the lower class first at a tie."""
    classes = range(len(times))

    def pick(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], tuple[jax.Array, ...]]:
        taken, count = carry
        heads = jnp.stack([_pick(times[k], taken[k]) for k in classes])
        best, soonest = jnp.argmin(heads, axis=0), jnp.min(heads, axis=0)
        rows = [
            jnp.stack([_pick(f, jnp.minimum(taken[k], most - 1)) for f in fields[k]])
            for k in classes
        ]
        row = select(jnp.stack(rows), best)
        real = (soonest < FAR) & (count < limit)
        taken = [taken[k] + (real & (best == k)).astype(jnp.int32) for k in classes]
        return (taken, count + real.astype(jnp.int32)), (soonest, *row)

    none = jnp.zeros(limit.shape, jnp.int32)
    (taken, count), columns = jax.lax.scan(pick, ([none for _ in classes], none), length=most)
    return Drawn(count, *columns), taken
