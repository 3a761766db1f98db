"""What a step says."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from llmgym.core.pytree import register
from llmgym.engine.service import Service
from llmgym.engine.state import Table
from llmgym.engine.view import Batch


@register
@dataclass(frozen=True)
class StepInfo:
    """What happened in one step. Arrays of engines, (engines, ...) or of a lone engine (...), are of the
    batches that started; per-slot arrays refer to ``table``, the requests at the end of the step.
    """

    duration: jax.Array  # ticks of the step, int32
    batch_ticks: jax.Array  # of engines: of the batch; 0 if none started
    prefill_tokens: jax.Array  # of engines: in the batch
    decode_tokens: jax.Array  # of engines
    requests: jax.Array  # of engines: in the batch
    completed: jax.Array  # requests, or jobs
    arrived: jax.Array  # requests or jobs, those dropped included
    dropped: jax.Array  # requests or jobs
    clipped: jax.Array  # of engines: whether a policy asked for more than is feasible
    preempted: (
        jax.Array
    )  # of engines: requests that lost their KV memory; ``batch.preempt`` says who
    lost: jax.Array  # of engines: tokens that they have to compute again
    found: jax.Array  # (slots, engines...) tokens that prefix caching found in memory
    swapped: jax.Array  # of engines: tokens that went to the host or back
    free_blocks: jax.Array  # of engines: of KV memory while the batch runs
    idle: jax.Array  # whether no batch started
    request_ticks: jax.Array  # integral of the number present over the step, float32
    batch: Batch  # that started
    finished: jax.Array  # (rows, stations...) whether the request, or delay, ended
    table: Table  # after crediting, before arrivals; finished rows still carry their times
    service: Service | None  # of each client, where the scenario weighs it
