"""The physics of a scenario, be it one engine or a network of them."""

from __future__ import annotations

from typing import Any

import jax

from llmgym.engine import dynamics, network
from llmgym.engine.network import Network
from llmgym.engine.view import Batch, View
from llmgym.scenario.scenario import Scenario


def lower(scenario: Scenario, burst: int = 0) -> Any:
    """The scenario as traced parameters; see ``dynamics.lower``."""
    if scenario.is_network:
        return network.lower_network(scenario, burst)
    return dynamics.lower(scenario, burst)


def init(physics: Any, key: jax.Array) -> Any:
    """The empty system at time 0; see ``dynamics.init``."""
    one = network.init_network if isinstance(physics, Network) else dynamics.init
    return one(physics, key)


def view(physics: Any, state: Any) -> View:
    """What a policy sees; of a network, with an axis of engines before the batch axes."""
    one = network.network_view if isinstance(physics, Network) else dynamics.view
    return one(physics, state)


def step(physics: Any, state: Any, batch: Batch, limit: jax.Array | None = None) -> tuple[Any, Any]:
    """One decision epoch; see ``dynamics.step`` and ``network.step_network``."""
    one = network.step_network if isinstance(physics, Network) else dynamics.step
    return one(physics, state, batch, limit)


def next_arrival(physics: Any, state: Any) -> jax.Array:
    """Ticks until the next arrival from outside; NEVER where none is to come."""
    one = network.next_job if isinstance(physics, Network) else dynamics.next_arrival
    return one(physics, state)
