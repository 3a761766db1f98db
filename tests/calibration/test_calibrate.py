"""Calibration: it finds the constants behind measurements, ranks forms rightly, and names faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmgym
from llmgym.calibration.calibrate import calibrate, draw
from llmgym.calibration.data import LEAST_ROWS
from llmgym.calibration.result import Calibration
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import (
    BATCH_TIMES,
    CODELLAMA_34B_A100,
    LLAMA_3_70B,
    MOST_POINTS,
    Affine,
    Attention,
    BatchTime,
    MeasuredTable,
    Roofline,
    Staircase,
)
from llmgym.scenario.batch_time_library import PRESETS
from llmgym.scenario.toml_tables import load_batch_time

MIXED = Roofline(16.6, 0.0909, 97, 0.221, 4.19, 0.3)
TRUTHS: dict[str, BatchTime] = {
    "affine": Affine(12.5, 0.11),
    "hinge": LLAMA_3_70B,
    "staircase": CODELLAMA_34B_A100,
    "roofline": PRESETS["rtx4090-llama-3.1-8b"],
    "mixed": MIXED,
    "table": MeasuredTable((1, 32, 64, 256, 600, 1300), (10.0, 11.0, 30.0, 32.0, 70.0, 71.0)),
}


def batches(size: int = 200, seed: int = 0) -> pd.DataFrame:
    """Batches of decodes, of prefill, and of both, with what attention reads in them."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, size)
    decodes = np.where(kind != 1, rng.integers(1, 257, size), 0)
    chunk = np.where(kind != 0, rng.integers(1, 1025, size), 0)
    context, prefix = rng.integers(10, 3000, size), rng.integers(0, 4000, size)
    return pd.DataFrame(
        {
            "tokens": decodes + chunk,
            "decode_context": decodes * context,
            "prefill_pairs": chunk * (prefix + chunk / 2),
        }
    )


def measured(model: BatchTime, noise: float = 0.0, size: int = 200, seed: int = 0) -> pd.DataFrame:
    """What a stopwatch would say if the model were true, with ``noise`` as a share of the time."""
    frame = batches(size, seed)
    read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
    error = noise * np.random.default_rng(seed + 1).standard_normal(size)
    return frame.assign(ms=model.ms(frame["tokens"].to_numpy(), read) * (1 + error))


def constants(model: BatchTime) -> list[float]:
    return list(vars(model).values())


@pytest.mark.parametrize("name", [name for name in TRUTHS if name != "table"])
def test_constants_are_recovered_without_noise(name: str) -> None:
    truth = TRUTHS[name]
    best = calibrate(measured(truth)).best
    assert type(best.model) is type(truth)
    assert constants(best.model) == pytest.approx(constants(truth), rel=1e-5)
    assert (best.r2, best.mape, best.largest_ms) == pytest.approx((1, 0, 0), abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", TRUTHS)
def test_the_true_form_is_ranked_first_in_spite_of_noise(name: str, seed: int) -> None:
    truth = TRUTHS[name]
    found = calibrate(measured(truth, noise=0.03, size=400, seed=10 * seed))
    assert found.best.form == truth.kind
    frame = measured(truth, size=50, seed=99)
    read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
    guess = found.best.model.ms(frame["tokens"].to_numpy(), read)
    limit = 0.15 if name == "table" else 0.05
    assert np.quantile(np.abs(guess / frame["ms"] - 1), 0.9) < limit


@pytest.mark.parametrize("name", ["affine", "staircase", "mixed"])
def test_constants_are_close_with_noise(name: str) -> None:
    best = calibrate(measured(TRUTHS[name], noise=0.02, size=2000)).best
    for found, true in zip(constants(best.model), constants(TRUTHS[name]), strict=True):
        assert found == pytest.approx(true, rel=0.1)


def test_the_figures_are_what_they_are_called() -> None:
    frame = measured(MIXED, noise=0.05)
    for fit in calibrate(frame).fits:
        read = Attention(frame["decode_context"].to_numpy(), frame["prefill_pairs"].to_numpy())
        error = fit.model.ms(frame["tokens"].to_numpy(), read) - frame["ms"].to_numpy()
        assert fit.r2 == pytest.approx(1 - np.mean(error**2) / np.var(frame["ms"]))
        assert fit.mape == pytest.approx(np.mean(np.abs(error) / frame["ms"]))
        assert fit.largest_ms == pytest.approx(np.abs(error).max())
        assert fit.cv_ms > 0.9 * np.sqrt(np.mean(error**2))


def test_the_order_is_by_the_error_on_unseen_sizes() -> None:
    found = calibrate(measured(MIXED, noise=0.05))
    errors = [fit.cv_ms for fit in found.fits]
    assert found.best.form == "roofline"
    assert errors[1:] == sorted(errors[1:])
    again = calibrate(measured(MIXED, noise=0.05))
    assert [fit.record() for fit in again.fits] == [fit.record() for fit in found.fits]


def test_forms_that_do_alike_are_ordered_by_their_constants() -> None:
    found = calibrate(measured(Affine(12.5, 0.11)))
    assert [(fit.form, fit.constants) for fit in found.fits[:3]] == [
        ("affine", 2),
        ("hinge", 3),
        ("roofline", 6),
    ]


def test_repeats_do_not_make_a_table_look_good() -> None:
    """Ten repeats of each size: were some of them left out alone, the table would know the others."""
    frame = pd.concat([measured(Staircase(5.0, 20.0, 64), size=40)] * 10)
    frame["ms"] += np.random.default_rng(0).normal(0, 0.1, len(frame))
    fits = {fit.form: fit for fit in calibrate(frame).fits}
    assert fits["table"].largest_ms < 5
    assert fits["table"].cv_ms > 5 * fits["staircase"].cv_ms


def test_a_table_holds_the_medians() -> None:
    frame = pd.DataFrame({"tokens": [4, 4, 4, 9, 9, 2, 2, 2], "ms": [5, 6, 90, 7, 8, 3, 1, 2]})
    assert calibrate(frame).fit("table").model == MeasuredTable((2, 4, 9), (2.0, 6.0, 7.5))


def test_a_table_of_many_sizes_has_few_points() -> None:
    tokens = np.arange(1, 1001)
    frame = pd.DataFrame({"tokens": tokens, "ms": 5 + 0.1 * tokens})
    table = calibrate(frame).fit("table").model
    assert isinstance(table, MeasuredTable)
    assert len(table.tokens) == MOST_POINTS
    assert (table.tokens[0], table.tokens[-1]) == (1, 1000)
    np.testing.assert_allclose(table.ms(tokens), frame["ms"], atol=0.06)


@pytest.mark.parametrize("tile", [16, 32, 64, 96, 128, 192, 256])
def test_the_tile_is_found_or_given(tile: int) -> None:
    frame = measured(Staircase(5.0, 20.0, tile), noise=0.002)
    assert calibrate(frame).best.model.period == tile
    other = calibrate(frame, tile=80).fit("staircase")
    assert (other.model.period, other.constants) == (80, 2)


def test_a_tile_is_not_read_out_of_sizes_that_do_not_show_it() -> None:
    """Multiples of 256 tokens alone fit steps of 16 tokens as well as steps of 256."""
    tokens = 256 * np.arange(1, 9)
    found = calibrate(pd.DataFrame({"tokens": tokens, "ms": 5 + 0.1 * tokens}))
    assert found.best.form == "affine"
    assert found.fit("staircase").model.period == 16


@pytest.mark.parametrize(
    ("change", "notes", "left_out"),
    [
        (
            {"decode_context": 0.0},
            ["decode_context does not vary: the roofline is fitted without kv_ms_per_kilotoken."],
            {"kv_ms_per_kilotoken", "mixed_ms_per_kilotoken"},
        ),
        (
            {"prefill_pairs": 7e6},
            ["prefill_pairs does not vary: the roofline is fitted without prefill_ms_per_megapair"],
            {"prefill_ms_per_megapair", "mixed_ms_per_kilotoken"},
        ),
        (
            {"decode_context": lambda frame: 512 * frame["tokens"]},
            ["decode_context moves in step with the others: the roofline is fitted without kv_"],
            {"kv_ms_per_kilotoken"},
        ),
        (
            {"prefill_pairs": lambda frame: 1 + frame["prefill_pairs"]},
            [
                "decode_context of mixed batches moves in step with the others: the roofline is fitted"
            ],
            {"mixed_ms_per_kilotoken"},
        ),
        ({}, [], set()),
    ],
)
def test_terms_without_variation_are_left_out(
    change: dict[str, Any], notes: list[str], left_out: set[str]
) -> None:
    found = calibrate(measured(MIXED).assign(**change))
    assert len(found.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(found.notes, notes, strict=True))
    fit = found.fit("roofline")
    assert fit.constants == 6 - len(left_out)
    assert all(getattr(fit.model, name) == 0 for name in left_out)


def test_attention_is_optional() -> None:
    frame = measured(LLAMA_3_70B)[["tokens", "ms"]]
    found = calibrate(frame)
    assert [note.split()[0] for note in found.notes] == ["decode_context", "prefill_pairs"]
    assert [fit.form for fit in found.fits[:2]] == ["hinge", "roofline"]
    assert constants(found.fits[1].model)[:3] == pytest.approx(constants(LLAMA_3_70B))


GOOD = pd.DataFrame({"tokens": [1, 2, 4, 8, 16, 32, 64, 128], "ms": np.arange(8) + 5.0})


def replaced(column: str, row: int, value: Any) -> pd.DataFrame:
    frame = GOOD.assign(decode_context=0.0, prefill_pairs=0.0).astype(object)
    frame.loc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("frame", "fault"),
    [
        (GOOD.drop(columns="ms"), "column ms is missing. Needed: tokens, ms; .*found: tokens"),
        (GOOD.drop(columns="tokens"), "column tokens is missing.* optional: decode_context, pref"),
        (GOOD[[]], "column tokens is missing.* found: none"),
        (pd.concat([GOOD, GOOD["ms"]], axis=1), "there are several columns ms; keep one"),
        (replaced("ms", 2, "fast"), "row 3: ms is fast; it must be a number from 1e-06"),
        (replaced("ms", 0, None), "row 1: ms is None; it must be a number"),
        (replaced("ms", 7, float("nan")), "row 8: ms is nan; it must be a number"),
        (replaced("ms", 1, 0), "row 2: ms is 0; it must be a number"),
        (replaced("ms", 1, -3.5), "row 2: ms is -3.5; it must be a number"),
        (replaced("ms", 1, float("inf")), "row 2: ms is inf; it must be a number"),
        (replaced("tokens", 1, 2.5), "row 2: tokens is 2.5; it must be a whole number from 1"),
        (replaced("tokens", 1, 0), "row 2: tokens is 0; it must be a whole number from 1"),
        (replaced("decode_context", 4, -1), "row 5: decode_context is -1; it must be a number fr"),
        (replaced("prefill_pairs", 4, "x" * 99), "row 5: prefill_pairs is x{40}; it must be"),
        (GOOD[:7], f"has 7 rows; a fit needs at least {LEAST_ROWS} measured batches"),
        (GOOD[:0], "has 0 rows; a fit needs"),
        (GOOD.assign(tokens=64), "tokens is 64 in every row; measure batches of different sizes"),
        (GOOD.assign(tokens=[1, 2] * 4), "batches of 1 and 2 tokens alone; .* at least 3 differe"),
        ([1, 2], r"are a DataFrame or a CSV file, got \[1, 2\]"),
    ],
)
def test_faults_are_named(frame: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(LLMGymError, match=fault):
        calibrate(frame)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "Cannot read measurements .*m.csv: No such file or directory. Give a CSV file"),
        (b"", "Cannot read measurements .*m.csv: No columns to parse from file"),
        (b"tokens,ms\n1,2\n1,2,3\n", "Cannot read measurements .*m.csv: "),
        (b"tokens,ms\n1,2,3\n1,2,3\n", "Cannot read measurements .*m.csv: "),
        (b"\xff\xfe\x00\x81", "Cannot read measurements .*m.csv: "),
        (b"tokens\n1\n", "m.csv: column ms is missing"),
        (b"tokens,ms\n1,2\n1\n", "m.csv, row 2: ms is nan"),
        (b"tokens,ms\n1,2\n1,two\n", "m.csv, row 2: ms is two"),
    ],
)
def test_faults_of_a_file_are_named(content: bytes | None, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LLMGymError, match=fault):
        calibrate(path)
    with pytest.raises(LLMGymError, match="Cannot read measurements"):
        calibrate(tmp_path)


@pytest.mark.parametrize("tile", [0, 2.5, "x"])
def test_a_bad_tile_is_refused(tile: Any) -> None:
    with pytest.raises(LLMGymError, match="tile must be"):
        calibrate(GOOD, tile=tile)


def test_a_file_and_a_table_give_the_same(tmp_path: Path) -> None:
    frame = measured(MIXED, noise=0.05).assign(device="gpu")
    frame.rename(columns=lambda name: f" {name}").to_csv(tmp_path / "m.csv", index=False)
    one, other = calibrate(frame), calibrate(str(tmp_path / "m.csv"))
    assert [f.model for f in one.fits] == [f.model for f in other.fits]


junk = st.sampled_from([0, -1, 1.5, float("nan"), float("inf"), "x", None, True, 1e300, 1e-300])
sizes = st.sampled_from([1, 2, 3, 64, 65, 128, 1000, 8192, 10**6])
times = st.floats(1e-3, 1e6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sizes, times, st.integers(0, 10**6)), min_size=8, max_size=14), st.data())
def test_whatever_is_measured_is_fitted_or_refused(rows: list[Any], data: st.DataObject) -> None:
    """Fits give positive times, and the larger families fit no worse than those they hold."""
    frame = pd.DataFrame(rows, columns=["tokens", "ms", "decode_context"]).astype(object)
    if data.draw(st.integers(0, 3)) == 0:
        place = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, 2))
        frame.iloc[place] = data.draw(junk)
    try:
        found = calibrate(frame)
    except LLMGymError:
        return
    assert {fit.form for fit in found.fits} == BATCH_TIMES.keys()
    r2 = {fit.form: fit.r2 for fit in found.fits}
    assert all(np.isfinite(value) for value in r2.values())
    assert -1e-4 < r2["affine"] < r2["hinge"] + 1e-4 < r2["roofline"] + 2e-4
    for fit in found.fits:
        ms = fit.model.ms(np.array([1, 10, 100, 10**4, 10**6, 10**7]), Attention(5.0, 7.0))
        assert np.isfinite(ms).all()
        assert ms.min() > 0


@pytest.fixture(scope="module")
def found() -> Calibration:
    return calibrate(measured(MIXED, noise=0.05))


def test_a_preset_is_written_and_read(found: Calibration, tmp_path: Path) -> None:
    for fit in found.fits:
        path = tmp_path / "new" / f"{fit.form}.toml"
        found.write(path, fit.form)
        assert load_batch_time(path) == fit.model
        assert llmgym.scenario("md1", batch_time=path).engine.batch_time == fit.model
    found.write(tmp_path / "best.toml")
    assert load_batch_time(tmp_path / "best.toml") == found.best.model
    assert f"# R^2 {found.best.r2:.4f}" in (tmp_path / "best.toml").read_text()


def test_a_preset_is_read_whatever_its_measurements_were_called(tmp_path: Path) -> None:
    path = tmp_path / "a\nb = \udc80 \x07.csv"
    measured(MIXED).to_csv(path, index=False)
    calibrate(path).write(tmp_path / "b.toml")
    assert isinstance(load_batch_time(tmp_path / "b.toml"), Roofline)


def test_writing_is_all_or_nothing(found: Calibration, tmp_path: Path) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file.toml").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for write, fault in [
        (lambda: found.write(tmp_path / "file.txt"), "let its name end in .toml"),
        (lambda: found.write(tmp_path / "folder.toml"), "Cannot write"),
        (lambda: found.write(tmp_path / "file.toml" / "a.toml"), "Cannot write"),
        (lambda: found.write(tmp_path / "file.toml", "rooflin"), "Did you mean 'roofline'"),
        (lambda: draw(found, tmp_path / "file.gif"), r"let its name end in \.png or \.svg"),
        (lambda: draw(found, tmp_path / "file.toml" / "a.png"), "Cannot write"),
    ]:
        with pytest.raises(LLMGymError, match=fault):
            write()
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file.toml").read_text() == "kept"


def test_pictures(found: Calibration, tmp_path: Path) -> None:
    draw(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    draw(found, tmp_path / "a.svg")
    draw(found, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    draw(calibrate(GOOD), tmp_path / "c.svg")
    wide, narrow = ((tmp_path / f"{name}.svg").read_text() for name in "ac")
    assert "measured (ms)" in wide
    assert "measured (ms)" not in narrow
