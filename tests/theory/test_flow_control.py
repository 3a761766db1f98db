"""The conditions of flow control: published numbers, the queue, verdicts, and bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import poisson

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import Roofline
from llmgym.scenario.kv_cache import KVCache
from llmgym.theory import flow_control, mean_waiting
from llmgym.theory.kv_memory import token_iterations

INSIDE = llmgym.scenario("flow-control")


def test_the_published_numbers() -> None:
    found = flow_control(INSIDE, (4, 4, 4))
    assert found.verdict == "stable"
    assert found.token_slots == (410, 1220, 2430)
    assert [10 * o + o * (o + 1) // 2 for o in (20, 40, 60)] == list(found.token_slots)
    assert found.arrivals == pytest.approx((3, 3, 3))
    assert (found.peak_tokens, found.memory_tokens, found.memory_margin) == (16240, 16492, 252)
    assert found.arrival_margins == pytest.approx((1, 1, 1))
    assert found == flow_control(INSIDE, 4) == flow_control(INSIDE)  # the smallest above 3


def test_the_other_side() -> None:
    found = flow_control(llmgym.scenario("flow-control-overloaded"))
    assert found.verdict == "unstable"
    assert found.mean_tokens == pytest.approx(4.5 * 4060)
    assert found.mean_tokens > found.memory_tokens
    # Memory is what limits the planning LP as well.
    limit = llmgym.capacity(INSIDE).requests_per_s
    assert flow_control(INSIDE.at_rate(0.999 * limit), 4).verdict == "undecided"
    assert flow_control(INSIDE.at_rate(1.001 * limit), 4).verdict == "unstable"


def stationary_mean(arrivals: float, activations: int, states: int) -> float:
    """Mean of Q' = max(Q + A - b, 0) from its transition matrix, A Poisson, cut off at ``states``."""
    after = np.arange(states)
    come = after[None, 1:] - after[:, None] + activations
    chain = np.zeros((states, states))
    chain[:, 1:] = poisson.pmf(come, arrivals)
    chain[:, 0] = poisson.cdf(activations - after, arrivals)
    chain[:, -1] += 1 - chain.sum(axis=1)
    balance = np.vstack([chain.T - np.eye(states), np.ones(states)])
    law = np.linalg.lstsq(balance, np.append(np.zeros(states), 1.0), rcond=None)[0]
    return float(law @ after)


def test_the_published_queue() -> None:
    """0.801 requests of each class wait once a slot has made its activations."""
    assert round(stationary_mean(3.0, 4, 150), 3) == 0.801
    assert mean_waiting(3.0, 4) == pytest.approx(stationary_mean(3.0, 4, 150), abs=1e-9)


@given(load=st.floats(0.05, 0.9), activations=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_closed_form_is_the_stationary_mean(load: float, activations: int) -> None:
    exact = stationary_mean(load * activations, activations, 250)
    assert mean_waiting(load * activations, activations) == pytest.approx(exact, abs=1e-6)


def test_one_activation_a_slot_is_the_queue_m_d_1() -> None:
    assert mean_waiting(0.8, 1) == pytest.approx(0.8**2 / (2 * 0.2))


def engine(**changes: Any) -> llmgym.Scenario:
    """The scenario with another engine."""
    return replace(INSIDE, engines=(replace(INSIDE.engine, **changes),))


def test_token_slots_are_those_of_the_engine() -> None:
    paper = engine(first_token="decode")  # the prompt takes a slot of its own, every output another
    assert flow_control(paper, 3).token_slots == tuple(
        11 + sum(11 + j for j in range(1, o + 1)) for o in (20, 40, 60)
    )
    for scenario in (INSIDE, paper):
        held = flow_control(scenario, 3).token_slots
        assert np.mean(held) == pytest.approx(token_iterations(scenario))
    blocks = flow_control(engine(kv_cache=KVCache(1100, 16)), 4)
    assert blocks.token_slots[0] == sum(-(-(10 + j) // 16) * 16 for j in range(1, 21))
    no_prompt = engine(first_token="prefill").override(prefill_tokens=0)
    assert flow_control(no_prompt, 4).token_slots == tuple(o * (o + 1) // 2 for o in (20, 40, 60))


def with_lengths(prompt: Any) -> llmgym.Scenario:
    """The scenario with other prompts."""
    return INSIDE.override(prefill_tokens=prompt)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_control(engine(kv_cache=None)), "one engine with KV memory"),
        (lambda: flow_control(engine(replicas=2)), "one engine with KV memory"),
        (
            lambda: flow_control(replace(INSIDE, workload=llmgym.Replay([0.0], [1], [1]))),
            "a replay is finite",
        ),
        (
            lambda: flow_control(with_lengths(llmgym.Uniform(1, 9))),
            "'20-outputs' has random lengths",
        ),
        (lambda: flow_control(engine(batch_time=llmgym.Affine(20, 0.1))), "from 20.1 to 122.4 ms"),
        (lambda: flow_control(engine(batch_time=llmgym.Affine(20, 1e-4))), "from 20.0001 to 20.1"),
        (
            lambda: flow_control(engine(batch_time=Roofline(20, 0, 0, 1.0))),
            "from 20 to 1020 ms",
        ),
        (lambda: flow_control(INSIDE, (4, 4)), "2 entries, and the scenario has 3 classes"),
        (lambda: flow_control(INSIDE, (4, 4, 0)), r"activations\[2\] must be at least 1"),
        (lambda: flow_control(INSIDE, 3.5), "whole number"),  # type: ignore[arg-type]
        (lambda: flow_control(INSIDE, "four"), "must be a number"),  # type: ignore[arg-type]
        (
            lambda: flow_control(INSIDE.at_rate(603.0)),
            "hold up to 20300 tokens, and memory has 16492",
        ),
        (lambda: flow_control(engine(token_budget=599), 4), "hold up to 600 tokens"),
        (lambda: flow_control(engine(max_num_seqs=479), 4), "Up to 480 requests are active"),
        (lambda: mean_waiting(4.0, 4), "The queue grows"),
        (lambda: mean_waiting(float("nan"), 4), "arrivals must be finite"),
        (lambda: mean_waiting(3.0, 4.5), "whole number"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_named(call: Any, message: str) -> None:
    with pytest.raises(LLMGymError, match=message):
        call()


def test_the_largest_batch_fits_the_budget_exactly() -> None:
    assert flow_control(engine(token_budget=600, max_num_seqs=480), 4).verdict == "stable"
