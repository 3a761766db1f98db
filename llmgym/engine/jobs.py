"""Jobs whose stages fork, join, branch or repeat: what is done of each, and what starts next.

Where every job is a chain of calls none of this is needed: a request then carries all there is to
know about its job.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from llmgym.core.arrays import rows
from llmgym.engine.plan import CHOICE, Plan, Routes
from llmgym.engine.state import Jobs
from llmgym.engine.stream import words
from llmgym.scenario.arrivals import uniform


def no_jobs(plan: Plan, shape: tuple[int, ...]) -> Jobs:
    """Jobs (shape) that have not begun: also an empty table of jobs."""
    none = jnp.zeros(shape, jnp.int32)
    several = jnp.zeros((plan.most_stages, *shape), jnp.int32)
    return Jobs(
        live=none > 0,
        job_type=none,
        number=none,
        arrival=none.astype(jnp.uint32),
        arrival_high=none.astype(jnp.uint16),
        done=none,
        passed=none,
        begun=none,
        visits=several if plan.loops else None,
        context=several if plan.keeps_context else None,
    )


def job_at(jobs: Jobs, row: jax.Array) -> Jobs:
    """The jobs in the rows (several, ...) of every environment."""

    def pick(column: jax.Array) -> jax.Array:
        axis = column.ndim - row.ndim
        index = jnp.broadcast_to(row, (*column.shape[:axis], *row.shape))
        return jnp.take_along_axis(column, index, axis=axis)

    return jax.tree.map(pick, jobs)


def put_jobs(jobs: Jobs, row: jax.Array, new: Jobs, wanted: jax.Array) -> Jobs:
    """The table of jobs with new ones written to their rows.

    Args:
        jobs: the table (rows, ...).
        row: (several, ...) where each new job goes; no two that are wanted go to the same row.
        new: (several, ...) jobs.
        wanted: (several, ...) which of them are written.
    """
    row = jnp.where(wanted, row, -1)
    todo = jnp.any(wanted.reshape(len(row), -1), axis=1)

    def put(carry: tuple[Jobs, jax.Array]) -> tuple[Jobs, jax.Array]:
        jobs, todo = carry
        n = jnp.argmax(todo)
        mine = rows(jobs.live) == jax.lax.dynamic_index_in_dim(row, n)

        def write(column: jax.Array, values: jax.Array) -> jax.Array:
            value = jax.lax.dynamic_slice_in_dim(values, n, 1, axis=column.ndim - row.ndim)
            return jnp.where(mine, value, column)

        return jax.tree.map(write, jobs, new), todo & (jnp.arange(len(todo)) != n)

    # A loop; otherwise every row of the table would compute again what is to be written.
    return jax.lax.while_loop(lambda c: jnp.any(c[1]), put, (jobs, todo))[0]


def advance(
    plan: Plan, key: jax.Array, job: Jobs, ended: jax.Array, context: jax.Array
) -> tuple[Jobs, jax.Array, jax.Array | None]:
    """What the end of a stage sets off.

    Args:
        plan: the structure of the network.
        key: two words (2, ...) of the random numbers.
        job: jobs (several, ...) of every environment.
        ended: (several, ...) the stage that ended, within the job type; -1 where the job begins.
        context: (several, ...) prompt and output tokens of that stage, together.

    Returns:
        The jobs after it; which stages start (stages, several, ...); and the context in tokens that
        each would inherit (stages, several, ...), None where none is kept.
    """
    stage = jnp.arange(plan.most_stages).reshape((-1,) + (1,) * ended.ndim)
    if job.context is not None:
        job = replace(job, context=jnp.where(stage == ended, context, job.context))
    starts = jnp.zeros((plan.most_stages, *ended.shape), bool)
    inherited = None if job.context is None else jnp.zeros_like(job.context)
    after = job
    for job_type, routes in enumerate(plan.routes):
        mine = job.job_type == job_type
        first = plan.first_class[job_type]
        new, begins, brings = _advance_type(routes, first, key, job, ended, context)
        after = jax.tree.map(lambda n, o, mine=mine: jnp.where(mine, n, o), new, after)
        count = len(routes.order)
        starts = starts.at[:count].set(jnp.where(mine, jnp.stack(begins), starts[:count]))
        if inherited is not None:
            own = jnp.where(mine, jnp.stack(brings), inherited[:count])
            inherited = inherited.at[:count].set(own)
    return after, starts, inherited


def _advance_type(
    routes: Routes, first: int, key: jax.Array, job: Jobs, ended: jax.Array, context: jax.Array
) -> tuple[Jobs, list[jax.Array], list[jax.Array]]:
    count = len(routes.order)
    done, passed, begun = job.done, job.passed, job.begun
    visits = job.visits
    if visits is not None:
        visits = visits + (rows(visits) == ended)

    def has(bits: jax.Array, v: int) -> jax.Array:
        return (bits >> v) & 1 > 0

    def mark(bits: jax.Array, stages: tuple[int, ...], where: jax.Array) -> jax.Array:
        return jnp.where(where, bits | sum(1 << v for v in stages), bits)

    none = jnp.zeros(ended.shape, bool)
    begins, brings, looped = [none] * count, [jnp.zeros_like(context)] * count, none
    for v in range(count):
        if not routes.bodies[v]:
            continue
        assert job.visits is not None
        assert visits is not None
        if routes.rounds[v]:
            again = visits[v] % routes.rounds[v] != 0
        else:
            draw = words(key, first + v, job.number, 2, job.visits[v])[3]
            again = uniform(draw) < routes.again[v]
        again = again & (ended == v)
        clear = ~sum(1 << u for u in routes.bodies[v])
        done, passed, begun = (jnp.where(again, b & clear, b) for b in (done, passed, begun))
        to = routes.first[v]
        begun = mark(begun, (to,), again)
        begins[to] = begins[to] | again
        brings[to] = jnp.where(again, context, brings[to])
        looped = looped | again
    bit = jnp.left_shift(1, jnp.maximum(ended, 0))
    done = jnp.where((ended >= 0) & ~looped, done | bit, done)

    for v in routes.order:
        parents = routes.parents[v]
        ready = ~has(begun, v) & ~has(done, v)
        led = jnp.ones(ended.shape, bool) if not parents else none
        brought = jnp.zeros_like(context)
        for u in parents:
            ready = ready & has(done, u)
            taken = has(done, u) & ~has(passed, u)
            led = led | taken
            if job.context is not None:
                brought = brought + jnp.where(taken, job.context[u], 0)
        # Without loops a stage has ended once, unless it was passed over.
        ends = [has(done & ~passed, u) for u in range(count)] if visits is None else visits
        led = led & _chosen(routes, first, v, key, job.number, ends)
        begins[v] = begins[v] | (ready & led)
        brings[v] = jnp.where(ready & led, brought, brings[v])
        begun = mark(begun, (v,), ready & led)
        done, passed = (mark(bits, (v,), ready & ~led) for bits in (done, passed))
    live = job.live & (done != (1 << count) - 1)
    new = replace(job, live=live, done=done, passed=passed, begun=begun, visits=visits)
    return new, begins, brings


def _chosen(
    routes: Routes,
    first: int,
    v: int,
    key: jax.Array,
    number: jax.Array,
    visits: Sequence[jax.Array] | jax.Array,
) -> jax.Array:
    """Whether the choice that a stage belongs to, if any, falls on it."""
    for group in routes.choices:
        if v in group:
            # Drawn again whenever stages before it have ended again; some of them may be passed over.
            before = routes.parents[group[0]]
            visit = sum((visits[u] for u in before), jnp.zeros_like(number))
            draw = uniform(words(key, first + group[0] + CHOICE, number, 1, visit)[0])
            at = group.index(v)
            low = sum(routes.probability[u] for u in group[:at])
            high = low + routes.probability[v] if at + 1 < len(group) else 2.0
            return (draw >= low) & (draw < high)
    return jnp.ones(number.shape, bool)
