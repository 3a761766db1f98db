"""What the JAX engine does, as plain Python lists."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reference import Ran, Request
from workloads import POLICIES

from llmgym import baselines
from llmgym.engine import simulator, stream
from llmgym.engine.info import StepInfo
from llmgym.engine.params import Params
from llmgym.engine.state import State
from llmgym.engine.view import View
from llmgym.evaluation import policies

Name = tuple[int, int]
Settings = dict[str, jax.Array]


@dataclass(frozen=True)
class Recorded:
    """One environment: batches, (first token, finish) of the finished, and counts at the end."""

    batches: list[Ran]
    finished: dict[Name, tuple[int, int]]
    arrived: int
    dropped: int
    present: int
    backlog: int
    end: int
    clipped: bool


def _policy(entry: tuple[str, dict[str, Any], tuple[str, ...]], settings: Settings) -> Any:
    name, fixed, chosen = entry
    return baselines.make(name, **fixed, **{k: settings[k] for k in chosen})


@partial(jax.jit, static_argnames="steps")
def trace(
    physics: Params,
    state: State,
    keys: jax.Array,
    number: jax.Array,
    settings: Settings,
    steps: int,
) -> tuple[State, dict[str, jax.Array]]:
    """``steps`` steps under policy ``number`` of POLICIES, and all that tests ask for (axis 0: steps).

    One compiled program holds every policy: compiling the engine is what costs time.
    """
    made = [_policy(entry, settings) for entry in POLICIES]

    def body(state: State, _: None) -> tuple[State, dict[str, jax.Array]]:
        seen = simulator.view(physics, state)
        composers = [partial(policies.compose, policy) for policy in made]
        batch = jax.lax.switch(number, composers, keys, seen)
        after, info = simulator.step(physics, state, batch)
        return after, facts(state, seen, info)

    return jax.lax.scan(body, state, None, length=steps)


def facts(state: State, seen: View, info: StepInfo) -> dict[str, jax.Array]:
    """All that tests ask for of a step from ``state``."""
    return {
        "start": state.clock.low,
        "duration": info.duration,
        "clipped": info.clipped,
        "tokens": info.batch.tokens,
        "decoding": seen.decoding,
        "demand": seen.demand,
        "request": info.table.request,
        "job_class": info.table.job_class,
        "finished": info.finished,
        "first_token": info.table.first_token,
        "arrival": info.table.arrival,
        "lengths": jnp.stack([info.table.prompt, info.table.output]),
        "present": info.table.live,
    }


start = jax.jit(simulator.init)


def record(
    physics: Params, keys: jax.Array, number: int, settings: dict[str, int], steps: int
) -> list[Recorded]:
    """Run policy ``number`` of POLICIES from the start; one record for each of the keys."""
    traced = {name: jnp.int32(value) for name, value in settings.items()}
    state, out = trace(physics, start(physics, keys), keys, jnp.int32(number), traced, steps)
    out, state = jax.device_get((out, state))
    return [environment(out, state, env) for env in range(keys.size)]


def environment(out: dict[str, np.ndarray], state: State, env: int) -> Recorded:
    """What one environment did, from the facts of all."""
    column = {name: values[..., env] for name, values in out.items()}
    batches, finished = [], {}
    for step in np.flatnonzero(column["tokens"].any(axis=1)):
        row = {name: values[step] for name, values in column.items()}
        start, duration = int(row["start"]), int(row["duration"])

        def tokens(phase: np.ndarray, row: dict[str, np.ndarray] = row) -> dict[Name, int]:
            at = np.flatnonzero(phase & (row["tokens"] != 0))
            names = zip(row["job_class"][at].tolist(), row["request"][at].tolist(), strict=True)
            return dict(zip(names, row["tokens"][at].tolist(), strict=True))

        batches.append(Ran(start, duration, tokens(~row["decoding"]), tokens(row["decoding"])))
        for at in np.flatnonzero(row["finished"]):
            name = int(row["job_class"][at]), int(row["request"][at])
            assert name not in finished
            finished[name] = int(row["first_token"][at]), start + duration
    return Recorded(
        batches,
        finished,
        arrived=int(state.totals.arrived[env]),
        dropped=int(state.totals.dropped[env]),
        present=int(state.present[env]),
        backlog=int(state.backlog.to_numpy()[env]),
        end=int(state.clock.to_numpy()[env]),
        clipped=bool(column["clipped"].any()),
    )


@partial(jax.jit, static_argnames="count")
def _drawn(physics: Params, keys: jax.Array, count: int) -> stream.Drawn:
    words = jnp.moveaxis(jax.random.key_data(keys).astype(jnp.uint32), -1, 0)
    begun = stream.start(physics.arrivals, words, physics.burst)
    limit = jnp.full(keys.shape, count)
    return stream.draw(physics.arrivals, physics.lengths, begun, physics.burst, count, limit)[0]


def requests(physics: Params, keys: jax.Array, count: int) -> list[list[Request]]:
    """The first ``count`` requests of each environment's stream, in order of arrival."""
    drawn = jax.device_get(_drawn(physics, keys, count))
    columns = (drawn.job_class, drawn.request, drawn.wait, drawn.prefill, drawn.decode)
    return [
        [Request(*row) for row in np.stack(columns)[:, : drawn.count[env], env].T.tolist()]
        for env in range(keys.size)
    ]
