"""One interface for environments, PPO, trained policies and SB3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llmgym
from llmgym.agents.choice import OfChoice
from llmgym.agents.network_choice import NetworkChoice
from llmgym.agents.of_interface import InterfaceChoice
from llmgym.agents.ppo import PPO
from llmgym.agents.tile_choice import TileChoice
from llmgym.agents.training import Training, train
from llmgym.core.errors import LLMGymError
from llmgym.theory.capacity import at_load

SCENARIO = at_load(llmgym.scenario("paper-figure-1", slots=32), 0.7)


@pytest.mark.parametrize(("action", "parts"), [("tiles", 1), ("split", 2)])
def test_ppo_learns_an_interface_of_the_environment(
    action: str, parts: int, tmp_path: Path
) -> None:
    """What is trained decides in simulate as its network does in the environment."""
    choice = InterfaceChoice(SCENARIO, "engine", action)
    assert len(choice.parts) == parts
    settings = PPO(choice=choice, num_envs=4, steps=8, minibatches=2, hidden=8, warm_up=0.0)
    (policy,) = train(Training((SCENARIO,), settings, steps=160), tmp_path)
    loaded = llmgym.agents.load(tmp_path / "agent-0.npz")
    assert loaded == policy and loaded.choice == choice
    env = gym.make("llmgym/Engine-v0", scenario=SCENARIO, action=action).unwrapped
    core: Any = env.core  # type: ignore[attr-defined]
    assert core.interface == choice.interface

    @jax.jit
    def acted(state: Any) -> tuple[Any, ...]:
        """What the policy sees; its action, by its network, and its batch; and its batch by itself."""
        view = core.view(state)
        sight = choice.look(view, state.memory)
        logits = choice.logits(jax.tree.map(jnp.asarray, policy.actor), sight.features)
        scores = jnp.where(sight.mask, logits + sight.prior, -jnp.inf)
        chosen = choice.choose(view, scores)
        batch, memory = policy(jax.random.key(0), view, state.memory)
        action = chosen[0] if parts == 1 else chosen
        return sight.features, action, core.expand(state, action), batch, memory

    observation, _ = env.reset(seed=0)
    for _ in range(30):
        state = env.state  # type: ignore[attr-defined]
        seen, chosen, expanded, batch, memory = acted(state)
        np.testing.assert_array_equal(expanded.tokens, batch.tokens)
        np.testing.assert_allclose(observation, seen, rtol=1e-5)  # compiled with something else
        observation, *_ = env.step(np.asarray(chosen))
        for one, two in zip(
            jax.tree.leaves(memory),
            jax.tree.leaves(env.state.memory),
            strict=True,  # type: ignore[attr-defined]
        ):
            np.testing.assert_array_equal(one, two)


def test_a_choice_is_an_interface_of_the_environment() -> None:
    choice = TileChoice(tiles=4, shares=3, guard=None)
    env = gym.make("llmgym/Engine-v0", scenario=SCENARIO, interface=choice)
    assert isinstance(env.action_space, gym.spaces.MultiDiscrete)
    core: Any = env.unwrapped.core  # type: ignore[attr-defined]

    @jax.jit
    def own(state: Any, action: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the choice sees, and the tokens of its batch."""
        view = core.view(state)
        return choice.look(view).features, choice.batch(view, action).size

    observation, info = env.reset(seed=0)
    for _ in range(20):
        action = env.action_space.sample(info["action_mask"])
        seen, size = own(env.unwrapped.state, jnp.asarray(action))  # type: ignore[attr-defined]
        np.testing.assert_allclose(observation, seen, rtol=1e-6)
        observation, _, _, _, info = env.step(action)
        assert info["prefill_tokens"] + info["decode_tokens"] == int(size)


def test_engines_of_a_network_decide_by_one_choice() -> None:
    network = llmgym.scenario("rybko-stolyar", slots=32)
    env = gym.make("llmgym/Network-v0", scenario=network, interface=NetworkChoice(), load=0.5)
    space: Any = env.action_space
    assert space.nvec.tolist() == [4, 4]
    observation, info = env.reset(seed=0)
    names = env.unwrapped.core.interface.names  # type: ignore[attr-defined]
    assert len(names) == observation.size == 2 * len(NetworkChoice().features)
    for _ in range(10):
        observation, _, _, _, info = env.step(space.sample(info["action_mask"]))
        assert not np.any(info["clipped"]) and np.isfinite(observation).all()


def test_wrong_interfaces_raise() -> None:
    with pytest.raises(LLMGymError, match="not made of choices"):
        InterfaceChoice(SCENARIO, action="scores")
    with pytest.raises(LLMGymError, match="Unknown feature"):
        InterfaceChoice(SCENARIO, observation=("engines",))
    with pytest.raises(LLMGymError, match="sizes must be those"):
        InterfaceChoice(3)  # type: ignore[arg-type]
    with pytest.raises(LLMGymError, match=r"must be an llmgym\.Interface"):
        gym.make("llmgym/Engine-v0", interface="tiles")
    assert isinstance(TileChoice().interface, OfChoice)
