"""The speed command measures the engine itself, and its rival runs the same engine."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import llmgym
from llmgym.errors import LLMGymError
from llmgym.evaluation import rival, speed


def test_measure() -> None:
    found = speed.measure(num_envs=6, slots=32, steps=10, load=0.3)
    assert found.steps_per_s > 0
    assert {"steps_per_s", "compile_s", "peak_memory_mb", "dropped"} <= set(speed.as_json(found))
    with pytest.raises(LLMGymError, match="num_envs"):
        speed.measure(num_envs=0)
    with pytest.raises(LLMGymError, match="Did you mean 'sarathi'"):
        speed.measure(num_envs=2, policy="sarathy")


def test_blocks_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = speed.measure(num_envs=6, slots=32, steps=20, load=0.5)
    monkeypatch.setattr(speed, "BLOCK", 4)
    parts = speed.measure(num_envs=6, slots=32, steps=20, load=0.5)
    for name in ("dropped", "arrived", "mean_in_system"):
        assert getattr(whole, name) == getattr(parts, name)


@pytest.mark.parametrize("slots", [12, 128])
def test_the_rival_forms_the_same_batches(slots: int) -> None:
    scenario = speed.scenario_of(slots, 0.9)
    arrival, prefill, decode = rival.draw_requests(scenario, 400)
    loop = rival.compiled() or rival.event_loop
    durations, sizes, *_, dropped, _ = loop(
        arrival, prefill, decode, rival.batch_ticks(scenario), slots, 5000
    )
    replay = llmgym.Replay(arrival * scenario.tick_ms / 1000, prefill, decode)
    run = llmgym.simulate(scenario.override(workload=replay), "sarathi")
    batches = run.batches
    ran = sizes > 0
    assert (np.rint(batches.duration_ms / scenario.tick_ms) == durations[ran]).all()
    assert (batches.prefill_tokens + batches.decode_tokens == sizes[ran]).all()
    assert run.summary["dropped"] == dropped
    assert (dropped > 0) == (slots == 12)


def test_step_compiles_once_across_a_load_sweep() -> None:
    core = llmgym.functional("llmgym/Engine-v0", scenario=speed.scenario_of(32, 0.5))
    step = jax.jit(core.step)
    state = core.init(jax.random.key(0))
    for load in (0.1, 0.5, 0.9, 1.3):
        scenario = speed.scenario_of(32, load)
        step(state, 0, llmgym.functional("llmgym/Engine-v0", scenario=scenario).params)
    assert step._cache_size() == 1
