"""Measurements with faults are refused, and calibrations are written, read and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_batches import MIXED, measured

import llmgym
from llmgym.calibration.calibrate import calibrate, draw
from llmgym.calibration.data import LEAST_ROWS
from llmgym.calibration.result import Calibration
from llmgym.core.errors import LLMGymError
from llmgym.scenario.batch_time import (
    BATCH_TIMES,
    Attention,
    Roofline,
)
from llmgym.scenario.toml_tables import load_batch_time

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
