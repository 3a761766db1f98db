"""Scenarios fitted to traces, the shipped ones among them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmgym import scenario
from llmgym.core.errors import LLMGymError
from llmgym.scenario.arrivals import GammaRenewal, Poisson
from llmgym.scenario.replay import Replay
from llmgym.scenario.toml_reader import loads
from llmgym.scenario.toml_writer import dumps
from llmgym.traces.arrival_fits import fit_arrivals
from llmgym.traces.burstiness import burstiness, sample_times
from llmgym.traces.fits import describe, fit_quantiles, fit_scenario
from llmgym.traces.readers import read_trace

ROOT = Path(__file__).parents[2]
CONVERSATION, CODE = (f"AzureLLMInferenceTrace_{name}.csv" for name in ("conv", "code"))
MOONCAKE = "mooncake_conversation_trace.jsonl"
SHIPPED = {
    "azure-code": CODE,
    "azure-conversation": CONVERSATION,
    "a100-llama-3-8b": CONVERSATION,
    "a100-llama-70b": CONVERSATION,
    "long-context": MOONCAKE,
}
WITH_MEMORY = ("a100-llama-3-8b", "a100-llama-70b", "long-context", "paper-gpu-memory")


def replay(count: int = 300, **fields: Any) -> Replay:
    rng = np.random.default_rng(2)
    times = np.cumsum(rng.exponential(0.5, count))
    return Replay(times, rng.integers(1, 900, count), rng.geometric(0.02, count), **fields)


def test_a_table_of_quantiles_keeps_the_mean() -> None:
    sample = np.random.default_rng(0).lognormal(5, 1.2, 4000).round()
    table = fit_quantiles(sample, 33)
    assert len(table.quantiles) == 33
    assert table.mean == pytest.approx(sample.mean(), rel=1e-3)
    assert np.all(np.diff(table.quantiles) >= 0)
    middle = np.quantile(sample, [0.25, 0.5, 0.75])
    assert np.array(table.quantiles)[[8, 16, 24]] == pytest.approx(middle, rel=0.05)
    assert set(fit_quantiles([7] * 40, 5).quantiles) == {7.0}


def test_a_fitted_scenario_says_what_it_is() -> None:
    trace, engine = replay(ttft_ms=500.0), scenario("geometric")
    fitted = fit_scenario(trace, fit_arrivals(trace, "gamma"), engine, "mine", "Mine", "A log.", 33)
    assert fitted.engine == engine.engine
    assert (fitted.name, fitted.source) == ("mine", "A log.")
    assert [one.targets_ms for one in fitted.classes] == [(500.0, None)]
    assert fitted.arrival_rate_per_s == pytest.approx(trace.rate_per_s, rel=1e-3)
    assert fitted.mean_prefill == pytest.approx(trace.mean_prefill, rel=1e-2)
    assert loads(dumps(fitted)) == fitted
    assert fitted.description.startswith("Mine: 300 requests in 1")
    assert "slowed" not in fitted.description and "a load of 0." in fitted.description
    slow = fit_scenario(trace, Poisson(0.5), engine, "mine", points=33).description
    assert "Arrivals are Poisson. They are slowed down to 0.5 requests/s." in slow
    fast = fit_scenario(trace, GammaRenewal(90.0, 2), engine, "mine", points=33).description
    assert "sped up to 90 requests/s" in fast and "choose a load below 1." in fast


@pytest.mark.parametrize(
    ("kind", "message"),
    [("bursts", "lulls of"), ("day", r"\d+ bins of"), ("bursty-day", "come on top")],
)
def test_every_kind_is_described(kind: str, message: str) -> None:
    assert re.search(message, describe(fit_arrivals(replay(), kind)))


def test_bad_fits() -> None:
    trace = replay(60)
    with pytest.raises(
        LLMGymError, match="129 quantiles needs as many requests, got 60; use fewer"
    ):
        fit_scenario(trace, Poisson(1.0), scenario("geometric"), "mine")
    with pytest.raises(LLMGymError, match="points must be at least 2"):
        fit_quantiles([1, 2, 3], 1)
    with pytest.raises(LLMGymError, match="is a network"):
        fit_scenario(trace, Poisson(1.0), scenario("load-balanced"), "mine")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_summarises_its_trace(shared_data, name: str) -> None:
    trace, job = read_trace(shared_data / "traces" / SHIPPED[name]), scenario(name).job_types[0]
    for length, seen in [
        (job.stages[0].prefill, np.asarray(trace.prefill_tokens)),
        (job.stages[0].decode, np.asarray(trace.decode_tokens)),
    ]:
        drawn = length.draw(100_000)
        assert length.mean == pytest.approx(seen.mean(), rel=1e-3)
        assert drawn.mean() == pytest.approx(seen.mean(), rel=0.02)
        assert drawn.std() == pytest.approx(seen.std(), rel=0.05)
        assert np.quantile(drawn, 0.9) == pytest.approx(np.quantile(seen, 0.9), rel=0.03)


def test_bursts_of_azure_code_on_the_device(shared_data) -> None:
    trace = burstiness(read_trace(shared_data / "traces" / CODE).arrival_s)
    runs = sample_times(scenario("azure-code").job_types[0].arrivals, 8819, runs=8)
    found = [burstiness(run) for run in runs]
    assert np.mean([f.rate_per_s for f in found]) == pytest.approx(trace.rate_per_s, rel=0.2)
    shape = np.mean([f.shape for f in found], axis=0)
    assert shape == pytest.approx(trace.shape, rel=0.2)


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_the_blocks_follow_from_what_the_description_says(name: str) -> None:
    shipped = scenario(name)
    numbers = re.search(
        r"KV memory: (.*) of the (\d+) GB of .* less (.*) GB of weights, at 2 \* (\d+) layers \* "
        r"8 KV heads \* 128 \* 2 bytes = (.*) bytes a token: (.*) blocks of 16",
        shipped.description,
    )
    assert numbers is not None
    share, memory, weights, layers, per_token, blocks = (
        float(n.replace(",", "")) for n in numbers.groups()
    )
    assert per_token == 2 * layers * 8 * 128 * 2
    cache = shipped.engine.kv_cache
    assert cache is not None
    assert (cache.blocks, cache.block_size) == (blocks, 16)
    left = (share * memory - weights) * 1e9 / per_token / 16
    assert blocks == pytest.approx(left, abs=0.005e9 / per_token / 16 + 1)  # weights to 10 MB


@pytest.mark.slow
def test_shipped_scenarios_are_what_the_tool_writes(shared_data, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    spec = importlib.util.spec_from_file_location("tool", ROOT / "tools/make_trace_scenarios.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "tool", tool)  # its dataclasses look there
    spec.loader.exec_module(tool)
    tool.main([str(shared_data / "traces"), "--out", str(tmp_path)])
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted({*SHIPPED, *WITH_MEMORY})
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "llmgym" / "scenario" / "data" / path.name).read_bytes()
