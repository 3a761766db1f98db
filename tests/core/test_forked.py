"""A forked process says that JAX would hang in it, wherever it computes; other processes compute."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv

import llmgym
from llmgym.agents import index_search, trials
from llmgym.agents.training import Training, train
from llmgym.baselines.index import Index
from llmgym.core.errors import LLMGymError
from llmgym.core.forked import _method

pytestmark = [
    pytest.mark.skipif(not hasattr(sys, "getdlopenflags"), reason="nothing forks there"),
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
]

FORK_FIRST = """
import os, llmgym
import jax.numpy as jnp
import numpy as np
if os.fork() == 0:
    llmgym.capacity("geometric")
    assert jnp.ones(3).sum() == 3
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
"""

UNKNOWN_JAX = """
import os
import jax._src.xla_bridge as bridge
del bridge.backends_are_initialized
from llmgym.core.errors import LLMGymError
from llmgym.core.forked import refuse_forked
if os.fork() == 0:
    try:
        refuse_forked()
    except LLMGymError:
        os._exit(7)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
"""


def entries() -> dict[str, Callable[[], Any]]:
    """What computes, by name."""
    scenario = llmgym.scenario("geometric", slots=32)
    vector = gym.make_vec("llmgym/Engine-v0", 2, scenario=scenario)
    alone = gym.make("llmgym/Engine-v0", scenario=scenario)
    training = Training((scenario,), steps=1)
    return {
        "simulate": lambda: llmgym.simulate(scenario, "sarathi", duration_s=1),
        "stability": lambda: llmgym.stability(scenario, "sarathi"),
        "capacity": lambda: llmgym.capacity(scenario),
        "estimate_capacity": lambda: llmgym.estimate_capacity(scenario, "sarathi"),
        "make": lambda: gym.make("llmgym/Engine-v0", scenario=scenario),
        "make network": lambda: gym.make("llmgym/Network-v0", scenario="fork-join"),
        "make_vec": lambda: gym.make_vec("llmgym/Engine-v0", 2, scenario=scenario),
        "reset": lambda: alone.reset(seed=0),
        "reset of several": lambda: vector.reset(seed=0),
        "functional": lambda: llmgym.functional("llmgym/Engine-v0", scenario=scenario),
        "train": lambda: train(training),
        "search": lambda: index_search.search(scenario),
        "trials": lambda: trials.measure(
            scenario, index_search.vary, Index(), np.ones((1, 6)), 1, 1.0, 1.0
        ),
    }


def tell(chosen: dict[str, Callable[[], Any]], pipe: Any) -> None:
    """In the forked process: what each of them says."""
    for name, call in chosen.items():
        try:
            call()
            pipe.send((name, "it computed"))
        except LLMGymError as error:
            pipe.send((name, str(error)))
    pipe.close()


def test_all_that_computes_refuses_in_a_forked_process() -> None:
    chosen = entries()
    jnp.zeros(()).block_until_ready()  # JAX has started
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=tell, args=(chosen, theirs))
    child.start()
    theirs.close()
    said = {}
    try:
        while len(said) < len(chosen):
            assert ours.poll(20), f"it hangs after {list(said)}"
            name, message = ours.recv()
            said[name] = message
    finally:
        child.kill()
        child.join()
    assert said.keys() == chosen.keys()
    for message in said.values():
        assert message.startswith("This process was forked after JAX had started")
        assert "get_context('spawn')" in message and "context='spawn'" in message


def small_engine() -> Any:
    return gym.make("llmgym/Engine-v0", scenario=llmgym.scenario("geometric", slots=32))


@pytest.mark.parametrize("context", ["fork", None])
def test_gymnasium_is_refused_to_fork_before_it_forks(
    context: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process of the user, who would else be told of a broken pipe."""
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: None)
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    scenario = llmgym.scenario("geometric", slots=32)
    several = {"vectorization_mode": "async", "vector_kwargs": {"context": context}}
    for make in (
        lambda: AsyncVectorEnv([small_engine] * 2, context=context),
        lambda: gym.make_vec("llmgym/Engine-v0", 2, scenario=scenario, **several),
        lambda: gym.make_vec("llmgym/Network-v0", 2, scenario="fork-join", **several),
    ):
        with pytest.raises(LLMGymError, match="context='spawn'"):
            make()


@pytest.mark.slow
def test_gymnasium_that_spawns_is_let_do_so() -> None:
    envs = AsyncVectorEnv([small_engine] * 2, context="spawn")
    try:
        observation, _ = envs.reset(seed=[0, 1])
        alone, _ = small_engine().reset(seed=1)
        np.testing.assert_array_equal(observation[1], alone)
    finally:
        envs.close()


def test_a_start_method_that_the_user_has_chosen_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["fork", "spawn"])
    assert _method(None) == "spawn"
    assert _method("fork") == "fork"


def test_a_process_that_is_forked_before_jax_starts_computes() -> None:
    found = subprocess.run(
        [sys.executable, "-c", FORK_FIRST], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


def test_a_jax_that_does_not_say_whether_it_has_started_is_not_trusted() -> None:
    subprocess.run([sys.executable, "-c", UNKNOWN_JAX], check=True, timeout=120)
