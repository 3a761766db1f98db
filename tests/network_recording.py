"""What the JAX network does, as plain Python lists, and the random numbers that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from network_workloads import POLICIES
from reference import Ran

from llmgym import baselines
from llmgym.engine import simulator, stream
from llmgym.engine.entering import call_lengths
from llmgym.engine.jobs import CHOICE
from llmgym.engine.params import Params
from llmgym.engine.state import State
from llmgym.engine.view import Batch, View
from llmgym.evaluation import policies

Record = dict[str, np.ndarray]


@dataclass(frozen=True)
class Recorded:
    """One environment: batches of every engine, (first token, finish) of calls, and counts at the end."""

    batches: list[list[Ran]]
    finished: dict[Any, tuple[int, int]]
    epochs: list[int]  # when each ended
    arrived: int
    dropped: int
    present: int
    completed: int
    backlog: int
    served: int  # tokens
    end: int
    clipped: bool
    preempted: int  # calls
    found: int  # tokens, by prefix caching


def form(number: jax.Array, token_budget: jax.Array, keys: jax.Array, seen: View) -> Batch:
    """The batch of policy ``number`` of POLICIES."""

    def composer(name: str, fixed: dict[str, Any]) -> Callable[[jax.Array, View], Batch]:
        policy = baselines.make(name, **fixed, token_budget=token_budget)

        def compose(keys: jax.Array, seen: View) -> Batch:
            batch = policies.compose(policy, keys, seen)
            if seen.memory is None or batch.preempt is not None:
                return batch
            return Batch(batch.tokens, jnp.zeros_like(seen.live))

        return compose

    return jax.lax.switch(number, [composer(*entry) for entry in POLICIES], keys, seen)


def run(
    network: Params,
    state: State,
    keys: jax.Array,
    number: jax.Array,
    token_budget: jax.Array,
    steps: int,
) -> tuple[State, dict[str, jax.Array]]:
    """``steps`` epochs under policy ``number`` of POLICIES, and all that tests ask for (axis 0: steps)."""

    def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
        seen = simulator.view(network, state)
        batch = form(number, token_budget, keys, seen)
        after, info = simulator.step(network, state, batch)
        table, engines = info.table, network.plan.engines
        visit = jnp.zeros_like(table.request) if table.visit is None else table.visit
        return after, {
            "start": state.clock.low,
            "duration": info.duration,
            "batch_ticks": info.batch_ticks,
            "clipped": info.clipped,
            "preempted": _sum(info.batch.preempt, info.duration),
            "found": _sum(info.found, info.duration),
            "tokens": info.batch.tokens,
            "decoding": seen.decoding[:, :engines],
            "finished": info.finished,
            "first_token": table.first_token,
            "job_class": table.job_class,
            "request": table.request,
            "visit": visit,
        }

    return jax.lax.scan(body, state, None, length=steps)


def _sum(values: jax.Array | None, like: jax.Array) -> jax.Array:
    """The sum over all axes but those of the environments, those of ``like``."""
    if values is None:
        return jnp.zeros_like(like)
    return jnp.sum(values.astype(jnp.int32), axis=tuple(range(values.ndim - like.ndim)))


@partial(jax.jit, static_argnames="steps")
def trace(
    network: Params, keys: jax.Array, number: jax.Array, token_budget: jax.Array, steps: int
) -> tuple[State, dict[str, jax.Array]]:
    """The same from the start. One compiled program holds every policy: compiling is what costs time."""
    return run(network, simulator.init(network, keys), keys, number, token_budget, steps)


def record(
    network: Params, keys: jax.Array, number: int, token_budget: int, steps: int
) -> list[Recorded]:
    """Run policy ``number`` of POLICIES from the start; one record for each of the keys."""
    numbers = jnp.int32(number), jnp.int32(token_budget)
    state, out = jax.device_get(trace(network, keys, *numbers, steps))
    return [_environment(network, out, state, env) for env in range(keys.size)]


def _environment(network: Params, out: Record, state: State, env: int) -> Recorded:
    column = {name: values[..., env] for name, values in out.items()}
    served = state.totals.prefill_tokens, state.totals.decode_tokens
    batches: list[list[Ran]] = [[] for _ in range(network.plan.engines)]
    finished: dict[Any, tuple[int, int]] = {}
    for step, engine in np.argwhere(column["batch_ticks"] > 0).tolist():
        tokens, decoding = (column[k][step, :, engine] for k in ("tokens", "decoding"))
        prefill, decode = (
            {_name(network, column, (step, at, engine)): int(tokens[at]) for at in rows}
            for rows in (np.flatnonzero(tokens * where).tolist() for where in (~decoding, decoding))
        )
        start, duration = int(column["start"][step]), int(column["batch_ticks"][step, engine])
        batches[engine].append(Ran(start, duration, prefill, decode))
    for at in np.argwhere(column["finished"]):
        index = tuple(at.tolist())
        name = _name(network, column, index)
        assert name not in finished
        end = int(column["start"][at[0]]) + int(column["duration"][at[0]])
        finished[name] = int(column["first_token"][index]), end
    return Recorded(
        batches,
        finished,
        epochs=(column["start"] + column["duration"]).tolist(),
        arrived=int(state.totals.arrived[env]),
        dropped=int(state.totals.dropped[env]),
        present=int(state.present[env]),
        completed=int(state.totals.completed[env]),
        backlog=int(state.backlog.to_numpy()[env]),
        served=sum(int(t.to_numpy()[env]) for t in served),
        end=int(state.clock.to_numpy()[env]),
        clipped=bool(column["clipped"].any()),
        preempted=int(column["preempted"].sum()),
        found=int(column["found"].sum()),
    )


def _name(network: Params, column: Record, index: tuple[int, ...]) -> Any:
    """(job type, job number, stage, visit) of the call in a row of the table."""
    job_class, request, visit = (int(column[k][index]) for k in ("job_class", "request", "visit"))
    job_type = network.plan.type_of[job_class]
    return job_type, request, job_class - network.plan.first_class[job_type], visit


@partial(jax.jit, static_argnames="count")
def _drawn(network: Params, keys: jax.Array, count: int) -> stream.Drawn:
    words = jnp.moveaxis(jax.random.key_data(keys).astype(jnp.uint32), -1, 0)
    begun = stream.start(network.arrivals, words, network.burst)
    nothing = tuple(lambda index, words: (index, index) for _ in network.arrivals)
    limit = jnp.full(keys.shape, count)
    return stream.draw(network.arrivals, nothing, begun, network.burst, count, limit)[0]


def jobs(network: Params, keys: jax.Array, count: int) -> list[list[tuple[int, int, int]]]:
    """The first ``count`` jobs (arrival, type, number) of each environment, in order of arrival."""
    drawn = jax.device_get(_drawn(network, keys, count))
    columns = np.stack([drawn.wait, drawn.job_class, drawn.request])
    return [
        [tuple(row) for row in columns[:, : drawn.count[env], env].T.tolist()]
        for env in range(keys.size)
    ]


@partial(jax.jit, static_argnames=("count", "visits"))
def _tables(network: Params, keys: jax.Array, count: int, visits: int) -> tuple[jax.Array, ...]:
    words = jnp.moveaxis(jax.random.key_data(keys).astype(jnp.uint32), -1, 0)
    shape = (network.plan.classes, count, visits, keys.size)
    job_class, number, visit = (
        jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(3)
    )
    return (
        jnp.stack(call_lengths(network, words, job_class, number, visit)),
        stream.words(words, job_class, number, 2, visit),
        stream.words(words, job_class + CHOICE, number, 2, visit),
    )


WORDS = {"choice": 0, "router": 2, "other": 3}


class Table:
    """The ``network_reference.Draws`` of one environment: what the streams of the JAX network hold."""

    def __init__(
        self, first_class: tuple[int, ...], lengths: np.ndarray, own: np.ndarray, other: np.ndarray
    ) -> None:
        """Arrays (..., classes, jobs, visits): lengths (2), and random words (4) of two kinds."""
        self.first_class, self.tokens, self.own, self.other = first_class, lengths, own, other

    def _at(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int, int]:
        return self.first_class[job[0]] + stage, job[1], visit

    def lengths(self, job: tuple[int, int], stage: int, visit: int) -> tuple[int, int]:
        prefill, decode = self.tokens[:, *self._at(job, stage, visit)].tolist()
        return prefill, decode

    def uniform(self, what: str, job: tuple[int, int], stage: int, visit: int) -> float:
        mine = what in ("loop", "prefix")
        words, word = (self.own, 3) if mine else (self.other, WORDS[what])
        return ((int(words[word, *self._at(job, stage, visit)]) >> 9) + 0.5) * 2.0**-23


def draws(network: Params, keys: jax.Array, count: int, visits: int) -> list[Table]:
    """The random numbers of the jobs below ``count`` in ``visits`` visits to each of their stages."""
    tables = jax.device_get(_tables(network, keys, count, visits))
    first = network.plan.first_class
    return [Table(first, *(t[..., env] for t in tables)) for env in range(keys.size)]
