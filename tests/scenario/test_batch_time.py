"""Batch times: their formulas in NumPy and JAX, attention, tables, and presets by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.core.errors import LLMGymError
from llmgym.engine import simulator
from llmgym.engine.mixed_times import MixedTimes, stacked_times
from llmgym.scenario.batch_time import (
    BATCH_TIMES,
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    MOST_POINTS,
    Affine,
    Attention,
    BatchTime,
    Hinge,
    MeasuredTable,
    Roofline,
    Staircase,
)
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.toml_reader import loads
from llmgym.scenario.toml_tables import load_batch_time
from llmgym.scenario.toml_writer import dumps, dumps_batch_time

ROOFLINE = Roofline(16.6, 0.0909, 96, 0.221, 4.19, 0.3)
TABLE = MeasuredTable((1, 64, 128, 512), (20.0, 21.5, 30.0, 70.0))
MODELS: dict[str, BatchTime] = {
    "staircase": CODELLAMA_34B_A100,
    "hinge": LLAMA_3_70B,
    "affine": Affine(5.0, 0.1),
    "roofline": ROOFLINE,
    "table": TABLE,
}
SIZES = np.arange(1, 1025)


def lower(model: BatchTime) -> BatchTime:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), model)


def load(text: str) -> BatchTime:
    """The batch time in a text, read as that of a scenario with a fine clock."""
    scenario = dumps(replace(llmgym.scenario("md1"), tick_ms=1e-4))
    start, end = scenario.index("[engine.batch_time]"), scenario.index("[[job_types]]")
    text = text.replace("[batch_time]", "[engine.batch_time]")
    return loads(f"{scenario[:start]}{text}\n{scenario[end:]}").engine.batch_time


def attention(rng: np.random.Generator, size: int) -> Attention:
    """Decodes only, prefill only, both and neither."""
    context = rng.integers(0, 500_000, size) * rng.integers(0, 2, size)
    pairs = rng.integers(0, 10_000_000, size) * rng.integers(0, 2, size)
    return Attention(context.astype(float), pairs.astype(float))


def test_there_is_a_model_of_every_kind() -> None:
    assert MODELS.keys() == BATCH_TIMES.keys()
    assert {kind for kind, model in MODELS.items() if model.needs_attention} == {"roofline"}


@pytest.mark.parametrize("kind", MODELS)
def test_jax_gives_what_numpy_gives(kind: str) -> None:
    model, read = MODELS[kind], attention(np.random.default_rng(0), SIZES.size)
    ms = lower(model).formula(jnp.asarray(SIZES, jnp.float32), jnp, lower(read))
    np.testing.assert_allclose(ms, model.ms(SIZES, read), rtol=2e-6)
    ticks = lower(model).ticks(jnp.asarray(SIZES), jnp.float32(0.01), lower(read))
    assert ticks.dtype == jnp.int32
    exact = model.ms(SIZES, read) / 0.01
    assert np.abs(np.asarray(ticks) - exact).max() <= 0.5 + 2e-6 * exact.max()


@pytest.mark.parametrize("kind", MODELS)
def test_only_models_that_need_attention_look_at_it(kind: str) -> None:
    model, read = MODELS[kind], Attention(300_000, 2e6)
    assert bool((model.ms(SIZES, read) == model.ms(SIZES)).all()) is not model.needs_attention


@pytest.mark.parametrize(
    ("tokens", "read", "ms"),
    [
        (96, Attention(), 16.6),
        (196, Attention(), 16.6 + 9.09),
        (32, Attention(decode_context=20_000), 16.6 + 4.42),
        (596, Attention(prefill_pairs=596 * (1000 + 298)), 16.6 + 45.45 + 4.19 * 0.773608),
        (128, Attention(20_000, 96 * 48), 16.6 + 32 * 0.0909 + 20 * 0.521 + 4.19 * 0.004608),
    ],
)
def test_roofline_by_hand(tokens: int, read: Attention, ms: float) -> None:
    assert float(ROOFLINE.ms(tokens, read)) == pytest.approx(ms, rel=1e-12)


tables = st.lists(
    st.tuples(st.integers(1, 10_000), st.floats(1e-2, 1e4)),
    min_size=2,
    max_size=MOST_POINTS,
    unique_by=lambda point: point[0],
).map(lambda points: MeasuredTable(*zip(*sorted(points), strict=True)))


@settings(max_examples=200, deadline=None)
@given(tables, st.lists(st.floats(1, 20_000), min_size=1, max_size=20))
def test_a_table_is_linear_between_its_points_and_beyond(
    table: MeasuredTable, sizes: list[float]
) -> None:
    x, y = np.array(table.tokens), np.array(table.times_ms)
    np.testing.assert_allclose(table.ms(x), y, rtol=1e-9)
    slope = max((y[-1] - y[-2]) / (x[-1] - x[-2]), 0)
    at = np.array(sizes)
    expected = np.interp(at, x, y) + slope * np.maximum(at - x[-1], 0)
    np.testing.assert_allclose(table.ms(at), expected, rtol=1e-9, atol=1e-9 * y.max())
    assert table.ms(at).min() > 0
    assert load(dumps_batch_time(table)) == table
    assert hash(table) == hash(load(dumps_batch_time(table)))


def test_a_table_that_falls_at_its_end_goes_on_level() -> None:
    assert MeasuredTable((8, 16), (5.0, 4.0)).ms([1, 8, 12, 16, 900]).tolist() == [5, 5, 4.5, 4, 4]


def test_numbers_of_a_table_become_plain_ones() -> None:
    table = MeasuredTable(np.array([1, 8]), [np.float32(2), 3])
    assert table == MeasuredTable((1, 8), (2.0, 3.0))
    assert [type(v) for v in (*table.tokens, *table.times_ms)] == [int, int, float, float]


@pytest.mark.parametrize(
    ("tokens", "times_ms", "fault"),
    [
        ((1, 2, 3), (1, 2), "tokens has 3 entries and times_ms has 2"),
        ((1,), (1,), "2 to 64 points, got 1"),
        (range(1, 67), range(1, 67), "2 to 64 points, got 66"),
        ((1, 1), (1, 2), r"tokens\[1\] = 1 does not exceed the one before, 1; sort"),
        ((2, 1), (1, 2), r"tokens\[1\] = 1 does not exceed the one before, 2; sort"),
        ((0, 1), (1, 2), r"tokens\[0\] must be greater than 0"),
        ((1, 2.5), (1, 2), r"tokens\[1\] must be a whole number"),
        ((1, 2), (1, 0), r"times_ms\[1\] must be greater than 0"),
        ((1, 2), (1, float("nan")), r"times_ms\[1\] must be finite"),
        ((1, 2), (1, "2"), r"times_ms\[1\] must be a number"),
        (3, (1, 2), "tokens must be a list of numbers, got 3"),
        ((1, 2), "12", "times_ms must be a list of numbers, got '12'"),
    ],
)
def test_faults_of_a_table_are_named(tokens: Any, times_ms: Any, fault: str) -> None:
    with pytest.raises(LLMGymError, match=fault):
        MeasuredTable(tokens, times_ms)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"c_ms": 0}, "c_ms must be greater than 0"),
        ({"a_ms_per_token": -1}, "a_ms_per_token must be at least 0"),
        ({"free_tokens": 2.5}, "free_tokens must be a whole number"),
        ({"kv_ms_per_kilotoken": -1}, "kv_ms_per_kilotoken must be at least 0"),
        ({"prefill_ms_per_megapair": float("inf")}, "prefill_ms_per_megapair must be finite"),
        ({"mixed_ms_per_kilotoken": "x"}, "mixed_ms_per_kilotoken must be a number"),
    ],
)
def test_faults_of_a_roofline_are_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(LLMGymError, match=fault):
        Roofline(**{"c_ms": 1.0, "a_ms_per_token": 0.1, "free_tokens": 8} | change)


@pytest.mark.parametrize("kind", MODELS)
def test_an_engine_carries_every_kind(kind: str) -> None:
    """Lowered and spread over a batch of environments it gives what it gave before."""
    model = MODELS[kind]
    physics = simulator.lower(llmgym.scenario("paper-figure-1", batch_time=model))
    spread = jax.tree.map(lambda x: jnp.broadcast_to(x, (3,)), physics.batch_time)
    assert type(spread) is type(model)
    ms = spread.formula(jnp.array([1.0, 100.0, 700.0]), jnp)
    np.testing.assert_allclose(ms, model.ms([1, 100, 700]), rtol=1e-6)


def test_a_network_carries_every_kind_beside_the_others() -> None:
    """Also two tables of different lengths, which have different numbers of constants."""
    models = [*MODELS.values(), MeasuredTable((1, 9), (3.0, 4.0)), Affine(1.0, 1.0)]
    mixed = stacked_times(models)
    assert isinstance(mixed, MixedTimes)
    assert len(mixed.models) == 6
    assert mixed.needs_attention
    assert not stacked_times([models[0], models[1]]).needs_attention
    shape = (len(models), 4)
    spread = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], shape), mixed)
    sizes = np.broadcast_to([1.0, 60.0, 300.0, 2000.0], shape)
    read = attention(np.random.default_rng(1), sizes.size)
    read = jax.tree.map(lambda x: x.reshape(shape), read)
    ms = spread.formula(jnp.asarray(sizes), jnp, lower(read))
    for n, model in enumerate(models):
        mine = jax.tree.map(lambda x, n=n: x[n], read)
        np.testing.assert_allclose(ms[n], model.ms(sizes[n], mine), rtol=2e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip_through_files(kind: str, tmp_path: Any) -> None:
    path = tmp_path / "fit.toml"
    path.write_text(dumps_batch_time(MODELS[kind]))
    assert path.read_text().startswith("[batch_time]\n")
    assert load_batch_time(path) == MODELS[kind]
    assert load(path.read_text()) == MODELS[kind]
    assert llmgym.scenario("md1", batch_time=path).engine.batch_time == MODELS[kind]
    assert llmgym.scenario("md1", batch_time=str(path)).engine.batch_time == MODELS[kind]
    network = dumps(llmgym.scenario("rag", batch_time=MODELS[kind]))
    assert {e.batch_time for e in loads(network).engines} == {MODELS[kind]}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_known_by_name(name: str) -> None:
    model = PRESETS[name]
    assert llmgym.scenario("md1", batch_time=name).engine.batch_time == model
    assert load(f'batch_time = "{name}"') == model
    assert load(dumps_batch_time(model)) == model


def test_presets_hold_the_published_ones() -> None:
    assert {CODELLAMA_34B_A100, LLAMA_3_70B} < set(PRESETS.values())
    assert isinstance(CODELLAMA_34B_A100, Staircase)
    assert isinstance(LLAMA_3_70B, Hinge)


FITTED = {
    "rtx4090-llama-3.1-8b": "meta-llama/Llama-3.1-8B | RTX4090 TP1",
    "rtxpro6000-llama-3.1-8b": "meta-llama/Llama-3.1-8B | RTXPRO6000 TP1",
    "a100-codellama-34b-tp2": "codellama/CodeLlama-34b-Instruct-hf | A100-80G TP2",
    "a100-llama-2-70b-tp2": "meta-llama/Llama-2-70b-hf | A100-80G TP2",
    "a100-llama-3-8b": "meta-llama/Meta-Llama-3-8B | A100 TP1 (analytic attention)",
    "a100-llama-2-7b": "meta-llama/Llama-2-7b-hf | A100 TP1 (analytic attention)",
    "h100-llama-2-70b-tp4": "meta-llama/Llama-2-70b-hf | H100 TP4 (analytic attention)",
}


def test_presets_are_the_fits_rounded(shared_data: Any) -> None:
    fits = json.loads((shared_data / "batch_time" / "fits.json").read_text())
    assert FITTED.keys() == PRESETS.keys() - {"a100-codellama-34b", "llama-3-70b"}
    for name, profile in FITTED.items():
        form = "roofline+KV+PP: c+a*max(b-bk,0)+k*KVdec+p*PP"
        fit = fits[profile]["fits"]["mixed batches, budget 2048"][form]
        constants = list(vars(PRESETS[name]).values())
        fitted = [fit[key] for key in ("c", "a", "bk", "k_per_1k_kv", "p_per_1M_pairs")]
        decimals = [len(str(x).partition(".")[2]) for x in constants]
        rounded = [round(x, n) for x, n in zip(fitted, decimals, strict=False)]
        assert [*rounded, 0.0] == constants, name


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("rtx4090-llama-3-8b", None, r"batch time .*Did you mean 'rtx4090-llama-3.1-8b'\?"),
        ("", None, "Unknown batch time ''"),
        ("none.toml", None, "Cannot read batch time none.toml: No such file"),
        ("b.toml", "x =", "b.toml: this is not valid TOML"),
        ("b.toml", "", "b.toml: the key 'batch_time' is missing"),
        ("b.toml", "batch_time = 'b.toml'", "b.toml, table batch_time: this must be a table with"),
        ("b.toml", "[batch_time]\nkind = 'tabel'", "batch_time: Unknown kind 'tabel'. Did you"),
        ("b.toml", "[batch_time]\nkind = 'table'\ntokens = [1, 2]", "'times_ms' is missing"),
        ("b.toml", "[batch_tim]\nkind = 'table'", "b.toml: Unknown key 'batch_tim'. Did you"),
        (
            "b.toml",
            "[batch_time]\nkind = 'table'\ntokens = [1, 2.5]\ntimes_ms = [1, 2]",
            r"table batch_time: tokens\[1\] must be a whole number",
        ),
    ],
)
def test_faults_of_a_named_batch_time_are_named(
    name: str, text: str | None, fault: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(LLMGymError, match=fault):
        llmgym.scenario("md1", batch_time=name)
    with pytest.raises(LLMGymError, match="TOML text, table engine.batch_time: .*" + fault):
        load(f'batch_time = "{name}"')
