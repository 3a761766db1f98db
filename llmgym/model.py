"""The physics of a scenario, be it one engine or a network of them."""

from __future__ import annotations

from typing import Any

import jax

from llmgym import dynamics, network
from llmgym.composition import Batch, View
from llmgym.network import Network
from llmgym.precision import in_32_bits
from llmgym.scenario import Scenario


@in_32_bits
def lower(scenario: Scenario, burst: int = 0) -> Any:
    """The scenario as traced parameters; see ``dynamics.lower``."""
    if scenario.is_network:
        return network.lower_network(scenario, burst)
    return dynamics.lower(scenario, burst)


@in_32_bits
def init(physics: Any, key: jax.Array) -> Any:
    """The empty system at time 0; see ``dynamics.init``."""
    one = network.init_network if isinstance(physics, Network) else dynamics.init
    return one(physics, key)


@in_32_bits
def view(physics: Any, state: Any) -> View:
    """What a policy sees; of a network, with an axis of engines before the batch axes."""
    one = network.network_view if isinstance(physics, Network) else dynamics.view
    return one(physics, state)


@in_32_bits
def step(physics: Any, state: Any, batch: Batch, limit: jax.Array | None = None) -> tuple[Any, Any]:
    """One decision epoch; see ``dynamics.step`` and ``network.step_network``."""
    one = network.step_network if isinstance(physics, Network) else dynamics.step
    return one(physics, state, batch, limit)


@in_32_bits
def next_arrival(physics: Any, state: Any) -> jax.Array:
    """Ticks until the next arrival from outside; NEVER where none is to come."""
    one = network.next_job if isinstance(physics, Network) else dynamics.next_arrival
    return one(physics, state)
