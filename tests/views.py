"""Views of one engine, made by hand or seen along the way, and the batches of baselines on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmgym import Scenario, baselines
from llmgym.engine import simulator
from llmgym.engine.view import Batch, Classes, Memory, View
from llmgym.evaluation import rollout
from llmgym.scenario.batch_time import Affine, BatchTime

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Slot:
    """A request of a hand-made view; times in ms."""

    prefill: int = 0
    prompt: int = 0
    generated: int = 0
    left: int = 5
    waited: int = 0
    unserved: int = 0
    started: bool = True
    job_class: int = 0
    admitted: int = 0  # step in which it got its memory


def waiting(prompt: int, waited: int = 0, **fields: Any) -> Slot:
    """A request that has had no token."""
    return Slot(prompt, prompt, waited=waited, unserved=waited, started=False, **fields)


def paused(prefill: int, prompt: int, **fields: Any) -> Slot:
    """A request in the middle of its prompt."""
    return Slot(prefill, prompt, **fields)


def decoding(prompt: int = 10, generated: int = 1, **fields: Any) -> Slot:
    """A request with its prompt done."""
    return Slot(0, prompt, generated, **fields)


def classes_of(count: int, mean_decode: Any) -> Classes:
    """Classes with nothing but mean lengths."""
    none, one = jnp.zeros(count, jnp.int32), jnp.ones(count)
    lengths = one * 100.0, one * mean_decode
    return Classes(*lengths, none, none, none, one, none, none, none, none == 0, most=count)


def show(
    slots: list[Slot],
    budget: int = 100,
    seats: int | None = None,
    blocks: int | None = None,
    known: bool = False,
    batch_time: BatchTime = Affine(10.0, 0.0),  # noqa: B008
    classes: int = 1,
    mean_decode: Any = 9.0,
    batches: int = 0,
    first_token: str = "decode",
) -> View:
    """One engine with these requests; ticks are milliseconds, blocks hold one token."""

    def column(name: str, kind: Any = jnp.int32) -> jax.Array:
        return jnp.array([getattr(s, name) for s in slots], kind)

    prefill, prompt, generated = (column(n) for n in ("prefill", "prompt", "generated"))
    started = column("started", bool)
    cached = jnp.where(started, prompt + generated - prefill, 0)
    memory = None
    if blocks is not None:
        samples = first_token == "prefill"
        memory = Memory(cached, column("admitted"), jnp.int32(blocks), 1, samples)
    return View(
        prefill=prefill,
        decoding=(prefill == 0) & (column("left") > 0),
        started=started,
        prompt=prompt,
        generated=generated,
        waited=column("waited"),
        unserved=column("unserved"),
        job_class=column("job_class"),
        decode_left=column("left") if known else None,
        token_budget=jnp.int32(budget),
        max_num_seqs=None if seats is None else jnp.int32(seats),
        batch_time=batch_time,
        tick_ms=jnp.float32(1.0),
        batches=jnp.int32(batches),
        classes=classes_of(classes, mean_decode),
        free=jnp.array(True),
        job_age=column("waited"),
        resident_limit=seats is not None,
        memory=memory,
    )


def batch(name: str, view: View, key: jax.Array = KEY, **chosen: Any) -> Batch:
    """The batch of a policy; run as plain Python, since compiling is what costs time."""
    with jax.disable_jit():
        return baselines.make(name, **chosen)(key, view)


def tokens(name: str, view: View, **chosen: Any) -> list[int]:
    """Its tokens."""
    return np.asarray(batch(name, view, **chosen).tokens).tolist()


def seen(scenario: Scenario, envs: int, steps: int, burst: int = 20) -> View:
    """Views of many states of an engine, from a backlog down, with one batch axis."""
    physics, policy = simulator.lower(scenario, burst=burst), baselines.make("sarathi")

    def step(state: Any, _: Any) -> tuple[Any, View]:
        view = simulator.view(physics, state)
        return simulator.step(physics, state, policy(KEY, view))[0], view

    state = rollout.start(physics, rollout.keys(0, envs))
    found = jax.jit(lambda s: jax.lax.scan(step, s, length=steps)[1])(state)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], -1), found)
